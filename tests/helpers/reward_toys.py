"""Reward objects small enough to reason about, and requests for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignbench import api
from alignbench.registry.lookup import Registry
from alignbench.rewards.pixel import PixelDistance
from alignbench.rewards.requests import all_valid

BUILT_IN = Path(__file__).parents[2] / "registry"

CARD = """\
target = "tests.helpers.reward_toys:{target}"
title = "{target}"
summary = "A toy."
licence = "MIT"
direction = "{direction}"
differentiable = {differentiable}
scope = "{scope}"
"""


def registry(
    folder: Path,
    target: str,
    *,
    direction: str = "higher",
    differentiable: str = "true",
    scope: str = "image",
    more: str = "",
) -> Registry:
    """The built-in cards and one for a class of this file."""
    place = folder / "rewards"
    place.mkdir(parents=True, exist_ok=True)
    text = CARD.format(target=target, direction=direction, differentiable=differentiable, scope=scope)
    (place / "toy.toml").write_text(text + more)
    return Registry([("built-in", BUILT_IN), ("test", folder)])


def request(count: int = 5, side: int = 8, *, seed: int = 0, **changes: Any) -> api.ScoreRequest:
    """Images with labels 0, 1, 2, …, each a group of its own."""
    numbers = torch.Generator().manual_seed(seed)
    values: dict[str, Any] = {
        "images": torch.rand(count, 3, side, side, generator=numbers),
        "group": torch.arange(count),
        "labels": torch.arange(count) % 10,
        **changes,
    }
    return api.ScoreRequest(**values)


class Brightness:
    """Mean of the pixels; remembers what it was asked."""

    def __init__(self, device: torch.device) -> None:
        self.asked: list[api.ScoreRequest] = []

    def score(self, request: api.ScoreRequest) -> api.Scores:
        self.asked.append(request)
        return all_valid(self.values(request))

    def values(self, request: api.ScoreRequest) -> Tensor:
        return request.images.mean(dim=(1, 2, 3))


class Reader(Brightness):
    """Length of the text."""

    def values(self, request: api.ScoreRequest) -> Tensor:
        return torch.tensor([float(len(text)) for text in request.texts])


class Gap(PixelDistance):
    """Remembers where it was moved."""

    def __init__(self, device: torch.device) -> None:
        super().__init__("l1")
        self.moves: list[str] = []

    def to(self, device: torch.device) -> None:
        self.moves.append(str(device))


class Moody:
    """Scores 1, 2, 3, … and fails where it is told to."""

    def __init__(self, failed: Sequence[int], nan: Sequence[int] = ()) -> None:
        self.failed, self.nan = torch.tensor(failed), torch.tensor(nan, dtype=torch.int64)

    def score(self, request: api.ScoreRequest) -> api.Scores:
        values = (request.group + 1.0).masked_fill(torch.isin(request.group, self.nan), torch.nan)
        return api.Scores(values, ~torch.isin(request.group, self.failed))


def moody(device: torch.device) -> Moody:
    return Moody(failed=[1], nan=[3])
