"""Methods with one fault each, for the checks to find."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignbench import api
from alignbench.methods.ntp import Experience, NextToken


class OwnGenerator(NextToken):
    """Noise from a generator of its own: two ranks draw the same numbers, a resumed run draws them again."""

    def __init__(self, config: Any, **parts: Any) -> None:
        super().__init__(config, **parts)
        self.generator = torch.Generator().manual_seed(self.seed)

    def _context(self, targets: Tensor, step: int, index: tuple[int, ...]) -> Tensor:
        prefix = targets[:, :-1]
        noise = torch.randint(0, 128, prefix.shape, generator=self.generator)
        return torch.where(torch.rand(prefix.shape, generator=self.generator) < 0.5, noise, prefix)


class GlobalGenerator(NextToken):
    """Noise from numpy's global generator."""

    def _context(self, targets: Tensor, step: int, index: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(np.random.randint(0, 128, targets[:, 1:].shape))


class PlaceInBatch(NextToken):
    """Noise addressed by the row of the micro-batch instead of the sample number."""

    def _context(self, targets: Tensor, step: int, index: tuple[int, ...]) -> Tensor:
        return super()._context(targets, step, tuple(range(len(index))))


class SumOverImages(NextToken):
    """A loss that is a sum over images instead of their mean."""

    def loss(self, experience: object) -> api.Loss:
        assert isinstance(experience, Experience)
        loss = super().loss(experience)
        return replace(loss, value=loss.value * len(experience.index))


class KeepsGraph(NextToken):
    """Experience with a graph."""

    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        collected = super().collect(batch, step)
        assert isinstance(collected.experience, Experience)
        with torch.enable_grad():
            logits = self.backbone.logits(batch.condition, collected.experience.context)
        return replace(collected, experience=[collected.experience, logits])

    def loss(self, experience: Any) -> api.Loss:
        return super().loss(experience[0])


class LeavesTrainMode(NextToken):
    """A policy left in train mode."""

    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        self.backbone.policy.train()
        return super().collect(batch, step)


class CountsOneByOne(NextToken):
    """One image a micro-batch, whatever its size."""

    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        return replace(super().collect(batch, step), images=1)


class TouchesTheTokenizer(NextToken):
    """Codes that drift with every step."""

    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        next(self.backbone.tokenizer.trainable_decoder().parameters()).mul_(1.001)
        return super().collect(batch, step)
