"""Post-training of the tokenizer's decoder (a baseline of VA-π, arXiv:2512.19680, App. C.2).

The policy is left as it is; the decoder learns to draw the real image from the tokens the policy predicts:

    x_t ~ π(· | x*_{<t})  for every t, given the clean tokens x* of the image I  (Eq. 36)
    loss = w · MSE(D_φ(x), I) + λ_p · L_p(D_φ(x), I),  minimised over φ  (Eq. 38)

φ is all that turns code vectors into pixels: the decoder and post_quant_conv. Encoder, quantiser, codebook
and policy are frozen. There is neither a quantisation nor an adversarial loss.

With `samples` other than `teacher-forced` the tokens are those of RobusTok's post-training (arXiv:2509.12474,
§4.3), drawn one after another, so that the decoder sees what the policy makes of its own mistakes:

    z_t = x*_t with probability σ, else ~ π(· | z_{<t}),  t = 1 … T  (Eq. 5; σ is `preserved`)

and, `re-encoded`, what the encoder reads in the 8-bit image that the untrained decoder makes of z: its
released program stores z as PNG files and trains on those.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from alignbench import api, randomness
from alignbench.errors import UserError
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
    here it is. RobusTok draws the tokens of each image once, before training, and has an adversarial loss:
    here they are drawn anew whenever the image comes, and there is none.

    Raises:
        UserError: both weights are 0, a reward will not do, or an option has nothing to act on.
    """

    updates: api.Updates = "decoder"

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageOptions):
        """Options; the method's card holds their defaults and documentation."""

        temperature: float
        samples: Literal["teacher-forced", "generated", "re-encoded"]
        preserved: float
        cfg_scale: float
        top_k: int
        top_p: float

    def __init__(
        self, config: Config, *, backbone: api.Backbone, reward: Callable[[str], api.Reward], seed: int
    ) -> None:
        self.config, self.backbone, self.seed = config, backbone, seed
        self.image_loss = ImageLoss(parts_of(config), reward)
        self.sampling = api.Sampling(
            temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, cfg_scale=config.cfg_scale
        )
        self.generates = config.samples != "teacher-forced"
        if not self.generates and (
            config.preserved or self.sampling != api.Sampling(temperature=config.temperature)
        ):
            raise UserError(
                "method.preserved, cfg_scale, top_k and top_p are about tokens drawn one after another",
                fix="set method.samples=generated or re-encoded",
            )
        # As it is before training: the one that trains would read its own changes.
        self.start = copy.deepcopy(backbone.tokenizer) if config.samples == "re-encoded" else None

    @torch.no_grad()
    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        """Draw one sequence for each image."""
        targets = self.backbone.tokenizer.encode(batch.images)
        draw = self._generated if self.generates else self._teacher_forced
        tokens = draw(batch, targets, step)
        return api.Collected(
            Experience(batch.images, tokens),
            metrics={"accuracy": (tokens == targets).float().mean()},
            images=len(batch),
            sequences=len(batch),
            tokens=targets.numel() if self.generates else 0,
            reward_calls=self.image_loss.calls(len(batch)),
        )

    def _teacher_forced(self, batch: api.Batch, targets: Tensor, step: int) -> Tensor:
        logits = eval_logits(self.backbone, batch.condition, targets[:, :-1])
        probabilities = (logits / self.config.temperature).softmax(dim=-1)
        uniforms = self._uniforms("decoder-sample", batch, targets, step)
        return randomness.inverse_cdf(probabilities, uniforms.unsqueeze(-1)).squeeze(-1)

    def _generated(self, batch: api.Batch, targets: Tensor, step: int) -> Tensor:
        kept = kept_codes(
            targets, self.config.preserved, self._uniforms("decoder-preserved", batch, targets, step)
        )
        uniforms = self._uniforms("decoder-generated", batch, targets, step)
        tokens = self.backbone.generate(batch.condition, uniforms, self.sampling, forced=kept).tokens
        if self.start is None:
            return tokens
        pixels = self.start.decode(tokens, self.backbone.grid)
        # The rule of LlamaGen's program for images it stores; 8 bit whatever the protocol.
        stored = (127.5 * pixels + 128).clamp(0, 255).floor()
        return self.start.encode(stored / 127.5 - 1)

    def _uniforms(self, purpose: str, batch: api.Batch, targets: Tensor, step: int) -> Tensor:
        """Return [B, T] float64 on the device."""
        numbers = randomness.uniforms(self.seed, purpose, step, batch.index.tolist(), (targets.shape[1],))
        return torch.from_numpy(numbers).to(targets.device)

    def loss(self, experience: object) -> api.Loss:
        """Distance of the decoded sequences from the images, averaged over the images."""
        assert isinstance(experience, Experience)
        decoded = self.backbone.tokenizer.decode(experience.tokens, self.backbone.grid)
        value, metrics = self.image_loss(decoded, experience.images)
        return api.Loss(value, metrics)


def kept_codes(tokens: Tensor, share: float, uniforms: Tensor) -> Tensor:
    """Keep each of [B, T] int64 codes where its number, [B, T] in [0, 1), is below `share`; elsewhere -1."""
    return tokens.masked_fill(uniforms >= share, -1)
