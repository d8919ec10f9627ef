"""Shared by methods: what a rollout says of single tokens, for those that weigh them.

Shapes: B groups of G sequences of T tokens, V codes of width D. Nothing is computed that is not asked for.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from alignbench.errors import UserError
from alignbench.methods.logits import KnowsNull, eval_logits, mode
from alignbench.methods.rollouts import Groups, KnowsSampling, Rollouts

Need = Literal["reference", "entropy", "vectors", "null_divergence"]
TIE = 1e-6
"""Rewards this near the best of their group are the best, too."""


@dataclass(frozen=True)
class Signals:
    """Everything that weights may depend on; None where none of them asks for it."""

    grid: tuple[int, int]
    """(rows, columns) of the tokens."""
    advantages: Tensor
    """[B, G]."""
    valid: Tensor
    """[B, G] bool: the advantage means something."""
    logprobs: Tensor
    """[B, G, T] before the update."""
    reference: Tensor | None = None
    """[B, G, T] log-probabilities under the frozen starting model."""
    entropy: Tensor | None = None
    """[B, G, T] in nats, of the distribution each token was drawn from."""
    vectors: Tensor | None = None
    """[B, G, T, D], the tokens' rows of the tokenizer's codebook."""
    null_divergence: Tensor | None = None
    """[B, G, T] in nats, KL(π(· | condition) ‖ π(· | null condition)) at temperature 1."""
    current: Tensor | None = None
    """[B, G, T] log-probabilities now, with their gradient; None: there was no update yet."""


class Weights(NamedTuple):
    """Of one factor or of a product, [B, G, T]; at least 0."""

    policy: Tensor
    divergence: Tensor
    selected: Tensor
    """1 or 0: whether the token counts at all."""


def check(needs: Collection[Need], rollouts: Rollouts, referenced: bool) -> None:
    """Raise UserError if something needed cannot be had; `referenced`: there is a starting model."""
    backbone = rollouts.backbone
    if "reference" in needs and not referenced:
        raise UserError(
            "method.token_weights compares with the starting model, which method.kl_weight=0 leaves out",
            fix="set method.kl_weight above 0",
        )
    if "null_divergence" in needs and not isinstance(backbone, KnowsNull):
        raise UserError(
            "method.token_weights: contrast needs a backbone with a null condition", fix="use another factor"
        )
    guided = "entropy" in needs and rollouts.scored != rollouts.options.sampling
    if guided and not isinstance(backbone, KnowsSampling):
        raise UserError(
            "method.token_weights: the entropy of guided or filtered samples needs a backbone that has it",
            fix="set method.cfg_scale=1, method.top_k=0 and method.top_p=1",
        )


def measure(
    needs: Collection[Need], rollouts: Rollouts, drawn: Groups, logits: Tensor, entropy: Tensor
) -> dict[str, Tensor]:
    """Compute what is needed of entropy, vectors and null divergence, as `Signals` names them.

    Args:
        logits: [B·G, T, V], those of `rollouts.logits`.
        entropy: [B·G, T] of them.

    A forward pass more for the entropy if samples were guided or filtered and `logits` are not; one for the
    null condition, and another one for the condition if `logits` are guided.
    """
    backbone, condition, tokens = rollouts.backbone, drawn.condition, drawn.tokens
    found: dict[str, Tensor] = {}
    if "entropy" in needs:
        found["entropy"] = entropy
        if rollouts.scored != rollouts.options.sampling:
            assert isinstance(backbone, KnowsSampling)
            with mode(backbone.policy, training=False):
                guided = backbone.sampled_logits(condition, tokens, rollouts.options.sampling)
            found["entropy"] = entropy_of(guided)
    if "vectors" in needs:
        found["vectors"] = backbone.tokenizer.codebook()[tokens]
    if "null_divergence" in needs:
        assert isinstance(backbone, KnowsNull)
        conditional = logits if rollouts.plain else eval_logits(backbone, condition, tokens[:, :-1])
        without = eval_logits(backbone, backbone.null(condition), tokens[:, :-1])
        ours, others = conditional.log_softmax(dim=-1), without.log_softmax(dim=-1)
        found["null_divergence"] = (ours.exp() * (ours - others)).sum(dim=-1)
    return {name: part.unflatten(0, drawn.values[0].shape) for name, part in found.items()}


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats, [..., V] → [...]."""
    parts: Tensor = torch.special.entr(logits.softmax(dim=-1))
    return parts.sum(dim=-1)


def entropy_bonus(totals: Tensor, entropy: Tensor, reference: Tensor) -> Tensor:
    """Reward the best of a group for an entropy near the starting model's (STAGE, arXiv:2509.25027).

    b = 1/(1 + (H_ref − H)²) minus its mean over the samples whose reward is the largest of the group; 0 for
    the others. So the sum of rewards over a group stays.

    Args:
        totals: rewards [B, G], summed; NaN where there is none.
        entropy, reference: mean token entropies of the same sequences under policy and start, [B, G].
    """
    best = totals >= totals.nan_to_num(nan=-torch.inf).amax(dim=1, keepdim=True) - TIE
    nearness = 1 / (1 + (reference - entropy).square())
    mean = nearness.where(best, 0.0).sum(dim=1, keepdim=True) / best.sum(dim=1, keepdim=True).clamp(min=1)
    return (nearness - mean).where(best, 0.0)


def count_of(share: float, tokens: int) -> int:
    """⌊share·T⌋, safe from the rounding of a decimal share."""
    return int(share * tokens + 1e-9)


def prefix_mean(values: Tensor) -> Tensor:
    """Mean over the tokens up to each one, [..., T] → [..., T]."""
    return values.cumsum(dim=-1) / torch.arange(1, values.shape[-1] + 1, device=values.device)


def highest(values: Tensor, count: int, allowed: Tensor) -> Tensor:
    """Where the `count` highest of the allowed values are, [..., T] bool; of equal ones the first."""
    order = values.masked_fill(~allowed, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(allowed).scatter(-1, order[..., :count], True) & allowed


def smooth(field: Tensor) -> Tensor:
    """Mean over a cell and those of its left, upper left, upper and upper right neighbours that exist.

    [..., H, W] → [..., H, W]: neighbours that were drawn before the cell.
    """
    height, width = field.shape[-2:]

    def around(grid: Tensor) -> Tensor:
        padded = F.pad(grid, (1, 1, 1, 0))
        above = sum(padded[..., :height, shift : shift + width] for shift in range(3))
        return above + padded[..., 1:, :width] + grid

    return around(field) / around(torch.ones_like(field))


def gradient_magnitude(field: Tensor) -> Tensor:
    """Central differences inside, one-sided ones at the border: [..., H, W], sides of at least 2."""
    down, across = torch.gradient(field, dim=(-2, -1))
    return (down.square() + across.square()).sqrt()


def cosines(vectors: Tensor) -> Tensor:
    """Cosine of each pair of a group at each position, 0 of one with itself: [B, G, T, D] → [B, G, G, T]."""
    unit = F.normalize(vectors, dim=-1)
    pairs = torch.einsum("bitd,bjtd->bijt", unit, unit)
    return pairs * (1 - torch.eye(pairs.shape[1], dtype=pairs.dtype, device=pairs.device))[..., None]
