"""What a run says while it works: a live bar on a terminal, plain lines otherwise, a file for others.

Everything goes to standard error; standard output is for results. While a run works, each of its processes
keeps `.progress/rank-N.json` in the run folder, from which `alignbench watch` draws; an ended run has none.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

from alignbench.distributed import rank
from alignbench.text import visible

PROGRESS = ".progress"
"""In the run folder, while the run works; what a killed one leaves says how far it was."""
WRITE_INTERVAL = 1.0
"""Seconds between two writings of a process's file, but where a stage begins or ends."""
PLAIN_INTERVAL = 10.0
"""Seconds between two plain lines of one stage."""


def process_state(pid: int) -> tuple[str, str]:
    """Return the state of a process of this machine and a mark of its birth, of which a later process of that
    number has another; two empty texts: there is none, or this system has no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return "", ""
    return fields[0].decode(), fields[19].decode()


def machine() -> dict[str, str]:
    """Name the machine, and the list of processes in which this one's number has a meaning."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return {"host": platform.node(), "namespace": namespace}


class Heartbeat:
    """This process's file in a run folder: who it is, what it does, how far it is.

    Not synced to the disk, for it is worthless after a power cut. A run never fails for it.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._path, self._say = folder / PROGRESS / f"rank-{rank()}.json", say
        self._failed, self._due = False, 0.0
        who = {"rank": rank(), **machine(), "pid": os.getpid(), "born": process_state(os.getpid())[1]}
        self._content: dict[str, Any] = {**who, "doing": "start", "stages": {}}

    def start(self) -> None:
        """On the first process: take away what a killed run left. The others come later, with a stage."""
        if rank() == 0:
            with contextlib.suppress(OSError):
                for left in self._path.parent.iterdir():
                    left.unlink()
            self.write()

    def doing(self, what: str) -> None:
        self._content["doing"] = what
        self.write()

    def begin(self, stage: str, done: int, total: int) -> None:
        """Note a stage that begins, `done` of its units finished earlier."""
        now = time.time()
        self._content["stages"][stage] = {
            "done": done, "first": done, "total": total, "started": now, "updated": now
        }  # fmt: skip
        self.doing(stage)

    def advance(self, stage: str, done: int) -> None:
        """Note how far a stage is; the file follows at most once in `WRITE_INTERVAL`."""
        self._content["stages"][stage] |= {"done": done, "updated": time.time()}
        if time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        self._due = time.monotonic() + WRITE_INTERVAL
        temporary = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(exist_ok=True)
            temporary.write_text(json.dumps({**self._content, "updated": time.time()}), encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            if not self._failed:
                self._say(f"`alignbench watch` cannot follow: {self._path}: {(error.strerror or '').lower()}")
            self._failed = True

    def end(self) -> None:
        """Remove the file, and the folder with the last of them."""
        with contextlib.suppress(OSError):
            self._path.unlink()
            self._path.parent.rmdir()


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
        if self._progress.heartbeat:
            self._progress.heartbeat.advance(self._name, self._done)
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
        self.heartbeat: Heartbeat | None = None

    @contextlib.contextmanager
    def followed_in(self, folder: Path) -> Iterator[None]:
        """Keep this process's file in a run folder for the length of the block, for `alignbench watch`."""
        self.heartbeat = Heartbeat(folder, self.say)
        self.heartbeat.start()
        try:
            yield
        finally:
            self.heartbeat.end()
            self.heartbeat = None

    def doing(self, what: str) -> None:
        """Tell those who watch of work that has no units."""
        if self.heartbeat:
            self.heartbeat.doing(what)

    def say(self, text: str) -> None:
        self.console.print(visible(text), highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, name: str, total: int, *, done: int = 0) -> Iterator[Stage]:
        """Open a piece of work of `total` units, `done` of them finished earlier."""
        if self.heartbeat:
            self.heartbeat.begin(name, done, total)
        try:
            with self._shown(name, total, done) as stage:
                yield stage
        finally:
            if self.heartbeat:
                self.heartbeat.write()

    @contextlib.contextmanager
    def _shown(self, name: str, total: int, done: int) -> Iterator[Stage]:
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
