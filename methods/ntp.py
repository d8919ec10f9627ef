"""Next-token prediction on the training images: the control that uses no reward.

With a clean context it is plain fine-tuning, which is VA-π's prior term alone ("prior only" in its Table 4,
arXiv:2512.19680); with a noisy one it is the context regularisation that VA-π takes over from reAR:

    loss = −(1/T) Σ_t log π(x*_t | x̃*_{<t}),  x̃* = x* with a share ξ of tokens replaced at random

that is VA-π's Eq. 9 with the corruption of its Eq. 28-29.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from alignbench import api
from alignbench.methods.logits import noisy_context, train_logits
from alignbench.methods.policy_gradient import NoiseKernel, prior_cross_entropy


@dataclass(frozen=True)
class Experience:
    """B images as tokens."""

    condition: api.Condition
    context: Tensor
    """[B, T-1] int64, tokens before each position, perhaps noisy."""
    targets: Tensor
    """[B, T] int64, clean tokens x*."""
    step: int
    index: tuple[int, ...]
    """Sample numbers of the images."""


class NextToken:
    """The method; see `api.Method`."""

    updates: api.Updates = "policy"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options; the method's card holds their defaults and documentation."""

        noise: float
        noise_kernel: NoiseKernel
        dropout: bool

    def __init__(
        self, config: Config, *, backbone: api.Backbone, reward: Callable[[str], api.Reward], seed: int
    ) -> None:
        self.config, self.backbone, self.seed = config, backbone, seed

    @torch.no_grad()
    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        """Tokenise images and corrupt their contexts; nothing is drawn from the policy."""
        targets = self.backbone.tokenizer.encode(batch.images)
        index = tuple(batch.index.tolist())
        context = self._context(targets, step, index)
        return api.Collected(
            Experience(batch.condition, context, targets, step, index),
            metrics={"corrupted": (context != targets[:, :-1]).float().mean()},
            images=len(batch),
        )

    def loss(self, experience: object) -> api.Loss:
        """Cross-entropy of the clean tokens, averaged over tokens and images."""
        assert isinstance(experience, Experience)
        address = (self.seed, "ntp-dropout", experience.step, experience.index)
        condition, context = experience.condition, experience.context
        logits = train_logits(self.backbone, condition, context, dropout=self.config.dropout, address=address)
        value = prior_cross_entropy(logits, experience.targets).mean()
        accuracy = (logits.detach().argmax(dim=-1) == experience.targets).float().mean()
        return api.Loss(value, {"accuracy": accuracy})

    def _context(self, targets: Tensor, step: int, index: tuple[int, ...]) -> Tensor:
        noise, kernel = self.config.noise, self.config.noise_kernel
        return noisy_context(self.backbone, targets, noise, kernel, (self.seed, "ntp-noise", step, index))
