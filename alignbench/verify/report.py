"""What a golden check found: one row per tensor, with error, tolerance and verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Verdict = Literal["ok", "MISS", "MISSING", "UNKNOWN", "info"]

RELATIVE = 1e-5
ABSOLUTE = 1e-6


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

    def close(
        self,
        name: str,
        actual: Tensor,
        expected: Tensor,
        *,
        relative: float = RELATIVE,
        absolute: float = ABSOLUTE,
    ) -> None:
        """Compare floats: max |a - e| ≤ absolute + relative · max |e| over the whole tensor.

        The scale is the tensor's largest magnitude: an element that happens to be near zero carries the
        rounding of its larger neighbours. A shape mismatch or a non-finite difference is a miss.
        """
        if tuple(actual.shape) != tuple(expected.shape):
            note = f"shape {list(actual.shape)}, expected {list(expected.shape)}"
            self.checks.append(Check(name, None, None, "MISS", note))
            return
        actual, expected = actual.detach().double(), expected.detach().double()
        same = actual == expected  # equal infinities are equal
        difference = (actual - expected).abs().masked_fill(same, 0.0)
        error = float(difference.max()) if difference.numel() else 0.0
        finite = expected[expected.isfinite()].abs()
        tolerance = absolute + relative * (float(finite.max()) if finite.numel() else 0.0)
        self.checks.append(Check(name, error, tolerance, "ok" if error <= tolerance else "MISS"))

    def equal(self, name: str, actual: Tensor, expected: Tensor) -> None:
        """Compare integers and booleans exactly."""
        if tuple(actual.shape) != tuple(expected.shape):
            note = f"shape {list(actual.shape)}, expected {list(expected.shape)}"
            self.checks.append(Check(name, None, None, "MISS", note))
            return
        wrong = int((actual.detach().long() != expected.detach().long()).sum())
        self.checks.append(Check(name, float(wrong), 0.0, "ok" if wrong == 0 else "MISS"))

    def info(self, name: str, note: str = "") -> None:
        """List a tensor that is informational: not compared."""
        self.checks.append(Check(name, None, None, "info", note))

    def missing(self, name: str, note: str = "") -> None:
        """A file or tensor that should be there is not."""
        self.checks.append(Check(name, None, None, "MISSING", note))

    def unknown(self, name: str) -> None:
        """A tensor that nothing here knows how to check."""
        self.checks.append(Check(name, None, None, "UNKNOWN", "no check knows this tensor"))
