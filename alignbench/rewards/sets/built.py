"""A reward of scope `set` as methods use it: batches, failures, transforms, direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from alignbench import api
from alignbench.errors import UserError, failure_of
from alignbench.registry.reward_spec import Resolved
from alignbench.rewards import requests, transforms


class RealImages(Protocol):
    """The images that are to be resembled."""

    @property
    def digest(self) -> str:
        """Of their content."""
        ...

    def __iter__(self) -> Iterator[Tensor]:
        """Pieces [n, 3, H, W] float32, 0 black and 1 white."""


@dataclass(frozen=True)
class BuiltSet:
    """See `methods.sets.set_rewards.SetReward`, whose calls these are."""

    resolved: Resolved
    raw: Any
    """Of the card's target."""
    look: Callable[[Tensor], Tensor | None]
    """Features of one batch, wherever they are computed; None: that failed."""
    width: int = 0
    """D, once it is known."""

    def prepared(self, side: int, real: RealImages | None) -> BuiltSet:
        """Look at one grey image, and give the reward what it needs of real ones.

        Raises:
            UserError: weights, a server or moments of real images are missing or do not fit.
            RunFailed: the features are none.
        """
        with failure_of(self._who):
            found = self.look(torch.full((1, 3, side, side), 0.5))
            if found is None:
                raise ValueError("its server gives no features")
            requests.check_features(found, 1)
            built = BuiltSet(self.resolved, self.raw, self.look, found.shape[1])
            self.raw.prepare(built.features, built.width, real)
        return built

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] float32, 0 … 1 → [N, D] float64 on their device; NaN where looking failed.

        Raises:
            ValueError: images of another form or range.
            RunFailed: the reward fails, or returns something else than a row for each image.
        """
        requests.check_images(self.resolved.name, "images", images)
        pieces = [images.new_empty((0, self.width), dtype=torch.float64)]
        for batch in images.split(int(self.resolved.common["batch"])):
            with failure_of(self._who):
                found = self.look(batch)
                if found is None:
                    found = batch.new_full((len(batch), self.width), torch.nan)
                requests.check_features(found, len(batch), self.width)
            pieces.append(found.to(images.device).double())
        return torch.cat(pieces)

    def sums(self, features: Tensor) -> Mapping[str, Tensor]:
        with failure_of(self._who):
            found: Mapping[str, Tensor] = self.raw.sums(features)
        return found

    def value(self, sums: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Tensor:
        """Score of the whole set, a scalar; not transformed, as the card's direction says."""
        with failure_of(self._who):
            found: Tensor = self.raw.value(sums, state)
        return found

    def credit(self, features: Tensor, sums: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Tensor:
        """[N, D] → [N], transformed, larger is better; NaN where there is none."""
        with failure_of(self._who):
            values = self.raw.credit(features, sums, state)
            requests.check_values(values, len(features))
        values = transforms.apply(self.resolved.spec.transforms, values)
        values = -values if self.resolved.card.direction == "lower" else values
        return values.where(values.isfinite(), torch.nan)

    def advanced(self, sums: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        with failure_of(self._who):
            found: Mapping[str, Tensor] = self.raw.advanced(sums, state)
        return found

    def score(self, request: api.ScoreRequest) -> api.Scores:
        """Refuse, whatever the request: there is no score of an image by itself; raises UserError."""
        raise UserError(
            f"reward {self.resolved.name!r} credits images with what they do to all images of a step; it has "
            "no score of one image, which is asked for here",
            fix="use it in method.rewards of ar-grpo or method.set_rewards of vapi, or choose a reward of "
            "scope image: alignbench list rewards",
        )

    @property
    def _who(self) -> str:
        return f"reward {self.resolved.name!r}"
