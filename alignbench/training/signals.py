"""Ctrl-C and SIGTERM while training: finish the step, keep a checkpoint, then stop."""

from __future__ import annotations

import signal
import types
from collections.abc import Callable

from alignbench.progress import Progress

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""What a user and what a scheduler sends."""


class StopOnSignal:
    """Turn the first signal into a request to stop after the present step; the second one is immediate.

    A context manager that gives a function: has somebody asked?
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._asked = False

    def __enter__(self) -> Callable[[], bool]:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return lambda: self._asked

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        self._progress.say("stopping after this step; Ctrl-C again stops at once")
