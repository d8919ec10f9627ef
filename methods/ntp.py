"""Next-token prediction on the training images: the control that uses no reward.

With a clean context it is plain fine-tuning, which is VA-π's prior term alone ("prior only" in its Table 4,
arXiv:2512.19680); with a noisy one it is the context regularisation that VA-π takes over from reAR:

    loss = −(1/T) Σ_t log π(x*_t | x̃*_{<t}),  x̃* = x* with a share ξ of tokens replaced at random

that is VA-π's Eq. 9 with the corruption of its Eq. 28-29. In reAR itself (arXiv:2510.04450, §4.3) the share
is another one for each sequence and vanishes as training goes on:

    ε ~ U(0, ξ·f(p)),  f(p) = max(0, 1 − 4p/3),  p = step / steps
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from alignbench import api, randomness
from alignbench.errors import UserError
from alignbench.methods.logits import Experience, teacher_forced, train_logits
from alignbench.methods.policy_gradient import NoiseKernel, prior_cross_entropy


class NextToken:
    """The method; see `api.Method`.

    Raises:
        UserError: a schedule of noise without noise.
    """

    updates: api.Updates = "policy"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options; the method's card holds their defaults and documentation."""

        noise: float
        noise_kernel: NoiseKernel
        dropout: bool
        noise_schedule: Literal["constant", "annealed"]

    def __init__(
        self,
        config: Config,
        *,
        backbone: api.Backbone,
        reward: Callable[[str], api.Reward],
        seed: int,
        steps: int = 0,
    ) -> None:
        if config.noise_schedule == "annealed" and not steps:  # a subclass that does not ask for them
            raise TypeError("method.noise_schedule=annealed has to be told the number of steps")
        if config.noise_schedule == "annealed" and not config.noise:
            raise UserError(
                "method.noise_schedule=annealed has no noise to take away",
                fix="set method.noise: 1 is reAR's",
            )
        self.config, self.backbone, self.seed, self.steps = config, backbone, seed, steps

    @torch.no_grad()
    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        """Tokenise images and corrupt their contexts; nothing is drawn from the policy."""
        rate, kernel = self._noise(batch, step), self.config.noise_kernel
        experience = teacher_forced(
            self.backbone, batch, step, seed=self.seed, purpose="ntp-noise", rate=rate, kernel=kernel
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

    def _noise(self, batch: api.Batch, step: int) -> float | Tensor:
        """Share of replaced tokens: one for all, or [B, 1]."""
        if self.config.noise_schedule == "constant":
            return self.config.noise
        numbers = randomness.uniforms(self.seed, "ntp-noise-share", step, batch.index.tolist(), (1,))
        highest = self.config.noise * annealed(step / self.steps)
        return torch.from_numpy(numbers * highest).to(batch.images.device)


def annealed(progress: float) -> float:
    """reAR's f(p) = max(0, 1 − 4p/3) (its text; its Table 3 prints min): 0 from three quarters on."""
    return max(0.0, 1.0 - 4.0 * progress / 3.0)
