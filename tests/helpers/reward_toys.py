"""Reward objects small enough to reason about, and requests for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignbench import api
from alignbench.registry.lookup import Registry
from alignbench.rewards.requests import FromReference

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
    name: str = "toy",
    direction: str = "higher",
    differentiable: str = "true",
    scope: str = "image",
    more: str = "",
) -> Registry:
    """The built-in cards and one for a class of this file."""
    place = folder / "rewards"
    place.mkdir(parents=True, exist_ok=True)
    text = CARD.format(target=target, direction=direction, differentiable=differentiable, scope=scope)
    (place / f"{name}.toml").write_text(text + more)
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
        values = request.images.mean(dim=(1, 2, 3))
        return api.Scores(values, torch.ones(len(values), dtype=torch.bool))


class Reader(Brightness):
    """Length of the text."""

    def score(self, request: api.ScoreRequest) -> api.Scores:
        self.asked.append(request)
        values = torch.tensor([float(len(text)) for text in request.texts])
        return api.Scores(values, torch.ones(len(values), dtype=torch.bool))


class Gap(FromReference):
    """Largest difference."""

    def __init__(self, device: torch.device) -> None:
        self.moves: list[str] = []

    def to(self, device: torch.device) -> None:
        self.moves.append(str(device))

    def prepare(self, reference: Tensor) -> Tensor:
        return reference

    def distance(self, images: Tensor, prepared: Tensor, *, repeats: int) -> Tensor:
        difference = (images - prepared.repeat_interleave(repeats, dim=0)).abs()
        return difference.flatten(start_dim=1).amax(dim=1)


@dataclass
class Moody:
    """Scores 1, 2, 3, … and fails where it is told to."""

    failed: list[int] = field(default_factory=list)
    nan: list[int] = field(default_factory=list)

    def score(self, request: api.ScoreRequest) -> api.Scores:
        values = request.group.float() + 1
        values[torch.isin(request.group, torch.tensor(self.nan, dtype=torch.int64))] = float("nan")
        valid = ~torch.isin(request.group, torch.tensor(self.failed, dtype=torch.int64))
        return api.Scores(values, valid)


def moody(device: torch.device) -> Moody:
    return Moody(failed=[1], nan=[3])
