"""One file of golden tensors, with the bookkeeping that lets nothing in it go unnoticed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from alignbench.backbones.containers import read_state_dict
from alignbench.verify.report import Report, Row, Verdict


class InputMissing(Exception):
    """An input is not in the file: what depends on it cannot be checked."""


class Expected:
    """Tensors to feed and tensors to reproduce; every row goes to the report under `file:tensor`."""

    def __init__(self, path: Path, report: Report) -> None:
        self.file = path.name
        self._tensors = read_state_dict(path)
        self._report = report
        self._seen: set[str] = set()

    def input(self, name: str) -> Tensor:
        """Return an input tensor and list it as such; `InputMissing` if it is not there."""
        known = name in self._seen
        tensor = self._take(name)
        if tensor is None:
            raise InputMissing(name)
        if not known:
            self._report.info(self._row(name), "input")
        return tensor

    def close(self, name: str, actual: Tensor, *, otherwise: tuple[Tensor, str] | None = None) -> None:
        """Compare floats by the report's tolerance.

        Args:
            name: the tensor.
            actual: our result.
            otherwise: an equally valid result to compare if that one misses, and why it is valid.
        """
        expected = self._take(name)
        if expected is None:
            return
        rows = self._report.rows
        self._report.close(self._row(name), actual, expected)
        if otherwise is not None and rows[-1].verdict != "ok":
            rows.pop()
            self._report.close(self._row(name), otherwise[0], expected)
            rows[-1] = replace(rows[-1], note=rows[-1].note or otherwise[1])

    def equal(self, name: str, actual: Tensor, *, stray: float = 0.0) -> None:
        """Compare integers or booleans exactly.

        Args:
            name: the tensor.
            actual: our result.
            stray: share of the entries that may be off by one, for pixels that rounding can tip.
        """
        expected = self._take(name)
        if expected is None:
            return
        if stray > 0.0 and actual.shape == expected.shape:
            off = (actual.long() - expected.long()).abs()
            wrong, allowed = int((off > 0).sum()), int(stray * off.numel())
            verdict: Verdict = "ok" if wrong <= allowed and int(off.max()) <= 1 else "MISS"
            note = f"up to {allowed} entries may be off by one"
            self._report.rows.append(Row(self._row(name), float(wrong), float(allowed), verdict, note))
        else:
            self._report.equal(self._row(name), actual, expected)

    def info(self, name: str, note: str) -> None:
        """List a tensor without judging it."""
        self._seen.add(name)
        self._report.info(self._row(name), note)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without marking it as checked; `InputMissing` if it is not there."""
        if name not in self._tensors:
            self._report.missing(self._row(name))
            raise InputMissing(name)
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
        for name in self._tensors.keys() - self._seen:
            self._report.unknown(self._row(name))

    def _take(self, name: str) -> Tensor | None:
        if name not in self._tensors:
            self._report.missing(self._row(name))
            return None
        self._seen.add(name)
        return self._tensors[name]

    def _row(self, name: str) -> str:
        return f"{self.file}:{name}"
