"""Straight-through post-training of the policy (the STE baseline of VA-π, arXiv:2512.19680, App. C.1).

The policy's prediction l of each token, given the real image's tokens before it, becomes one hard token that
is decoded and compared with the image. Backward, the choice counts as its softmax:

    y_soft = softmax(l / τ),  y_hard = one-hot of argmax l,  y = y_soft + stopgrad(y_hard − y_soft)
    z = y · codebook,  Î = D(z),  loss = w · MSE(Î, I) + λ_p · L_p(Î, I) + β · cross-entropy of x*

so that the image terms have dL/dl = (1/τ) · y_soft ∘ (g − ⟨y_soft, g⟩), g = codebook · dL/dz. Tokenizer and
decoder stay frozen.

Deviation: the cross-entropy is an option that the paper's equation lacks and its released program leaves at
weight 0; with it the method has the same regularisation as VA-π.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from alignbench import api, randomness
from alignbench.errors import UserError
from alignbench.methods.image_rewards import ImageLoss, ImageOptions, parts_of
from alignbench.methods.logits import Experience, train_logits
from alignbench.methods.policy_gradient import prior_cross_entropy

RAW_CODEBOOK = "quantize.embedding.weight"
"""Official name of the codebook before normalisation."""
SMALLEST = 2.0**-54
"""Stands for a uniform number of 0; half a step of the generator."""


@dataclass(frozen=True, kw_only=True)
class Images(Experience):
    """B images and their tokens; everything else happens in the update."""

    images: Tensor
    """[B, 3, H, W] in [-1, 1]."""


class StraightThrough:
    """The method; see `api.Method`.

    Raises:
        UserError: no image term has a weight, a reward will not do, or the tokenizer has no raw codebook.
    """

    updates: api.Updates = "policy"

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageOptions):
        """Options; the method's card holds their defaults and documentation."""

        estimator: Literal["argmax", "gumbel"]
        temperature: float
        codebook: Literal["normalised", "raw"]
        prior_weight: float
        dropout: bool

    def __init__(
        self, config: Config, *, backbone: api.Backbone, reward: Callable[[str], api.Reward], seed: int
    ) -> None:
        self.config, self.backbone, self.seed = config, backbone, seed
        self.image_loss = ImageLoss(parts_of(config), reward)
        self.codebook = backbone.tokenizer.codebook() if config.codebook == "normalised" else _raw(backbone)

    @torch.no_grad()
    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        """Tokenise images. The one sequence of each image is made, and compared, in `loss`."""
        targets = self.backbone.tokenizer.encode(batch.images)
        index = tuple(batch.index.tolist())
        return api.Collected(
            Images(batch.condition, targets[:, :-1], targets, step, index, images=batch.images),
            images=len(batch),
            sequences=len(batch),
            reward_calls=self.image_loss.calls(len(batch)),
        )

    def loss(self, experience: object) -> api.Loss:
        """Image and cross-entropy terms of one micro-batch, averaged over its images.

        Memory holds one [B, T, V] tensor of logits with its gradient (and one of noise for `gumbel`), and
        the decoder's activations for B images: `train.micro_batch` bounds both.
        """
        assert isinstance(experience, Images)
        address = (self.seed, "ste-dropout")
        logits = train_logits(self.backbone, experience, dropout=self.config.dropout, address=address)
        noise = self._noise(experience, logits) if self.config.estimator == "gumbel" else None
        embeddings, tokens = straight_through(
            logits, self.codebook.to(logits), self.config.temperature, gumbel_noise=noise
        )
        decoded = self.backbone.tokenizer.decode_embeddings(embeddings, self.backbone.grid)
        value, metrics = self.image_loss(decoded, experience.images)
        if self.config.prior_weight:
            prior = prior_cross_entropy(logits, experience.targets).mean()
            value = value + self.config.prior_weight * prior
            metrics["prior_loss"] = prior.detach()
        metrics["accuracy"] = (tokens == experience.targets).to(value.dtype).mean()
        return api.Loss(value, metrics)

    def _noise(self, experience: Experience, logits: Tensor) -> Tensor:
        """Standard Gumbel numbers −log(−log u), [B, T, V]; a function of (seed, step, sample number)."""
        noise = torch.empty_like(logits, requires_grad=False)
        shape = (logits.shape[1], logits.shape[2])
        for row, number in enumerate(experience.index):  # float64 for one image at a time
            numbers = randomness.uniforms(self.seed, "ste-gumbel", experience.step, [number], shape)[0]
            # 0 would give −inf, a code that cannot be drawn.
            uniform = torch.from_numpy(numbers).to(logits.device).clamp_(min=SMALLEST)
            noise[row] = -(-uniform.log()).log()
        return noise


def _raw(backbone: api.Backbone) -> Tensor:
    """The codebook as stored, [V, D].

    Deviation: the paper embeds through the codebook; the released program takes the stored rows, which the
    tokenizer itself scales to unit length before it decodes them.
    """
    state = backbone.export()["tokenizer"]
    if RAW_CODEBOOK not in state:
        raise UserError(
            f"this model's tokenizer stores no {RAW_CODEBOOK}", fix="set method.codebook=normalised"
        )
    return state[RAW_CODEBOOK].detach().float()


def straight_through(
    logits: Tensor, codebook: Tensor, temperature: float, *, gumbel_noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Embed the hardest token of each position so that gradients reach its logits.

    Logits [B, T, V] float and codebook [V, D], of one dtype and treated as constant, → (embeddings [B, T,
    D], tokens [B, T] int64); τ above 0. Forward: codebook[argmax(logits)]. Backward: as if the embedding
    were softmax(logits / τ) @ codebook, i.e. (1/τ)·y∘(g − ⟨y, g⟩) with g = codebook @ gradient. No one-hot
    tensor is made; the backward pass recomputes the softmax instead of keeping it.

    Deviation: the released STE program draws a random token (standard Gumbel noise, [B, T, V], is added
    before both argmax and softmax); the paper (VA-π App. C.1) takes the most likely one (`gumbel_noise`
    None).
    """
    scores = logits if gumbel_noise is None else logits + gumbel_noise
    tokens = scores.detach().argmax(dim=-1)
    embeddings: Tensor = _StraightThrough.apply(scores, tokens, codebook, temperature)
    return embeddings, tokens


class _StraightThrough(torch.autograd.Function):
    """Row lookup whose gradient is that of softmax(scores / τ) @ codebook."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, tokens: Tensor, codebook: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(scores, codebook)
        ctx.temperature = temperature
        return codebook[tokens]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        scores, codebook = ctx.saved_tensors
        soft = (scores / ctx.temperature).softmax(dim=-1)
        pull = gradients[0] @ codebook.T
        pull = pull - (soft * pull).sum(dim=-1, keepdim=True)
        return soft.mul_(pull).div_(ctx.temperature), None, None, None
