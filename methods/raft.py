"""RAFT (arXiv:2304.06767): imitation of the best of N samples, the control of whatever learns from rewards.

Images are generated and scored as by `ar-grpo`: with the same seed and options the first step has the same
tokens and pays for the same reward calls. Then the best k of each group are imitated,

    loss = −(1/B) Σ_groups (1/k) Σ_best (1/T) Σ_t log π(x_t | c, x_{<t})

and nothing is learned from the others. An update costs k/G of AR-GRPO's forwards and there is no reference.

Deviation: RAFT collects for many prompts and then fine-tunes; here each step collects anew, as AR-GRPO does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from alignbench import api
from alignbench.errors import UserError
from alignbench.methods import groups
from alignbench.methods.rollouts import RolloutOptions, Rollouts


@dataclass(frozen=True)
class Experience:
    """The best k sequences of B groups."""

    condition: api.Condition
    """B·k rows, image-major."""
    tokens: Tensor
    """[B·k, T] int64."""
    used: Tensor
    """[B] bool; False: the group selects nothing."""


class Raft:
    """The method; see `api.Method`.

    Raises:
        UserError: every sample would be kept, rewards that cannot be read, or a backbone that cannot score
            what it sampled.
    """

    updates: api.Updates = "policy"

    @dataclass(frozen=True, kw_only=True)
    class Config(RolloutOptions):
        """Options; the method's card holds their defaults and documentation."""

        group_size: int
        keep: int
        exact: bool

    def __init__(
        self, config: Config, *, backbone: api.Backbone, reward: Callable[[str], api.Reward], seed: int
    ) -> None:
        if config.keep >= config.group_size:
            raise UserError(
                f"method.keep={config.keep} of method.group_size={config.group_size} samples selects nothing",
                fix="keep fewer than are drawn: method.keep=1",
            )
        self.config, self.backbone = config, backbone
        self.rollouts = Rollouts(config, exact=config.exact, backbone=backbone, reward=reward, seed=seed)

    @torch.no_grad()
    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        """Generate G images of each condition, score them, and keep the best k.

        A group gives nothing unless more than k of its scores are valid and they differ.
        """
        keep, rollouts = self.config.keep, self.rollouts
        drawn = rollouts.draw(batch, step, self.config.group_size)
        ranking = groups.rank(drawn.values, drawn.valid, rollouts.weights)
        used = ranking.differ & (ranking.valid > keep)
        experience = Experience(batch.condition.repeat(keep), drawn.take(ranking.order[:, :keep]), used)
        metrics = rollouts.metrics(drawn) | {"flat_groups": 1 - used.float().mean()}
        return rollouts.collected(experience, drawn, metrics, images=len(batch))

    def loss(self, experience: object) -> api.Loss:
        """Cross-entropy of the kept sequences, averaged over tokens, the k, and all groups.

        Groups that select nothing count in the denominator alone, so that a group weighs the same whatever
        becomes of its neighbours.
        """
        assert isinstance(experience, Experience)
        logits = self.rollouts.logits(self.backbone, experience.condition, experience.tokens)
        logprobs = self.rollouts.logprobs(logits, experience.tokens)
        return api.Loss(imitation(logprobs.unflatten(0, (-1, self.config.keep)), experience.used))


def imitation(logprobs: Tensor, used: Tensor) -> Tensor:
    """Cross-entropy of k sequences of B groups, scalar; [B, k, T] log-probabilities and [B] bool."""
    return -logprobs.mean(dim=(1, 2)).where(used, 0.0).mean()
