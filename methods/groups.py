"""Shared by methods: groups of samples, drawn again where they teach nothing, and compared within.

The switches that published variants of GRPO differ in; docs/grpo-variants.md has their formulas and sources.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from alignbench import api
from alignbench.errors import UserError
from alignbench.methods import policy_gradient
from alignbench.methods.policy_gradient import (
    RELATIVE_SPREAD,
    STD_EPSILON,
    UnscaledAdvantages,
    group_advantages,
)

Samples = dict[str, Tensor]
"""Whatever was drawn of B groups: tensors [B, ...]."""
Rows = slice | list[int]
"""Which groups of a batch."""


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """Options of the methods that compare the samples of a group."""

    group_size: int
    clip_range: float
    clip_range_high: float
    ratio: policy_gradient.Ratio
    baseline: policy_gradient.Baseline
    advantage_std: Literal["group", "batch", "none"]
    redraws: int
    kl_estimator: policy_gradient.Estimator
    kl_in: Literal["loss", "reward"]

    def check_kl(self, used: bool, fix: str) -> None:
        """Raise UserError if the divergence has a form but is not used."""
        if not used and (self.kl_estimator != "k3" or self.kl_in != "loss"):
            raise UserError(
                "method.kl_estimator and method.kl_in change nothing without a divergence", fix=fix
            )

    def penalty(self, logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
        """The divergence estimated for whole sequences, [..., T] → [...]: the sum over their tokens."""
        return policy_gradient.kl_estimate(logprobs, reference_logprobs, self.kl_estimator).sum(dim=-1)


class GroupAdvantages(NamedTuple):
    """What became of the scores of B groups."""

    advantages: Tensor
    """[B, G]; 0 where not valid."""
    valid: Tensor
    """[B, G] bool: every term gave a score."""
    unscaled: UnscaledAdvantages | None
    """With `advantage_std = batch`: the advantages are not divided yet."""

    @property
    def shares(self) -> dict[str, Tensor]:
        """For the log: shares of groups whose scores are all equal, and of groups without a valid score."""
        return {
            "flat_groups": (self.advantages == 0).all(dim=1).float().mean(),
            "invalid_groups": (~self.valid.any(dim=1)).float().mean(),
        }


def compare(
    values: Sequence[Tensor],
    valid: Sequence[Tensor],
    weights: Sequence[float],
    options: GroupOptions,
    epsilon: float = STD_EPSILON,
) -> GroupAdvantages:
    """Turn the scores [B, G] of each term, with which of them are valid, into advantages.

    Each term is compared and divided by itself, over its own valid scores, then summed by weight: a weight is
    a share of influence, whatever the units. A term without spread in a group, or with fewer than two valid
    scores in it, adds 0 there.
    """
    kind = options.advantage_std
    parts = []
    for part, mask, weight in zip(values, valid, weights, strict=True):
        one = group_advantages(
            part, valid=mask, epsilon=epsilon, baseline=options.baseline, divide=kind == "group"
        )
        parts.append(weight * one)
    both = torch.stack(list(valid)).all(dim=0)
    terms = torch.stack(parts).where(both, 0.0)
    unscaled = UnscaledAdvantages.of(terms, values, valid, epsilon) if kind == "batch" else None
    return GroupAdvantages(terms.sum(dim=0), both, unscaled)


def draw(
    sample: Callable[[Rows, str], Samples], flat: Callable[[Samples], Tensor], redraws: int
) -> tuple[Samples, int]:
    """Draw all groups, and those without spread again, at most `redraws` times (DAPO, arXiv:2503.14476).

    Args:
        sample: (which groups, what to append to the purpose of their random numbers, so that each attempt has
            its own) → what was drawn of them.
        flat: [B] bool, groups to be drawn again.

    Returns:
        (what was drawn last of each group, how many groups were drawn again).

    Deviation: DAPO fills up with other prompts; here a group is drawn again for the same one, so that the
    images of a step stay the same.
    """
    drawn, again = sample(slice(None), ""), 0
    for attempt in range(1, redraws + 1):
        rows = flat(drawn).nonzero().flatten().tolist()
        if not rows:
            break
        for name, part in sample(rows, f"-redraw-{attempt}").items():
            drawn[name][rows] = part
        again += len(rows)
    return drawn, again


def pick(condition: api.Condition, rows: Rows) -> api.Condition:
    """Return some rows of a condition."""
    if isinstance(rows, slice):
        return condition.select(rows)
    return functools.reduce(lambda a, b: a.join(b), [condition.select(slice(row, row + 1)) for row in rows])


def is_flat(values: Sequence[Tensor], valid: Sequence[Tensor]) -> Tensor:
    """Whether a group's valid scores are equal in every term, [B] bool; False with fewer than two of them."""
    parts = [group_advantages(part, valid=mask) for part, mask in zip(values, valid, strict=True)]
    same = (torch.stack(parts) == 0).all(dim=0).all(dim=1)
    return same & (torch.stack(list(valid)).all(dim=0).sum(dim=1) > 1)


class Ranking(NamedTuple):
    """The samples of B groups, from best to worst."""

    order: Tensor
    """[B, G] int64, places in the group: equal ones in the order of drawing, those without a score last."""
    valid: Tensor
    """[B] int64, how many have a score: the worst is `order[:, valid - 1]`."""
    differ: Tensor
    """[B] bool: the scores are not all equal, so that there is a best and a worst."""


def rank(values: Sequence[Tensor], valid: Sequence[Tensor], weights: Sequence[float]) -> Ranking:
    """Rank by the scores [B, G] of each term, normalised in the group and then summed by weight.

    That is `compare` as it stands by default: a sample is ranked by what would be its advantage.
    """
    terms = zip(values, valid, weights, strict=True)
    total = torch.stack([w * group_advantages(part.double(), valid=mask) for part, mask, w in terms]).sum(0)
    both = torch.stack(list(valid)).all(dim=0)
    highest = total.where(both, -torch.inf)
    spread = highest.amax(dim=1) - total.where(both, torch.inf).amin(dim=1)
    # Terms of unit spread that cancel each other leave rounding errors, which say nothing.
    differ = spread > RELATIVE_SPREAD * sum(map(abs, weights))
    return Ranking(highest.argsort(dim=1, descending=True, stable=True), both.sum(dim=1), differ)
