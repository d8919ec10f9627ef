"""One file of golden tensors, with the bookkeeping that lets nothing in it go unnoticed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from alignbench.backbones.weights import read_state_dict
from alignbench.errors import UserError
from alignbench.methods import policy_gradient
from alignbench.samples.pixels import to_uint8
from alignbench.verify.report import ABSOLUTE, RELATIVE, Check, CheckReport


class MissingTensor(Exception):
    """An input is not in the file: what depends on it cannot be checked."""


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


class GoldenFile:
    """Tensors to feed and tensors to reproduce; every row goes to the report under `file:tensor`."""

    def __init__(self, path: Path, report: CheckReport) -> None:
        self.file = path.name
        device = torch.get_default_device()
        self._tensors = {name: tensor.to(device) for name, tensor in read_state_dict(path).items()}
        self._report = report
        self._seen: set[str] = set()

    def input(self, name: str) -> Tensor:
        """Return an input tensor and list it as such; `MissingTensor` if it is not there."""
        known = name in self._seen
        tensor = self._take(name)
        if tensor is None:
            raise MissingTensor(name)
        if not known:
            self._report.info(self._row(name), "input")
        return tensor

    def close(self, name: str, actual: Tensor, *, otherwise: Callable[[], Alternative] | None = None) -> None:
        """Compare floats by the report's tolerance.

        Args:
            name: the tensor.
            actual: our result.
            otherwise: what to compare if that misses.
        """
        expected = self._take(name)
        if expected is None:
            return
        rows = self._report.checks
        self._report.close(self._row(name), actual, expected)
        if otherwise is not None and rows[-1].verdict != "ok":
            other = otherwise()
            rows.pop()
            self._report.close(self._row(name), other.value, expected)
            rows[-1] = _excuse(rows[-1], other, float(expected.abs().max()))

    def within(self, name: str, actual: Tensor, *, absolute: float = 0.0, relative: float = 0.0) -> None:
        """Compare numbers by a tolerance of the set's own, absolute or relative to the largest magnitude."""
        expected = self._take(name)
        if expected is not None:
            self._report.close(self._row(name), actual, expected, relative=relative, absolute=absolute)

    def equal(self, name: str, actual: Tensor) -> None:
        """Compare integers or booleans exactly."""
        expected = self._take(name)
        if expected is not None:
            self._report.equal(self._row(name), actual, expected)

    def pixels(self, name: str, images: Tensor) -> None:
        """Compare the 8-bit version of float images exactly, but where a float is on an edge.

        Within the floats' own tolerance of the edge between two 8-bit values, either is right.

        Args:
            name: the tensor, [N, H, W, C] uint8.
            images: [N, C, H, W] floats.
        """
        expected = self._take(name)
        if expected is None:
            return
        slack = ABSOLUTE + RELATIVE * float(images.abs().max())
        low, high = (to_uint8(images + shift).permute(0, 2, 3, 1) for shift in (-slack, slack))
        nearest = expected.clamp(low, high) if expected.shape == low.shape else low
        self._report.equal(self._row(name), nearest, expected)

    def info(self, name: str, note: str) -> None:
        """List a tensor without comparing it."""
        self._seen.add(name)
        self._report.info(self._row(name), note)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without marking it as checked; `MissingTensor` if it is not there."""
        if name not in self._tensors:
            self._report.missing(self._row(name))
            raise MissingTensor(name)
        return tuple(self._tensors[name].shape)

    def peek(self, name: str) -> Tensor:
        """Return a tensor that exists without marking it as checked."""
        return self._tensors[name]

    def matching(self, pattern: str, *, at_least: int = 0) -> list[re.Match[str]]:
        """Return the names of one form, and report the form as missing if there are fewer than expected."""
        matches = [match for name in self._tensors if (match := re.fullmatch(pattern, name))]
        if len(matches) < at_least:
            note = f"{len(matches)} tensors of this form, at least {at_least} expected"
            self._report.missing(self._row(pattern), note)
        return matches

    def finish(self) -> None:
        """Report every tensor that no check has asked for."""
        for name in sorted(self._tensors.keys() - self._seen):
            self._report.unknown(self._row(name))

    def _take(self, name: str) -> Tensor | None:
        if name not in self._tensors:
            self._report.missing(self._row(name))
            return None
        self._seen.add(name)
        return self._tensors[name]

    def _row(self, name: str) -> str:
        return f"{self.file}:{name}"


def _excuse(row: Check, other: Alternative, scale: float) -> Check:
    """Apply an alternative's note and, where the usual tolerance does not do, its rounding."""
    row = replace(row, note=row.note or other.note)
    allowed = min(other.rounding, ROUNDING_LIMIT * scale)
    if row.verdict == "ok" or row.error is None or not row.error <= allowed:
        return row
    return replace(row, verdict="ok", tolerance=allowed, note=f"{row.note}, by the float32 rounding measured")


CONSTANTS = {"clip_range": 0.2, "advantage_clip": 5.0}
"""Where a file's metadata name no others."""

Results = dict[str, Tensor]
"""What one case should hold, by the name after the case's prefix."""


class VapiFile:
    """One file of a VA-π set; floats come as float64."""

    def __init__(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as stream:
                self.metadata = stream.metadata() or {}
                names = stream.keys()
                device = torch.get_default_device()
                self.tensors = {name: stream.get_tensor(name).to(device) for name in names}
        except SafetensorError as error:
            raise UserError(f"{path} is not a readable safetensors file: {error}") from error

    def stored(self, name: str) -> Tensor:
        """A tensor in its own dtype."""
        if name not in self.tensors:
            raise MissingTensor(name)
        result: Tensor = self.tensors[name]
        return result

    def __getitem__(self, name: str) -> Tensor:
        """A tensor; a copy in float64 if it holds floats."""
        tensor = self.stored(name)
        return tensor.to(torch.float64, copy=True) if tensor.is_floating_point() else tensor

    def constant(self, name: str) -> float:
        return float(self.metadata.get(name, CONSTANTS[name]))

    def surrogate(self, new: Tensor, old: Tensor, advantage: Tensor) -> policy_gradient.Surrogate:
        clip_range, advantage_clip = self.constant("clip_range"), self.constant("advantage_clip")
        return policy_gradient.clipped_surrogate(new, old, advantage, clip_range, advantage_clip)


@dataclass(frozen=True)
class Section:
    """One group of tensors: how its cases are named and what each should hold."""

    pattern: re.Pattern[str]
    """Matches a case's prefix."""
    compute: Callable[[VapiFile, re.Match[str]], Results]
    always: tuple[str, ...] = ()
    """Prefixes that every file with this group has."""
    grid: str = ""
    """Prefix as a format string over the pattern's groups: every combination of values seen must be there."""

    def cases(self, names: Iterable[str]) -> list[re.Match[str]]:
        """Return the cases that a file with tensors of these names has or should have."""
        seen = [match for match in map(self.pattern.match, names) if match]
        prefixes = {match[0] for match in seen} | set(self.always)
        if self.grid:
            values = [
                {match[group] for match in seen if match[group] is not None}
                for group in self.pattern.groupindex
            ]
            combinations = itertools.product(*values)
            prefixes |= {
                self.grid.format(**dict(zip(self.pattern.groupindex, chosen, strict=True)))
                for chosen in combinations
            }
        return [match for match in map(self.pattern.match, sorted(prefixes)) if match]
