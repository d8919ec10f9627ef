"""The training log, read while it is written."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

LOG = "metrics.jsonl"
LAST = 20
"""Steps that a warning looks back."""


@dataclass
class Log:
    """The training log, of which each look reads what is new; lines that are no JSON yet are left."""

    path: Path
    steps: dict[int, dict[str, float | None]] = field(default_factory=dict)
    _file: int = 0
    _offset: int = 0

    def update(self) -> None:
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._file or status.st_size < self._offset:  # a resumed run cut it
                    self.steps, self._file, self._offset = {}, status.st_ino, 0
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            self.steps, self._file, self._offset = {}, 0, 0
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
                numbers = json.loads(line)
                self.steps[int(numbers.pop("step"))] = numbers

    def series(self) -> tuple[str, list[float]]:
        """Return the name and the values of the reward, or of the loss."""
        for name in ("reward", "loss"):
            values = [numbers.get(name) for _, numbers in sorted(self.steps.items())]
            if known := [float(value) for value in values if isinstance(value, int | float)]:
                return name, known
        return "", []

    def warnings(self) -> list[str]:
        """Say what is wrong with the last steps."""
        last = [numbers for _, numbers in sorted(self.steps.items())[-LAST:]]
        if not last:
            return []
        found = [f"{name} is not a number" for name, value in last[-1].items() if value is None]
        if all(numbers.get("grad_norm") == 0 for numbers in last):
            found.append(f"no gradient in the last {_steps(last)}: nothing is learned")
        if all(numbers.get("flat_groups") == 1 for numbers in last):
            found.append(f"rewards equal in every group of the last {_steps(last)}: nothing to prefer")
        return found


def _steps(last: Sequence[object]) -> str:
    return f"{len(last)} steps" if len(last) > 1 else "step"
