"""Post-training of the tokenizer's decoder (a baseline of VA-π, arXiv:2512.19680, App. C.2).

The policy is left as it is; the decoder learns to draw the real image from the tokens the policy predicts:

    x_t ~ π(· | x*_{<t})  for every t, given the clean tokens x* of the image I  (Eq. 36)
    loss = w · MSE(D_φ(x), I) + λ_p · L_p(D_φ(x), I),  minimised over φ  (Eq. 38)

φ is all that turns code vectors into pixels: the decoder and post_quant_conv. Encoder, quantiser, codebook
and policy are frozen. There is neither a quantisation nor an adversarial loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from alignbench import api, randomness
from alignbench.methods.image_rewards import ImageLoss, ImageOptions, parts_of
from alignbench.methods.logits import eval_logits


@dataclass(frozen=True)
class Experience:
    """B images, one sequence for each."""

    images: Tensor
    """[B, 3, H, W] in [-1, 1]."""
    tokens: Tensor
    """[B, T] int64, drawn."""


class TokenizerDecoder:
    """The method; see `api.Method`.

    Deviation: the paper says "decoder parameters" and leaves open whether post_quant_conv is among them;
    here it is.

    Raises:
        UserError: both weights are 0, or a reward will not do.
    """

    updates: api.Updates = "decoder"

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageOptions):
        """Options; the method's card holds their defaults and documentation."""

        temperature: float

    def __init__(
        self, config: Config, *, backbone: api.Backbone, reward: Callable[[str], api.Reward], seed: int
    ) -> None:
        self.config, self.backbone, self.seed = config, backbone, seed
        self.image_loss = ImageLoss(parts_of(config), reward)

    @torch.no_grad()
    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        """Draw one teacher-forced sequence for each image."""
        targets = self.backbone.tokenizer.encode(batch.images)
        logits = eval_logits(self.backbone, batch.condition, targets[:, :-1])
        probabilities = (logits / self.config.temperature).softmax(dim=-1)
        index, shape = batch.index.tolist(), (targets.shape[1], 1)
        uniforms = torch.from_numpy(randomness.uniforms(self.seed, "decoder-sample", step, index, shape))
        tokens = randomness.inverse_cdf(probabilities, uniforms.to(logits.device)).squeeze(-1)
        return api.Collected(
            Experience(batch.images, tokens),
            metrics={"accuracy": (tokens == targets).float().mean()},
            images=len(batch),
            sequences=len(batch),
            reward_calls=self.image_loss.calls(len(batch)),
        )

    def loss(self, experience: object) -> api.Loss:
        """Distance of the decoded sequences from the images, averaged over the images."""
        assert isinstance(experience, Experience)
        decoded = self.backbone.tokenizer.decode(experience.tokens, self.backbone.grid)
        value, metrics = self.image_loss(decoded, experience.images)
        return api.Loss(value, metrics)
