"""The contract's checks find what they are there to find: methods with one fault each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignbench import api, randomness
from alignbench.methods.logits import Experience
from alignbench.methods.ntp import NextToken
from alignbench.registry.lookup import Registry
from alignbench.testing import Case, MethodCheck
from tests.helpers import method_checks as checks


class OtherContext(NextToken):
    """Puts another context in place of the right one."""

    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        collected = super().collect(batch, step)
        assert isinstance(collected.experience, Experience)
        index = tuple(batch.index.tolist())
        context = self._context(collected.experience.targets, step, index)
        return replace(collected, experience=replace(collected.experience, context=context))

    def _context(self, targets: Tensor, step: int, index: tuple[int, ...]) -> Tensor:
        raise NotImplementedError


class OwnGenerator(OtherContext):
    """Noise from a generator of its own: two ranks draw the same numbers, a resumed run draws them again."""

    def __init__(self, config: Any, **parts: Any) -> None:
        super().__init__(config, **parts)
        self.generator = torch.Generator().manual_seed(self.seed)

    def _context(self, targets: Tensor, step: int, index: tuple[int, ...]) -> Tensor:
        prefix = targets[:, :-1]
        noise = torch.randint(0, 128, prefix.shape, generator=self.generator)
        return torch.where(torch.rand(prefix.shape, generator=self.generator) < 0.5, noise, prefix)


class GlobalGenerator(OtherContext):
    def _context(self, targets: Tensor, step: int, index: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(np.random.randint(0, 128, targets[:, 1:].shape))


class PlaceInBatch(OtherContext):
    """Noise addressed by the row of the micro-batch instead of the sample number."""

    def _context(self, targets: Tensor, step: int, index: tuple[int, ...]) -> Tensor:
        noise = randomness.uniforms(self.seed, "noise", step, range(len(index)), targets[:, 1:].shape[1:])
        return (torch.from_numpy(noise) * 128).long()


class SumOverImages(NextToken):
    def loss(self, experience: Any) -> api.Loss:
        loss = super().loss(experience)
        return replace(loss, value=loss.value * len(experience.index))


class KeepsGraph(NextToken):
    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        collected = super().collect(batch, step)
        assert isinstance(collected.experience, Experience)
        with torch.enable_grad():
            logits = self.backbone.logits(batch.condition, collected.experience.context)
        return replace(collected, experience=[collected.experience, logits])

    def loss(self, experience: Any) -> api.Loss:
        return super().loss(experience[0])


class LeavesTrainMode(NextToken):
    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        self.backbone.policy.train()
        return super().collect(batch, step)


class CountsOneByOne(NextToken):
    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        return replace(super().collect(batch, step), images=1)


class TouchesTheTokenizer(NextToken):
    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        next(self.backbone.tokenizer.trainable_decoder().parameters()).mul_(1.001)
        return super().collect(batch, step)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("OwnGenerator", checks.two_ranks_give_what_one_gives),
        ("GlobalGenerator", checks.two_ranks_give_what_one_gives),
        ("GlobalGenerator", checks.repetition_gives_the_same_bits),
        ("GlobalGenerator", checks.collecting_leaves_no_trace),
        ("PlaceInBatch", checks.two_ranks_give_what_one_gives),
        ("PlaceInBatch", checks.micro_batches_change_nothing),
        ("SumOverImages", checks.micro_batches_change_nothing),
        ("KeepsGraph", checks.collecting_leaves_no_trace),
        ("LeavesTrainMode", checks.collecting_leaves_no_trace),
        ("CountsOneByOne", checks.counts_are_right),
        ("TouchesTheTokenizer", checks.only_what_trains_changes),
    ],
)
def test_fault_is_found(fault: str, check: MethodCheck, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check(case_of(fault, tmp_path), tmp_path)


@pytest.mark.parametrize("check", checks.METHOD_CHECKS)
def test_the_same_method_without_a_fault_passes(check: MethodCheck, tmp_path: Path) -> None:
    check(case_of("NextToken", tmp_path), tmp_path)


def case_of(name: str, folder: Path) -> Case:
    """A method of this file under the card it derives from, with half of the context noisy."""
    built_in = Registry.default()
    cards = folder / "cards" / "methods"
    cards.mkdir(parents=True)
    card = built_in.locations["methods"]["ntp"].path.read_text("utf-8")
    target = "alignbench.methods.ntp:NextToken"
    assert target in card
    (cards / "broken.toml").write_text(
        card.replace(target, f"tests.contract.test_the_checks:{name}"), "utf-8"
    )
    registry = Registry([*built_in.roots, ("test", cards.parent)])
    return Case(registry, "broken", assignments=("method.noise=0.5",))
