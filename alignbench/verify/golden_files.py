"""Golden values of a set, with the bookkeeping that lets nothing in it go unnoticed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignbench.backbones.weights import read_state_dict
from alignbench.samples.pixels import to_uint8
from alignbench.verify.report import FLOAT32, Check, CheckReport, MissingTensor, Tolerance

ROUNDING_LIMIT = 5e-4
"""No rounding excuses more than this share of a tensor's largest magnitude."""


@dataclass(frozen=True)
class Alternative:
    """An equally valid result, for an expected one that misses the first."""

    value: Tensor
    note: str
    """Why it is valid."""
    rounding: float = 0.0
    """How far float32 rounding may have carried the expected result from it."""


class Golden:
    """Values to feed and values to reproduce; every one gets a row `file:name`."""

    notes = re.compile(r"(?!)")
    """Names of what only comments on other values."""

    def __init__(self, report: CheckReport, values: Mapping[str, Any], file: str) -> None:
        self.report, self.values, self.file = report, values, file
        self.open = set(values)
        """Names without a row yet."""

    def row(self, name: str) -> str:
        return f"{self.file}:{name}"

    def peek(self, name: str) -> Any:
        """Return a value without marking it as checked; `MissingTensor` if it is not there."""
        if name not in self.values:
            raise MissingTensor(self.row(name))
        return self.values[name]

    def input(self, name: str) -> Any:
        """Return an input and list it as such; `MissingTensor` if it is not there."""
        value = self.peek(name)
        if name in self.open:
            self.info(name, "input")
        return value

    def info(self, name: str, note: str) -> None:
        """List a value without comparing it."""
        self.open.discard(name)
        self.report.add("info", self.row(name), note)

    def take(self, name: str) -> Any:
        """Return a value to compare with, or report it as missing and return None."""
        self.open.discard(name)
        if name not in self.values:
            self.report.add("MISSING", self.row(name))
        return self.values.get(name)

    def matching(self, pattern: str, *, at_least: int = 0) -> list[re.Match[str]]:
        """Return the names of one form, and report the form as missing if there are fewer than expected."""
        matches = [match for name in self.values if (match := re.fullmatch(pattern, name))]
        if len(matches) < at_least:
            note = f"{len(matches)} tensors of this form, at least {at_least} expected"
            self.report.add("MISSING", self.row(pattern), note)
        return matches

    def left(self, *prefixes: str) -> list[str]:
        """Return the rows still to be written of values whose names begin so, and count them as written."""
        names = {name for name in self.open if name.startswith(prefixes) and not self.notes.fullmatch(name)}
        self.open -= names
        return sorted(map(self.row, names))

    def finish(self) -> None:
        """Report everything that no check has asked for."""
        for name in sorted(self.open, key=self.row):
            if self.notes.fullmatch(name):
                self.info(name, "")
            else:
                self.report.add("UNKNOWN", self.row(name), "no check knows this tensor")


class GoldenFile(Golden):
    """A safetensors file, on torch's default device."""

    def __init__(self, path: Path, report: CheckReport) -> None:
        device = torch.get_default_device()
        tensors = {name: tensor.to(device) for name, tensor in read_state_dict(path).items()}
        super().__init__(report, tensors, path.name)

    def compare(
        self,
        name: str,
        actual: Tensor,
        tolerance: Tolerance | None = None,
        *,
        otherwise: Callable[[], Alternative] | None = None,
    ) -> None:
        """Compare a tensor as `CheckReport.compare` does, if that misses with what `otherwise` gives."""
        expected = self.take(name)
        if expected is None:
            return
        rows = self.report.checks
        self.report.compare(self.row(name), actual, expected, tolerance)
        if otherwise is not None and rows[-1].verdict != "ok":
            other = otherwise()
            rows.pop()
            self.report.compare(self.row(name), other.value, expected, tolerance)
            rows[-1] = _excuse(rows[-1], other, float(expected.abs().max()))

    def compare_all(self, results: Mapping[str, Tensor], tolerance: Tolerance | None = None) -> None:
        """Compare results by name."""
        for name, actual in results.items():
            self.compare(name, actual, tolerance)

    def pixels(self, name: str, images: Tensor) -> None:
        """Compare the 8-bit version of float images exactly, but where a float is on an edge.

        Within the floats' own tolerance of the edge between two 8-bit values, either is right.

        Args:
            name: the tensor, [N, H, W, C] uint8.
            images: [N, C, H, W] floats.
        """
        expected = self.take(name)
        if expected is None:
            return
        slack = FLOAT32.of(images)
        low, high = (to_uint8(images + shift).permute(0, 2, 3, 1) for shift in (-slack, slack))
        nearest = expected.clamp(low, high) if expected.shape == low.shape else low
        self.report.compare(self.row(name), nearest, expected)


def _excuse(row: Check, other: Alternative, scale: float) -> Check:
    """Apply an alternative's note and, where the usual tolerance does not do, its rounding."""
    row = replace(row, note=row.note or other.note)
    allowed = min(other.rounding, ROUNDING_LIMIT * scale)
    if row.verdict == "ok" or row.error is None or not row.error <= allowed:
        return row
    return replace(row, verdict="ok", tolerance=allowed, note=f"{row.note}, by the float32 rounding measured")
