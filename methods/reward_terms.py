"""Several rewards for one sample: parsing `SPEC@WEIGHT, …`, scoring every term, and mixing the scores.

The mixing functions are pure; the two of them are the two ways found in the field. A value that is not valid is
NaN, so that code that forgets the mask cannot take it for a score. Shapes: B images or prompts, G samples of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from alignbench import api
from alignbench.methods.policy_gradient import group_advantages
from alignbench.specs import parse_terms as parse_terms

Mixing = Literal["raw", "normalised"]


class Mixed(NamedTuple):
    """What is optimised."""

    values: Tensor
    """[B, G], larger is better; NaN where not valid."""
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


COMBINE: Mapping[Mixing, Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[float]], Mixed]] = {
    "raw": combine_raw,
    "normalised": combine_normalised,
}


def describe(name: str, values: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Scalars for the log of one term, or of the sum: [B, G] scores → {`name`, `name_std`, …}.

    `name` is the mean, `_std` the mean spread within groups, `_flat` the share of groups without any (they
    teach nothing; groups of fewer than two valid scores count among them), `_invalid` the share of samples
    without a valid score. Mean and std are over what is valid, and NaN where nothing is.
    """
    values = values.double().masked_fill(~valid, torch.nan)
    count = valid.sum(dim=1, keepdim=True)
    squares = (values - values.nanmean(dim=1, keepdim=True)).square().nansum(dim=1, keepdim=True)
    flat = (group_advantages(values, valid=valid) == 0).all(dim=1)
    return {
        name: values.nanmean(),
        f"{name}_std": (squares / (count - 1))[count > 1].sqrt().mean(),
        f"{name}_flat": flat.double().mean(),
        f"{name}_invalid": (~valid).double().mean(),
    }


class RewardTerms:
    """The rewards of a method's option, scored together.

    Args:
        text: `SPEC@WEIGHT, …`.
        reward: gives the reward object of a spec; its scores are such that larger is better.
        mixing: how scores become one number.

    Raises:
        UserError: the text is not of that form, or a reward cannot be built.
    """

    def __init__(self, text: str, reward: Callable[[str], api.Reward], *, mixing: Mixing) -> None:
        terms = parse_terms(text)
        self.weights = dict(terms)
        self.rewards = {spec: reward(spec) for spec, _ in terms}
        self.mixing = mixing

    def score(self, request: api.ScoreRequest, group_size: int) -> tuple[Mixed, dict[str, Tensor]]:
        """Score B·G images, image-major: (the sum, scalars for the log of every term and of the sum)."""
        scores = {spec: part.score(request) for spec, part in self.rewards.items()}
        values = [part.values.view(-1, group_size) for part in scores.values()]
        valid = [part.valid.view(-1, group_size) for part in scores.values()]
        mixed = COMBINE[self.mixing](values, valid, list(self.weights.values()))
        metrics = describe("reward", *mixed)
        for spec, value, mask in zip(scores, values, valid, strict=True):
            metrics |= describe(f"reward/{spec}", value, mask)
        return mixed, metrics

    def calls(self, images: int) -> dict[str, int]:
        """Return {spec: images scored} for `api.Collected.reward_calls`."""
        return dict.fromkeys(self.rewards, images)
