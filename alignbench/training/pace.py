"""Which rank keeps the others waiting, and what memory each needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from alignbench.training.parallel import Parallel
from alignbench.training.totals import peak_memory_gib

SLOW = 1.5
"""Times the mean, from which a rank is named."""
LEAST_S = 0.1
"""Seconds a step that the others must lose by it."""
STEPS = 10
"""Over which that is looked at."""


class Pace:
    """Compares the time that ranks need for their own share of a step, without what they wait for others.

    Args:
        say: told which rank is slow, once until another one is or none.
    """

    def __init__(self, parallel: Parallel, say: Callable[[str], None]) -> None:
        self._parallel, self._say = parallel, say
        self._began = self._waited = 0.0
        self._window: list[list[float]] = []
        self._named: int | None = None
        self.memory_gib: list[float] = []
        """Peak of each rank so far."""

    def begin(self) -> None:
        """A step begins."""
        self._began, self._waited = time.monotonic(), self._parallel.waited

    def own(self) -> dict[str, float]:
        """What this rank brings to the sum over ranks at the end of a step."""
        parallel = self._parallel
        busy = time.monotonic() - self._began - (parallel.waited - self._waited)
        numbers = {"busy": busy, "memory": peak_memory_gib(parallel.device)}
        ranks = range(parallel.world_size)
        return {_key(n, rank): v * (rank == parallel.rank) for n, v in numbers.items() for rank in ranks}

    def take(self, summed: dict[str, float]) -> dict[str, Any]:
        """Take all ranks' numbers out of the sum; return what `timing.jsonl` says of them."""
        ranks = range(self._parallel.world_size)
        busy = [summed.pop(_key("busy", rank)) for rank in ranks]
        self.memory_gib = [summed.pop(_key("memory", rank)) for rank in ranks]
        if len(busy) == 1:
            return {}
        self._window.append(busy)
        if len(self._window) == STEPS:
            self._look([sum(times) / STEPS for times in zip(*self._window, strict=True)])
            self._window = []
        return {
            "busy_max": round(max(busy), 4),
            "busy_mean": round(sum(busy) / len(busy), 4),
            "slowest": busy.index(max(busy)),
            "peak_memory_gib": [round(size, 3) for size in self.memory_gib],
        }

    def _look(self, busy: list[float]) -> None:
        slowest, mean = max(busy), sum(busy) / len(busy)
        if slowest <= SLOW * mean or slowest - mean < LEAST_S:
            self._named = None
            return
        rank = busy.index(slowest)
        if self._parallel.is_main and rank != self._named:
            where = f"process {rank} on {self._parallel.host_of(rank)}"
            self._say(f"{where} is slow: {slowest:.2f} s of its own a step, the mean is {mean:.2f} s")
        self._named = rank


def _key(name: str, rank: int) -> str:
    return f"{name} of rank {rank}"
