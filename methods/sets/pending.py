"""Groups that cannot be compared before the whole step is drawn, for rewards of scope `set`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignbench.methods.groups import GroupAdvantages
from alignbench.methods.rollouts import Groups, Rollouts, short_names


class Terms(NamedTuple):
    """What is compared within groups: scores [B, G], which of them are valid, and their weights."""

    values: Sequence[Tensor]
    valid: Sequence[Tensor]
    weights: Sequence[float]

    def plus(self, values: Tensor, weight: float) -> Terms:
        """Return these and one more, valid everywhere."""
        everywhere = torch.ones_like(values, dtype=torch.bool)
        return Terms([*self.values, values], [*self.valid, everywhere], [*self.weights, weight])


@dataclass(frozen=True)
class Pending:
    """Groups whose set rewards wait for the sums of the step."""

    rollouts: Rollouts
    drawn: Groups
    more: Terms
    """Terms of the method's own, behind those of the rewards."""

    @classmethod
    def of(cls, rollouts: Rollouts, drawn: Groups, terms: Terms) -> Pending | None:
        """Return what waits for the whole step; None: nothing does. `terms` begin with the rewards'."""
        own = len(drawn.values)
        more = Terms(terms.values[own:], terms.valid[own:], terms.weights[own:])
        return cls(rollouts, drawn, more) if rollouts.sets.rewards else None

    @property
    def sums(self) -> dict[str, Tensor]:
        """What to add up over the step."""
        return self.rollouts.sets.sums(self.drawn.features)

    def settled(
        self, sums: Mapping[str, Any], compare: Callable[..., GroupAdvantages]
    ) -> tuple[GroupAdvantages, dict[str, Tensor]]:
        """Return what `compare` makes of all terms, with the credits in their places, and the log of them."""
        rollouts = self.rollouts
        credits = rollouts.sets.credits(self.drawn.features, sums)
        values, valid = list(self.drawn.values), list(self.drawn.valid)
        for place, spec in enumerate(rollouts.rewards):
            if spec in credits:
                values[place] = credits[spec].view_as(values[place])
                valid[place] = values[place].isfinite()
        drawn = replace(self.drawn, values=values, valid=valid)
        compared = compare(
            [*values, *self.more.values], [*valid, *self.more.valid], [*rollouts.weights, *self.more.weights]
        )
        names = dict(zip(rollouts.rewards, short_names(list(rollouts.rewards)), strict=True))
        steps = {f"set/{names[spec]}": value for spec, value in rollouts.sets.values(sums).items()}
        return compared, rollouts.metrics(drawn) | compared.shares | steps
