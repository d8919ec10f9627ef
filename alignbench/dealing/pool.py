"""A pool of numbered units that processes claim one by one, so that fast ones take more. Imports no torch.

What processes know of each other stands on a board: counters and short texts in the store that torch's
process group has anyway (a dictionary where there is one process). The store, and not files in the run
folder: a counter gives the next unit in one message however many processes there are, where files would cost
each of them a listing or many failed creations a unit, on network file systems that hide new files for up to
a minute; each attempt of a launcher has a fresh one, so that no claim of a dead attempt has to be told from a
live one; and nothing is lost with it that was not lost anyway: it lives in the launcher or in the first
process, which holds the folder and scores, and without which a run ends.

No claim is a collective. Nobody has to find out whether a process is dead: once all units are dealt out, who
is free claims again what is being worked on for longer than usual (backup tasks, Dean & Ghemawat, OSDI 2004,
section 3.6). That serves dead and slow processes alike. A unit that is done twice gives the same bytes, so a
wrong guess costs nothing but the work.
"""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

LATE = 1.5
"""A claim is late after so many times the usual time of a unit."""
SOONEST = 1.0
"""Seconds before which none is late."""
UNKNOWN = 600.0
"""Seconds after which it is late where no unit is done yet, so that nobody knows what is usual."""
PAUSE = 0.1
"""Seconds between two looks at the board; longer with many processes, which share the store."""

WAIT: Literal["wait"] = "wait"
DONE: Literal["done"] = "done"


class Blackboard(Protocol):
    """Counters and texts that all processes see; every call is answered at once, or raises."""

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, 0 at first, and return what it is then."""
        ...

    def set(self, key: str, value: str) -> None: ...

    def get(self, keys: Sequence[str]) -> list[str | None]:
        """Return the texts; None for those that nobody has set."""
        ...


class OwnBoard:
    """The board of a process that is alone, or of several simulated ones."""

    def __init__(self) -> None:
        self._counters: dict[str, int] = {}
        self._texts: dict[str, str] = {}

    def add(self, key: str, amount: int) -> int:
        self._counters[key] = self._counters.get(key, 0) + amount
        return self._counters[key]

    def set(self, key: str, value: str) -> None:
        self._texts[key] = value

    def get(self, keys: Sequence[str]) -> list[str | None]:
        return [self._texts.get(key) for key in keys]


class Hold(NamedTuple):
    """What a process is at, as the others read it."""

    unit: int | None
    """None: nothing, or not yet known (`since` > 0)."""
    copy: int
    """0 for the first claim of a unit."""
    since: float
    """Wall time of the claim; clocks that differ only make copies early or late. 0: at nothing."""
    pace: float | None
    """Median seconds of the units that this process did; None before the first one."""


@functools.lru_cache(4096)
def _held(text: str) -> Hold:
    return Hold(*json.loads(text))


@dataclass
class Pool:
    """One process's part in a pool; all processes make theirs with the same name and number of units.

    `take` is called whenever the process is free, `finish` when the result of a unit is where others see it.
    Wall times are handed in: the simulation has its own.
    """

    board: Blackboard
    name: str
    """Start of all its keys on the board; another one for each pool."""
    units: int
    rank: int
    ranks: int
    _mine: Hold = field(default=Hold(None, 0, 0.0, None), init=False)
    _seconds: list[float] = field(default_factory=list, init=False)
    _dealt: bool = field(default=False, init=False)

    def take(self, now: float) -> int | Literal["wait", "done"]:
        """Claim a unit: one that nobody had, or, when all are dealt out, one that is late.

        Returns:
            The number of the unit; `WAIT` while others are at the last ones; `DONE` when all are done.
        """
        if not self._dealt:
            self._show(Hold(None, 0, now, self._mine.pace))  # else nobody might know of it for a moment
            unit = self.board.add(f"{self.name}/dealt", 1) - 1
            if unit < self.units:
                self._show(Hold(unit, 0, now, self._mine.pace))
                return unit
            self._dealt = True
            self._show(Hold(None, 0, 0.0, self._mine.pace))
        return self._take_late(now)

    def finish(self, unit: int, now: float, *, found: bool = False) -> None:
        """Say that a unit's result is kept; `found`: it was there, and says nothing of the usual time."""
        self.board.set(f"{self.name}/done/{unit}", "1")
        if not found:
            self._seconds.append(now - self._mine.since)
        self._show(Hold(None, 0, 0.0, statistics.median(self._seconds) if self._seconds else None))

    def is_done(self, unit: int) -> bool:
        """Whether somebody has finished it: who was slow asks before keeping what nobody needs any more."""
        return self.board.get([f"{self.name}/done/{unit}"]) != [None]

    def _take_late(self, now: float) -> int | Literal["wait", "done"]:
        claims = self._claims()
        paces = [claim.pace for claim in claims if claim.pace is not None]
        patience = max(LATE * statistics.median(paces), SOONEST) if paces else UNKNOWN
        held: dict[int, Hold] = {}
        for claim in claims:
            if claim.unit is not None and (claim.unit not in held or held[claim.unit].copy < claim.copy):
                held[claim.unit] = claim
        done = self.board.get([f"{self.name}/done/{unit}" for unit in held]) if held else []
        open_ = [claim for claim, word in zip(held.values(), done, strict=True) if word is None]
        # One that died between the counter and its claim is waited for, but not for ever: the first process
        # looks for missing results in the end.
        dealing = [c for c in claims if c.unit is None and c.since and now - c.since <= max(patience, 60.0)]
        if not open_ and not dealing:
            return DONE
        for claim in sorted(open_, key=lambda claim: claim.since):
            unit, copy = claim.unit, claim.copy + 1
            assert unit is not None
            if now - claim.since > patience and self.board.add(f"{self.name}/again/{unit}/{copy}", 1) == 1:
                self._show(Hold(unit, copy, now, self._mine.pace))
                return unit
        return WAIT

    def _claims(self) -> list[Hold]:
        texts = self.board.get([f"{self.name}/at/{rank}" for rank in range(self.ranks)])
        return [_held(text) for text in texts if text is not None]

    def _show(self, claim: Hold) -> None:
        self._mine = claim
        self.board.set(f"{self.name}/at/{self.rank}", json.dumps(claim))


def work(pool: Pool, do: Callable[[int], bool]) -> None:
    """Do the units that fall to this process, and return when all are done by somebody.

    Args:
        do: makes and keeps the result of a unit; returns whether it had to, False if the result was there.
    """
    while (unit := pool.take(time.time())) != DONE:
        if unit == WAIT:
            pause(pool.ranks)
        else:
            pool.finish(unit, time.time(), found=not do(unit))


def pause(ranks: int) -> None:
    """Wait a little before looking at the board again."""
    time.sleep(max(PAUSE, ranks / 200))
