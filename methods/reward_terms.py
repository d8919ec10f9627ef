"""Several rewards for one sample: `SPEC@WEIGHT, …` and the two ways in which the field mixes their scores.

The mixing functions are pure. Shapes: B images or prompts, G samples of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from alignbench.methods.policy_gradient import group_advantages
from alignbench.registry.reward_spec import parse_terms as parse_terms


class Mixed(NamedTuple):
    """The sum that is optimised."""

    values: Tensor
    """[B, G], larger is better; NaN where not valid, so that nothing can take such a value for a score."""
    valid: Tensor
    """[B, G] bool: every term has a valid score for the sample."""


def combine_raw(values: Sequence[Tensor], valid: Sequence[Tensor], weights: Sequence[float]) -> Mixed:
    """Weighted sum of the scores as they come (AR-GRPO, arXiv:2508.06924, where all weights are 1).

    Terms of large spread dominate. A sum is valid only where all of its terms are.

    Args:
        values: [B, G] for each term.
        valid: [B, G] bool for each term.
        weights: one for each term.
    """
    all_valid = torch.stack(list(valid)).all(dim=0)
    parts = [weight * part for weight, part in zip(weights, values, strict=True)]
    return Mixed(torch.stack(parts).sum(dim=0).masked_fill(~all_valid, torch.nan), all_valid)


def combine_normalised(values: Sequence[Tensor], valid: Sequence[Tensor], weights: Sequence[float]) -> Mixed:
    """Weighted sum of scores that were first z-scored within their group, each over its own valid ones.

    A weight then is a share of influence, whatever the units. Arguments and validity as in `combine_raw`;
    a term without spread in a group, or with fewer than two valid scores in it, adds 0 there.
    """
    scaled = [group_advantages(part, valid=mask) for part, mask in zip(values, valid, strict=True)]
    return combine_raw(scaled, valid, weights)


def describe(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Describe [B, G] scores: mean, mean spread within a group, share of groups without spread.

    Over valid scores only. NaN, not 0, where there is nothing to average: every rank logs the same names.
    """
    kept = values.double().masked_fill(~valid, torch.nan)
    count = valid.sum(dim=1)
    squares = (kept - kept.nanmean(dim=1, keepdim=True)).square().nansum(dim=1)
    spread = (squares / (count - 1).clamp(min=1)).sqrt().masked_fill(count < 2, torch.nan)
    flat = (group_advantages(values, valid=valid) == 0).all(dim=1)
    return kept.nanmean(), spread.nanmean(), flat.double().mean()
