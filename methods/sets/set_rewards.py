"""Shared by methods: rewards that credit an image with what it does to a score of all images of a step.

The credits depend on the step through sums over its images, so neither micro-batches nor the number of
processes change them. Until the sums are there a term's values are 0 in every group, and teach nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from alignbench import api
from alignbench.errors import UserError
from alignbench.registry.reward_spec import parse_spec, parse_terms

FEATURES = "features/"
"""Names of features among what is drawn of a group begin with it."""


@runtime_checkable
class SetReward(Protocol):
    """A reward of scope `set`, built; all but `features` are functions of their arguments alone."""

    def features(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] float32, 0 … 1 → [N, D] float64, each row the same in any company; NaN: it failed."""

    def sums(self, features: Tensor) -> Mapping[str, Tensor]:
        """[N, D] → float64 tensors that are added up over all images of a step."""

    def value(self, sums: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Tensor:
        """Score of the whole step, a scalar."""

    def credit(self, features: Tensor, sums: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Tensor:
        """[N, D] features of images in the sums → [N], larger is better; NaN where there is none."""

    def advanced(self, sums: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the state after the step; it is empty at the start, and the same names later on."""


class SetRewards:
    """The set rewards among a method's terms, and what they remember from step to step."""

    def __init__(self, rewards: Mapping[str, object]) -> None:
        self.rewards = {spec: one for spec, one in rewards.items() if isinstance(one, SetReward)}
        self._specs = list(rewards)
        self._states: dict[str, Mapping[str, Tensor]] = {spec: {} for spec in self.rewards}

    def check(self, waits: bool, redraws: int) -> None:
        """Raise UserError if there are some and the method does not await the whole step, or draws again."""
        if not self.rewards or (waits and not redraws):
            return
        first = next(iter(self.rewards))
        if not waits:
            raise UserError(
                f"{first} credits images with what they do to a whole step, which this method does not await",
                fix="choose a reward of scope image: alignbench list rewards",
            )
        raise UserError(
            f"method.redraws draws groups of equal rewards again, but {first} is known only when the whole "
            "step is drawn",
            fix="leave method.redraws at 0, or the reward out",
        )

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Look at images, [N, 3, H, W]: {`features/` and the specification: [N, D]}."""
        return {f"{FEATURES}{spec}": reward.features(images) for spec, reward in self.rewards.items()}

    def features_in(self, drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{specification: [B·G, D]}, from what was drawn of B groups of G."""
        return {spec: drawn[f"{FEATURES}{spec}"].flatten(0, 1) for spec in self.rewards}

    def calls(self, images: int) -> dict[str, int]:
        """{reward card: images looked at}, as `api.Collected.reward_calls` wants it."""
        cards = Counter(parse_spec(spec).name for spec in self.rewards)
        return {card: times * images for card, times in cards.items()}

    def failures(self, features: Mapping[str, Tensor]) -> Counter[str]:
        """Images that could not be looked at, by reward card."""
        found: Counter[str] = Counter()
        for spec, rows in features.items():
            found[parse_spec(spec).name] += int((~looked_at(rows)).sum())
        return found

    def sums(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is to be added up over the step, of rows without failure."""
        found = {}
        for spec, reward in self.rewards.items():
            rows = features[spec]
            for name, value in reward.sums(rows[looked_at(rows)]).items():
                found[_key(spec, name)] = value
        return found

    def credits(self, features: Mapping[str, Tensor], sums: Mapping[str, Any]) -> dict[str, Tensor]:
        """{specification: [N] credits}, NaN where an image has none."""
        found = {}
        for spec, reward in self.rewards.items():
            rows = features[spec]
            good = looked_at(rows)
            values = rows.new_full((len(rows),), torch.nan)
            values[good] = reward.credit(rows[good], _of(spec, sums), self._states[spec])
            found[spec] = values
        return found

    def log(self, sums: Mapping[str, Any]) -> dict[str, Tensor]:
        """{`set/` and what the log calls the reward: score of the whole step}."""
        names = short_names(self._specs)
        return {
            f"set/{names[spec]}": one.value(_of(spec, sums), self._states[spec])
            for spec, one in self.rewards.items()
        }

    def advance(self, sums: Mapping[str, Any]) -> None:
        """Move the states on by a step, if these are its sums."""
        for spec, reward in self.rewards.items():
            if own := _of(spec, sums):
                self._states[spec] = reward.advanced(own, self._states[spec])

    def state(self) -> dict[str, Tensor]:
        """See `training.totals.HasState`."""
        return {
            _key(spec, name): value for spec, kept in self._states.items() for name, value in kept.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take a state up; ValueError: it is of other rewards."""
        self._states = {spec: _of(spec, state) for spec in self.rewards}
        if strange := state.keys() - self.state().keys():
            raise ValueError(f"{min(strange)} is of no reward here")


@dataclass(frozen=True, kw_only=True)
class SetOptions:
    """Options of the methods that have set rewards beside rewards of another kind."""

    set_rewards: str
    redraws: int

    @property
    def set_terms(self) -> dict[str, float]:
        """{specification: weight}."""
        return dict(parse_terms(self.set_rewards)) if self.set_rewards != "none" else {}

    def build_sets(self, reward: Callable[[str], api.Reward], used: bool) -> SetRewards:
        """Build them.

        Raises:
            UserError: nothing is drawn that they could score, one is of another scope, or flat groups are
                to be drawn again.
        """
        if self.set_terms and not used:
            raise UserError(
                "method.set_rewards changes nothing with method.policy_weight=0",
                fix="leave it out, or raise method.policy_weight",
            )
        rewards = {spec: reward(spec) for spec in self.set_terms}
        sets = SetRewards(rewards)
        if others := rewards.keys() - sets.rewards.keys():
            raise UserError(
                f"method.set_rewards: {min(others)} is not of scope set",
                fix="alignbench list rewards says of which scope each is",
            )
        sets.check(waits=True, redraws=self.redraws)
        return sets


def short_names(specs: Sequence[str]) -> dict[str, str]:
    """What the log calls each reward: its card, or the whole specification where a card is used twice."""
    cards = [parse_spec(spec).name for spec in specs]
    pairs = zip(specs, cards, strict=True)
    return {spec: card if cards.count(card) == 1 else spec for spec, card in pairs}


def unsettled(features: Tensor) -> api.Scores:
    """[N, D] → N zeros in the place of the credits, valid where looking did not fail."""
    return api.Scores(features.new_zeros(len(features), dtype=torch.float32), looked_at(features))


def looked_at(features: Tensor) -> Tensor:
    """[N, D] → [N] bool: looking at the image did not fail."""
    return features.isfinite().all(dim=-1)


def _key(spec: str, name: str) -> str:
    return f"{spec}/{name}"


def _of(spec: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of one reward, by their own names."""
    start = _key(spec, "")
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}
