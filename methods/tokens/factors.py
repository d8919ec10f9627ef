"""The factors that token weights are made of; docs/grpo-variants.md has their formulas side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignbench.methods.tokens.signals import (
    Need,
    Signals,
    Weights,
    cosines,
    count_of,
    gradient_magnitude,
    highest,
    prefix_mean,
    smooth,
)

WINDOW = (0.1, 0.8)
"""GCPO looks for structure behind the first tenth, in the next eight."""


class Factor:
    """The fields of a factor are what stands in its parentheses, in this order or as name=value."""

    selects: ClassVar[bool] = False
    """Whether its weights are 1 and 0, of policy term and divergence alike."""

    @property
    def needs(self) -> set[Need]:
        """What it reads beside log-probabilities and advantages."""
        return set()

    def chosen(self, tokens: int) -> int:
        """How many of the tokens of a sequence count."""
        return tokens

    def policy(self, signals: Signals) -> Tensor:
        """What the advantage is multiplied by, [B, G, T]."""
        raise NotImplementedError

    def __call__(self, signals: Signals) -> Weights:
        policy = self.policy(signals)
        others = policy if self.selects else torch.ones_like(policy)
        return Weights(policy, others, others)


@dataclass(frozen=True)
class Critical(Factor):
    """GCPO's three criteria (arXiv:2509.22485), ⌊share·T⌋ tokens of each sequence by each of them.

    initial: the first ones. structure: the largest steps in the map of entropies, smoothed over a token and
    its causal neighbours. diversity: where the codes of the group differ most (mean cosine of all pairs),
    among those that are not chosen yet.

    Deviation: on Janus-Pro the released program compares codes as the policy embeds them; here always as the
    decoder reads them.
    """

    selects = True
    initial: float = 0.1
    structure: float = 0.1
    diversity: float = 0.1

    def __post_init__(self) -> None:
        _check_shares(self.initial, self.structure, self.diversity)
        if self.structure + max(self.initial, WINDOW[0]) > sum(WINDOW) + 1e-9:
            raise ValueError("structure is looked for in eight tenths of the tokens, initial ones apart")

    @property
    def needs(self) -> set[Need]:
        asked: list[tuple[Need, float]] = [("entropy", self.structure), ("vectors", self.diversity)]
        return {name for name, share in asked if share}

    def chosen(self, tokens: int) -> int:
        return sum(count_of(share, tokens) for share in (self.initial, self.structure, self.diversity))

    def policy(self, signals: Signals) -> Tensor:
        tokens = signals.logprobs.shape[-1]
        place = torch.arange(tokens, device=signals.logprobs.device).expand(signals.logprobs.shape)
        chosen = place < count_of(self.initial, tokens)
        if self.structure:
            assert signals.entropy is not None
            first, count = (count_of(share, tokens) for share in WINDOW)
            free = (place >= first) & (place < first + count) & ~chosen
            steps = gradient_magnitude(smooth(signals.entropy.unflatten(-1, signals.grid))).flatten(-2)
            chosen = chosen | highest(steps, count_of(self.structure, tokens), free)
        if self.diversity:
            assert signals.vectors is not None
            alike = cosines(signals.vectors).sum(dim=(1, 2))[:, None].expand(chosen.shape)
            chosen = chosen | highest(-alike, count_of(self.diversity, tokens), ~chosen)
        return chosen.to(signals.logprobs.dtype)


@dataclass(frozen=True)
class Prefix(Factor):
    """The first ⌊share·T⌋ tokens alone."""

    selects = True
    share: float = 0.5

    def __post_init__(self) -> None:
        _check_shares(self.share)

    def chosen(self, tokens: int) -> int:
        return count_of(self.share, tokens)

    def policy(self, signals: Signals) -> Tensor:
        weights = torch.zeros_like(signals.logprobs)
        weights[..., : self.chosen(weights.shape[-1])] = 1
        return weights


@dataclass(frozen=True)
class Entropy(Prefix):
    """The ⌊share·T⌋ tokens of each sequence that were drawn from the least certain distributions."""

    share: float = 0.2
    needs: ClassVar[set[Need]] = {"entropy"}

    def policy(self, signals: Signals) -> Tensor:
        assert signals.entropy is not None
        count, anywhere = self.chosen(signals.entropy.shape[-1]), torch.ones_like(signals.entropy).bool()
        return highest(signals.entropy, count, anywhere).to(signals.logprobs.dtype)


@dataclass(frozen=True)
class Divergence(Factor):
    """GCPO's dynamic weight: the mean over the tokens up to this one of exp(clip(log π − log π_ref, ±clip)).

    Summaries of the paper print it without exp: 0 everywhere at the start, so that nothing would ever train.
    The released program has exp, and leaves the weight in the graph (`attached`): there early tokens get
    several times the gradient, and tokens that are not selected train, too.
    """

    needs: ClassVar[set[Need]] = {"reference"}
    clip: float = 0.5
    gradient: str = "detached"

    def __post_init__(self) -> None:
        if self.clip < 0:
            raise ValueError(f"clip is {self.clip:g}, below 0")
        if self.gradient not in ("detached", "attached"):
            raise ValueError(f"gradient is {self.gradient!r}, not detached or attached")

    def policy(self, signals: Signals) -> Tensor:
        assert signals.reference is not None
        now = signals.current if self.gradient == "attached" else None
        apart = (signals.logprobs if now is None else now) - signals.reference
        return prefix_mean(apart.clamp(-self.clip, self.clip).exp())


@dataclass(frozen=True)
class Contrast(Factor):
    """Rank of KL(π(· | c) ‖ π(· | null)) in its sequence, over T − 1: 0 the lowest, 1 the highest.

    Guidance-contrastive weights (arXiv:2605.29198); no code is known, what ranks are divided by is ours.
    """

    needs: ClassVar[set[Need]] = {"null_divergence"}

    def policy(self, signals: Signals) -> Tensor:
        assert signals.null_divergence is not None
        order = signals.null_divergence.argsort(dim=-1, stable=True)
        return order.argsort(dim=-1).to(signals.logprobs.dtype) / max(order.shape[-1] - 1, 1)


@dataclass(frozen=True)
class Opposite(Factor):
    """STAGE's weights (arXiv:2509.25027): less for tokens that samples of the other sign have, too.

    S: mean cosine with the codes of those samples of the group whose advantage has not the same sign (0 is
    on both sides). The advantage is multiplied by clip((1 − S)/2, 0, 1), the divergence by
    0.5 + 0.5·clip(S + 1, 0, 1): 1 for every S ≥ 0. Samples without a valid score are left out.
    """

    needs: ClassVar[set[Need]] = {"vectors"}

    def __call__(self, signals: Signals) -> Weights:
        assert signals.vectors is not None
        signs = signals.advantages.sign()
        others = (signs[:, :, None] * signs[:, None] <= 0) & signals.valid[:, None]
        total = (cosines(signals.vectors) * others[..., None]).sum(dim=2)
        similarity = (total / others.sum(dim=2).clamp(min=1)[..., None]).to(signals.logprobs.dtype)
        policy, divergence = ((1 - similarity) / 2).clamp(0, 1), 0.5 + 0.5 * (similarity + 1).clamp(0, 1)
        return Weights(policy, divergence, torch.ones_like(policy))


FACTORS: dict[str, type[Factor]] = {
    kind.__name__.lower(): kind for kind in (Critical, Prefix, Entropy, Divergence, Contrast, Opposite)
}


def _check_shares(*shares: float) -> None:
    if min(shares) < 0 or sum(shares) > 1 + 1e-9:
        raise ValueError("shares of the tokens lie between 0 and 1, together at most 1")
