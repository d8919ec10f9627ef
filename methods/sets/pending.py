"""Groups that cannot be compared before the whole step is drawn, for rewards of scope `set`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignbench.methods.groups import GroupAdvantages
from alignbench.methods.image_rewards import described
from alignbench.methods.sets.set_rewards import SetRewards, short_names, unsettled


class Terms(NamedTuple):
    """What is compared within groups: scores [B, G], which of them are valid, and their weights."""

    values: Sequence[Tensor]
    valid: Sequence[Tensor]
    weights: Sequence[float]

    def plus(self, values: Tensor, weight: float, valid: Tensor | None = None) -> Terms:
        """Return these and one more, valid everywhere unless said otherwise."""
        mask = torch.ones_like(values, dtype=torch.bool) if valid is None else valid
        return Terms([*self.values, values], [*self.valid, mask], [*self.weights, weight])


@dataclass(frozen=True)
class Pending:
    """Groups whose set rewards wait for the sums of the step."""

    sets: SetRewards
    features: Mapping[str, Tensor]
    """{specification of a set reward: [B·G, D]}."""
    terms: Terms
    """Whose values are 0 where credits belong."""
    places: Sequence[str]
    """Of each of the first terms: the specification of its reward, if it has one."""

    @classmethod
    def behind(
        cls, scores: Tensor, sets: SetRewards, features: Mapping[str, Tensor], weights: Mapping[str, float]
    ) -> Pending:
        """Of a method whose scores [B, G] are one term, before those of its set rewards."""
        terms = Terms([], [], []).plus(scores, 1.0)
        for spec, rows in features.items():
            unknown = unsettled(rows)
            terms = terms.plus(unknown.values.view_as(scores), weights[spec], unknown.valid.view_as(scores))
        return cls(sets, features, terms, ["", *features])

    @property
    def sums(self) -> dict[str, Tensor]:
        """What to add up over the step."""
        return self.sets.sums(self.features)

    def settled(
        self,
        sums: Mapping[str, Any],
        compare: Callable[..., GroupAdvantages],
        describe: Callable[[Terms], Mapping[str, Tensor]] | None = None,
    ) -> tuple[GroupAdvantages, dict[str, Tensor]]:
        """Return what `compare` makes of the terms with the credits in their places, and the log of them.

        `describe` says what the log has of the scores, else those of the set rewards alone.
        """
        credits = self.sets.credits(self.features, sums)
        values, valid = list(self.terms.values), list(self.terms.valid)
        for place, spec in enumerate(self.places):
            if spec in credits:
                values[place] = credits[spec].view_as(values[place])
                valid[place] = values[place].isfinite()
        terms = Terms(values, valid, self.terms.weights)
        compared = compare(*terms)
        log = describe(terms) if describe else self._described(terms)
        return compared, {**log, **compared.shares, **self.sets.log(sums)}

    def _described(self, terms: Terms) -> dict[str, Tensor]:
        names, found = short_names(list(self.features)), dict[str, Tensor]()
        for spec, values, valid in zip(self.places, terms.values, terms.valid, strict=True):
            if spec in names:
                found |= described(names[spec], values, valid)
        return found
