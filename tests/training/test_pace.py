"""Whose time is whose, and when a rank is named."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from alignbench.training import pace
from alignbench.training.pace import STEPS, Pace


def made(said: list[str], **own: Any) -> Pace:
    ranks = {"rank": 1, "world_size": 3, "waited": 0.0, "device": torch.device("cpu"), "is_main": True}
    parallel = SimpleNamespace(**{**ranks, **own}, host_of=lambda rank: f"node-{rank}")
    return Pace(cast("Any", parallel), said.append)


def test_waiting_for_others_is_not_a_rank_s_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 109.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    one = made([])
    one.begin()
    one._parallel.waited += 7.0
    numbers = one.own()
    busy = [numbers[pace._key("busy", rank)] for rank in range(3)]
    assert busy == [0.0, 2.0, 0.0] and numbers[pace._key("memory", 1)] > 0


def test_a_rank_that_is_slow_over_several_steps_is_named_once() -> None:
    said: list[str] = []
    one = made(said)

    def steps(busy: tuple[float, ...]) -> dict[str, Any]:
        for _ in range(STEPS):
            summed = {pace._key("busy", rank): value for rank, value in enumerate(busy)}
            summed |= {pace._key("memory", rank): 1.0 + rank for rank in range(3)}
            line = one.take(summed := {**summed, "loss": 1.0})
            assert summed == {"loss": 1.0}
        return line

    line = steps((1.0, 1.0, 1.6))  # 1.6 is 1.33 times the mean
    assert line == {"busy_max": 1.6, "busy_mean": 1.2, "slowest": 2, "peak_memory_gib": [1.0, 2.0, 3.0]}
    steps((0.001, 0.001, 0.1))
    assert not said, "nothing that anybody would notice"
    steps((1.0, 1.0, 4.0))
    steps((1.0, 1.0, 4.0))
    assert said == ["process 2 on node-2 is slow: 4.00 s of its own a step, the mean is 2.00 s"]
    steps((1.0, 1.0, 1.0))
    steps((1.0, 1.0, 4.0))
    assert len(said) == 2


def test_one_process_has_nobody_to_be_compared_with() -> None:
    one = made([], rank=0, world_size=1)
    one.begin()
    assert one.take(one.own()) == {} and len(one.memory_gib) == 1
