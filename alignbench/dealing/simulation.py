"""How well a pool fills processes of uneven speed: the real claims, on simulated time. Imports no torch.

`python -m alignbench.dealing.simulation` prints the table of docs/results/dealing.md.
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from alignbench.dealing.pool import DONE, WAIT, OwnBoard, Pool

SPREAD = 0.1
"""Standard deviation of the logarithm of a process's speed, and again of each unit's time: cards of one kind
differ by about a tenth, and so do units."""
POLL = 0.15
"""Units of time between two looks at the board."""
TRIALS = 3
IMAGENET = (50_000, 64, 3, 2)
GENEVAL = (2_212, 32, 1, 2)
"""Images of a set, images of a unit, settings × seeds, models: those of imagenet256-adm and geneval."""


@dataclass(frozen=True)
class Filled:
    """What became of one pool."""

    makespan: float
    """Until all units were done; a unit takes a process of usual speed a time of 1."""
    efficiency: float
    """Mean time that a process was at units whose result was the first, over the makespan."""
    copies: int
    """Units that were claimed again."""


def units_of(job: tuple[int, int, int, int]) -> int:
    """Return how many units a job has, e.g. `IMAGENET`."""
    images, size, sets, models = job
    return -(-images // size) * sets * models


def simulate(units: int, speeds: Sequence[float], *, seed: int) -> Filled:
    """Let processes of given speeds claim the units of a pool.

    Each unit's time is log-normal about 1 / speed with `SPREAD`; process r comes `r` thousandths late.
    """
    numbers = random.Random(f"units {seed}")
    times = [numbers.lognormvariate(0.0, SPREAD) for _ in range(units)]
    board, ranks = OwnBoard(), len(speeds)
    pools = [Pool(board, "simulated", units, rank, ranks) for rank in range(ranks)]
    busy, copies, end = 0.0, 0, 0.0
    events: list[tuple[float, int, int | None]] = [(rank / 1000, rank, None) for rank in range(ranks)]
    claimed, left = dict[int, int](), units
    while left:
        now, rank, unit = heapq.heappop(events)
        if unit is not None:
            if not pools[rank].is_done(unit):
                busy, left, end = busy + times[unit] / speeds[rank], left - 1, now
            pools[rank].finish(unit, now)
        taken = pools[rank].take(now)
        if taken == WAIT:
            heapq.heappush(events, (now + POLL, rank, None))
        elif taken != DONE:
            copies += taken in claimed
            claimed[taken] = rank
            heapq.heappush(events, (now + times[taken] / speeds[rank], rank, taken))
    return Filled(end, busy / ranks / end, copies)


def uneven(ranks: int, *, seed: int) -> list[float]:
    """Return log-normal speeds about 1 with `SPREAD`."""
    numbers = random.Random(f"speeds {seed}")
    return [numbers.lognormvariate(0.0, SPREAD) for _ in range(ranks)]


def table(processes: Sequence[int] = (8, 64, 512)) -> str:
    """The committed table: means of `TRIALS` draws of speeds and times."""
    lines = [
        "| job | units | processes | efficiency | claimed again | one 10 times slower: time |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    for title, job in (("ImageNet", IMAGENET), ("GenEval", GENEVAL)):
        for ranks in processes:
            usual, slow = [], []
            for seed in range(TRIALS):
                speeds = uneven(ranks, seed=seed)
                usual.append(simulate(units_of(job), speeds, seed=seed))
                slow.append(simulate(units_of(job), [speeds[0] / 10, *speeds[1:]], seed=seed))
            efficiency = statistics.mean(one.efficiency for one in usual)
            copies = statistics.mean(one.copies for one in usual)
            longer = statistics.mean(b.makespan / a.makespan - 1 for a, b in zip(usual, slow, strict=True))
            lines.append(
                f"| {title} | {units_of(job):,} | {ranks} | {efficiency:.1%} | {copies:.1f} | {longer:+.1%} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())  # noqa: T201
