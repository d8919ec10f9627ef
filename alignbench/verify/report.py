"""What a golden check found: one row per tensor, with error, tolerance and verdict."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alignbench.errors import UserError
from alignbench.files import parse_json

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Verdict = Literal["ok", "MISS", "MISSING", "UNKNOWN", "info"]


class Tolerance(NamedTuple):
    """Allowed is `absolute + relative · the tensor's largest magnitude`."""

    absolute: float = 0.0
    relative: float = 0.0

    def of(self, expected: Tensor) -> float:
        """Return what is allowed for a tensor; infinities in it do not count."""
        finite = expected[expected.isfinite()].abs()
        return self.absolute + self.relative * (float(finite.max()) if finite.numel() else 0.0)


FLOAT32 = Tolerance(1e-6, 1e-5)
FLOAT64 = Tolerance(1e-6, 1e-9)
"""Where both sides are computed in float64."""


class MissingTensor(Exception):
    """An input (the message is its row) is not there: what depends on it cannot be checked."""


@dataclass(frozen=True)
class Check:
    """One compared tensor."""

    name: str
    """`file:tensor`."""
    error: float | None
    """Largest absolute difference; number of differing entries for exact tensors."""
    tolerance: float | None
    verdict: Verdict
    note: str = ""


@dataclass
class CheckReport:
    """All checks of one golden folder."""

    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if something was compared and nothing was missed, missing or unknown."""
        compared = [row for row in self.checks if row.verdict != "info"]
        return bool(compared) and all(row.verdict == "ok" for row in compared)

    def add(self, verdict: Verdict, name: str, note: str = "") -> None:
        """List what was not compared: an input, or what is missing, unknown or cannot be computed."""
        self.checks.append(Check(name, None, None, verdict, note))

    def judge(self, name: str, error: float, tolerance: float = 0.0, note: str = "") -> None:
        """List a measured error, which may not be more than allowed nor NaN."""
        verdict: Verdict = "ok" if error <= tolerance else "MISS"
        self.checks.append(Check(name, error, tolerance, verdict, note))

    def compare(
        self, name: str, actual: Tensor, expected: Tensor, tolerance: Tolerance | None = None
    ) -> None:
        """Compare whole tensors; without a tolerance floats by that of float32, others exactly.

        The scale is the tensor's largest magnitude: an element that happens to be near zero carries the
        rounding of its larger neighbours. A shape mismatch or a non-finite difference is a miss. A number
        fits a tensor of one.
        """
        if tolerance is None and actual.is_floating_point():
            tolerance = FLOAT32
        actual = actual.detach().reshape(actual.shape or (1,))
        if not self.same_shape(name, actual, expected):
            return
        if tolerance is None:
            self.judge(name, float((actual.long() != expected.long()).sum()))
        else:
            actual, expected = actual.double(), expected.detach().double()
            same = actual == expected  # equal infinities are equal
            difference = (actual - expected).abs().masked_fill(same, 0.0)
            error = float(difference.max()) if difference.numel() else 0.0
            self.judge(name, error, tolerance.of(expected))

    def same_shape(self, name: str, actual: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> bool:
        """Miss what has another shape."""
        same = actual.shape == expected.shape
        if not same:
            self.add("MISS", name, f"shape {list(actual.shape)}, expected {list(expected.shape)}")
        return same

    def same_text(self, name: str, actual: str, expected: str) -> None:
        """Compare texts exactly."""
        note = "" if actual == expected else f"{actual!r} instead of {expected!r}"
        self.judge(name, float(actual != expected), note=note)

    @contextlib.contextmanager
    def part(self, name: str, results: Callable[[], Iterable[str]] | None = None) -> Iterator[None]:
        """Run a part of a check and turn what stops it into rows.

        Args:
            name: the part, or its file.
            results: gives the rows that are missed with it; None: the part has one row, and none where an
                input is missing.
        """
        try:
            yield
            return
        except MissingTensor as error:
            self.add("MISSING", str(error), "" if results is None else f"needed by {name}")
            if results is None:
                return
            note = f"{error} is missing"
        except UserError as error:
            note = str(error)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            # The set's own numbers do not fit together, or do not fit its configuration.
            note = f"cannot be computed: {type(error).__name__}: {error}".splitlines()[0]
        for row in [name] if results is None else results():
            self.add("MISS", row, note)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object of a golden set."""
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"{path.parent} holds no {path.name}", fix="name the folder of a golden set"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON: {error}", fix="get the golden set again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object", fix="get the golden set again")
    return content
