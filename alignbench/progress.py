"""What a run says while it works: a live bar on a terminal, plain lines otherwise.

Everything goes to standard error; standard output is for results.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

from alignbench.text import visible

PLAIN_INTERVAL = 10.0
"""Seconds between two plain lines of one stage."""


class Stage:
    """One piece of work with a known number of units."""

    def __init__(self, progress: Progress, name: str, total: int, done: int) -> None:
        self._progress, self._name, self._total = progress, name, total
        self._done = self._first = done
        self._started = self._said = time.monotonic()
        self._task = (
            progress.bar.add_task(name, total=total, completed=done, note="") if progress.bar else None
        )

    def say(self, text: str) -> None:
        self._progress.say(text)

    def advance(self, count: int = 1, numbers: Mapping[str, float] | None = None) -> None:
        """Report `count` more units, with a few numbers worth seeing."""
        self._done += count
        note = " · ".join(f"{name} {value:.4g}" for name, value in (numbers or {}).items())
        if self._progress.bar and self._task is not None:
            self._progress.bar.update(self._task, completed=self._done, note=note)
            return
        now = time.monotonic()
        if now - self._said >= PLAIN_INTERVAL or self._done == self._total:
            self._said = now
            per_unit = (now - self._started) / max(self._done - self._first, 1)
            left = per_unit * (self._total - self._done)
            parts = [f"{self._name} {self._done}/{self._total}", note, f"{per_unit:.2g} s each"]
            if self._done < self._total:
                parts.append(f"{left:.0f} s left")
            self._progress.say(" · ".join(filter(None, parts)))


class Progress:
    """Where a run's messages go: to a console, by default standard error, or nowhere if quiet."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=quiet)
        self.quiet = quiet
        self.bar: RichProgress | None = None

    def say(self, text: str) -> None:
        self.console.print(visible(text), highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, name: str, total: int, *, done: int = 0) -> Iterator[Stage]:
        """Open a piece of work of `total` units, `done` of them finished earlier."""
        if not self.console.is_terminal or self.quiet:
            yield Stage(self, name, total, done)
            return
        with RichProgress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            # On a narrow terminal the bar gives way, then the numbers go to a second line: nothing is cut.
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", table_column=Column(overflow="fold")),
            console=self.console,
            expand=True,
        ) as self.bar:
            try:
                yield Stage(self, name, total, done)
            finally:
                self.bar.refresh()
        self.bar = None
