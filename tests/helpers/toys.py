"""A toy backbone and method: enough to run the driver, small enough to reason about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from alignbench import api, randomness
from alignbench.config.settings import TrainConfig


def train_config(**changes: Any) -> TrainConfig:
    """Default `train.*` with changes."""
    return TrainConfig(**changes)


@dataclass(frozen=True)
class Rank:
    """One process of several, where only its number matters (a `features.Rank`)."""

    rank: int
    world_size: int


class Line(nn.Module):
    """y = w · x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5, -0.5]]))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T + self.bias


@dataclass
class ToyStream:
    """Images whose pixels are functions of the sample number."""

    images_per_step: int

    def batch(self, step: int, rank: int, world_size: int) -> api.Batch:
        share = self.images_per_step // world_size
        start = step * self.images_per_step + rank * share
        index = torch.arange(start, start + share)
        pixels = randomness.uniforms(0, "toy-image", 0, index.tolist(), (3, 1, 2)).astype("float32")
        return api.Batch(index, api.ClassLabels(index % 3), torch.from_numpy(pixels))


class ToyMethod:
    """Regress on noise addressed by sample: exercises everything the driver does."""

    updates: api.Updates = "policy"

    def __init__(self, module: nn.Module, *, poison_at: int | None = None) -> None:
        self.module = module
        self.poison_at = poison_at

    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        assert not torch.is_grad_enabled()
        noise = randomness.uniforms(1, "toy-target", step, batch.index.tolist(), (1,)).astype("float32")
        target = torch.from_numpy(noise)
        if step == self.poison_at:
            target = target * float("nan")
        return api.Collected(
            (batch.images[:, 0, 0], target),
            metrics={"reward": -target.mean()},
            images=len(batch),
            sequences=2 * len(batch),
            reward_calls={"toy": 2 * len(batch)},
        )

    def loss(self, experience: Any) -> api.Loss:
        x, target = experience
        error = (self.module(x) - target).square().mean()
        return api.Loss(error, {"error": error.detach()})
