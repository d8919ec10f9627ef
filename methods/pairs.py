"""Preference losses on pairs of the policy's own samples: online DPO, IPO and SimPO.

Images are generated and scored as by `ar-grpo`: with the same seed and options the first step has the same
tokens and pays for the same reward calls. The best and the worst of each group, w and l, are a pair. With
R = Σ_t log π(x_t) − log π_ref(x_t), summed over the tokens, h = R_w − R_l and σ the logistic function,

    dpo    −log σ(β h)                                        arXiv:2305.18290, Eq. 7
    ipo    (h − 1/(2β))²                                      arXiv:2310.12036, Eq. 17
    simpo  −log σ(β (mean_t log π(w) − mean_t log π(l)) − γ)  arXiv:2405.14734, Eq. 6; no reference

averaged over groups. An update costs 2/G of AR-GRPO's forwards, and as many of the reference.

Deviation: the papers learn from pairs that people judged once; here a reward judges fresh ones at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignbench import api
from alignbench.errors import UserError
from alignbench.methods import groups
from alignbench.methods.rollouts import RolloutOptions, Rollouts

PairLoss = Literal["dpo", "ipo", "simpo"]


@dataclass(frozen=True)
class Experience:
    """Pairs of B groups, the better sequence first."""

    condition: api.Condition
    """2·B rows, image-major."""
    tokens: Tensor
    """[2·B, T] int64."""
    reference_logprobs: Tensor | None
    """[2·B, T] under the frozen starting model; None for SimPO."""
    used: Tensor
    """[B] bool; False: the group has no best and worst."""


class PreferencePairs:
    """The method; see `api.Method`.

    Raises:
        UserError: a γ that the loss does not read, rewards that cannot be read, or a backbone that cannot
            score what it sampled.
    """

    updates: api.Updates = "policy"

    @dataclass(frozen=True, kw_only=True)
    class Config(RolloutOptions):
        """Options; the method's card holds their defaults and documentation."""

        group_size: int
        loss: PairLoss
        beta: float
        gamma: float
        exact: bool

    def __init__(
        self, config: Config, *, backbone: api.Backbone, reward: Callable[[str], api.Reward], seed: int
    ) -> None:
        if config.gamma and config.loss != "simpo":
            raise UserError(
                f"method.gamma changes nothing with method.loss={config.loss}", fix="set method.loss=simpo"
            )
        self.config, self.backbone = config, backbone
        self.rollouts = Rollouts(config, exact=config.exact, backbone=backbone, reward=reward, seed=seed)
        self.reference = backbone.reference() if config.loss != "simpo" else None

    @torch.no_grad()
    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        """Generate G images of each condition, score them, and keep the best and the worst.

        A group gives nothing unless two of its scores are valid and differ.
        """
        rollouts, reference = self.rollouts, None
        drawn = rollouts.draw(batch, step, self.config.group_size)
        order, valid, used = groups.rank(drawn.values, drawn.valid, rollouts.weights)
        worst = order.gather(1, (valid - 1).clamp(min=0).unsqueeze(1))
        condition, tokens = batch.condition.repeat(2), drawn.take(torch.cat([order[:, :1], worst], dim=1))
        if self.reference is not None:
            reference = rollouts.logprobs(rollouts.logits(self.reference, condition, tokens), tokens)
        experience = Experience(condition, tokens, reference, used)
        metrics = rollouts.metrics(drawn) | {"flat_groups": 1 - used.float().mean()}
        return rollouts.collected(experience, drawn, metrics, images=len(batch))

    def loss(self, experience: object) -> api.Loss:
        """The loss of each pair, averaged over all groups.

        Groups without a pair count in the denominator alone, so that a group weighs the same whatever becomes
        of its neighbours.
        """
        assert isinstance(experience, Experience)
        logits = self.rollouts.logits(self.backbone, experience.condition, experience.tokens)
        logprobs = self.rollouts.logprobs(logits, experience.tokens)
        margin, losses = pair_losses(logprobs, experience.reference_logprobs, self.config)
        margin = margin.detach().where(experience.used, 0.0)
        return api.Loss(losses.where(experience.used, 0.0).mean(), {"margin": margin.mean()})


def pair_losses(
    logprobs: Tensor, reference: Tensor | None, config: PreferencePairs.Config
) -> tuple[Tensor, Tensor]:
    """h of each pair (SimPO: the difference of mean log-probabilities) and its loss, [B] each.

    Log-probabilities [2·B, T], the better sequence first, and those of the reference, which SimPO has not.
    """
    per_sequence = logprobs.mean(dim=-1) if reference is None else (logprobs - reference).sum(dim=-1)
    better, worse = per_sequence.unflatten(0, (-1, 2)).unbind(1)
    margin = better - worse
    if config.loss == "ipo":
        return margin, (margin - 1 / (2 * config.beta)).square()
    return margin, -logsigmoid(config.beta * margin - (config.gamma if config.loss == "simpo" else 0.0))
