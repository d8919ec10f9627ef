"""Signals while training: finish the step, keep a checkpoint, then stop. Elsewhere they stop at once."""

from __future__ import annotations

import signal
import threading
import types
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignbench.progress import Progress

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""What users, closed terminals and schedulers (`sbatch --signal=USR1`) send."""


class Stopped(KeyboardInterrupt):
    """A signal that stops at once.

    Not KeyboardInterrupt itself: where that passes through code that was executed from a text, as dataclasses
    are, Python ends by SIGINT whatever the exit status.
    """


class StopOnSignal:
    """Turn the first signal into a request to stop after the present step; the second one is immediate.

    A context manager that gives a function: has somebody asked?
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._asked = False

    def __enter__(self) -> Callable[[], bool]:
        self._before = {
            number: signal.signal(number, self._handle)
            for number in SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN  # as under nohup
        }
        return lambda: self._asked

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._handle:  # else it was changed meanwhile
                signal.signal(number, handler)

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if self._asked:
            raise Stopped
        self._asked = True
        self._progress.say("stopping after this step; Ctrl-C again stops at once")


def ignore_signals() -> None:
    """Ignore `SIGNALS` from now on: this process is about to end by itself."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
