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

from alignbench import api
from alignbench.methods.logits import Experience, teacher_forced, train_logits
from alignbench.methods.policy_gradient import NoiseKernel, prior_cross_entropy


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
        noise, kernel = self.config.noise, self.config.noise_kernel
        experience = teacher_forced(
            self.backbone, batch, step, seed=self.seed, purpose="ntp-noise", rate=noise, kernel=kernel
        )
        corrupted = (experience.context != experience.targets[:, :-1]).float().mean()
        return api.Collected(experience, metrics={"corrupted": corrupted}, images=len(batch))

    def loss(self, experience: object) -> api.Loss:
        """Cross-entropy of the clean tokens, averaged over tokens and images."""
        assert isinstance(experience, Experience)
        address = (self.seed, "ntp-dropout")
        logits = train_logits(self.backbone, experience, dropout=self.config.dropout, address=address)
        value = prior_cross_entropy(logits, experience.targets).mean()
        accuracy = (logits.detach().argmax(dim=-1) == experience.targets).float().mean()
        return api.Loss(value, {"accuracy": accuracy})
