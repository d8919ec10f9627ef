"""Golden numbers of distribution metrics: arrays in one file, numbers in another, both under case names."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignbench.errors import UserError
from alignbench.verify.golden_files import MissingTensor
from alignbench.verify.report import Check, CheckReport

ARRAYS = "arrays.npz"
EXPECTED = "expected.json"

INFORMATIONAL = re.compile(
    r".*(/note|_disagreement|informative|all_agree|/naive_\w+|/adm_code_finite|_max_abs)"
)
"""Words about the numbers, and what other codes get on purpose or by their precision."""


@dataclass(frozen=True)
class MetricResult:
    """A number or an array that we computed."""

    name: str
    """`CASE/key/key` of the numbers, `CASE.array` of the arrays."""
    value: Any
    tolerance: float = 0.0
    """Largest absolute difference of any entry; 0: equal."""
    needed: bool = False
    """A case without it is not complete."""
    also: Any = None
    """The same by another way, held to the same tolerance."""


class MetricNumbers:
    """The two files of a folder, with the bookkeeping that lets nothing in them go unnoticed.

    Raises:
        UserError: a file that cannot be read.
    """

    def __init__(self, folder: Path, report: CheckReport) -> None:
        self._report = report
        self._arrays = _read_arrays(folder / ARRAYS, report)
        content = _read_numbers(folder / EXPECTED, report)
        cases = content.get("cases", {})
        self.cases: list[str] = sorted(cases)
        self._numbers = {name: value for case in self.cases for name, value in _flat(case, cases[case])}
        for name in sorted(content.keys() - {"cases"}):
            report.info(f"{EXPECTED}:{name}", "about the set")
        self._open = {self._row(name) for name in (*self._arrays, *self._numbers)}

    def has(self, array: str) -> bool:
        return array in self._arrays

    def array(self, name: str) -> np.ndarray:
        """Return an input; `MissingTensor` if it is not there."""
        if name not in self._arrays:
            raise MissingTensor(self._row(name))
        if self._row(name) in self._open:
            self._open.discard(self._row(name))
            self._report.info(self._row(name), "input")
        return self._arrays[name]

    def setting(self, name: str) -> int:
        """Return a whole number that says how others were made; `MissingTensor` if it is not there."""
        value = self._numbers.get(name)
        if not isinstance(value, int):
            raise MissingTensor(self._row(name))
        if self._row(name) in self._open:
            self._open.discard(self._row(name))
            self._report.info(self._row(name), "input")
        return value

    def says(self, name: str) -> bool:
        """Whether a number is there and is `true`."""
        return self._numbers.get(name) is True

    def matching(self, pattern: str) -> list[re.Match[str]]:
        """Return the names of numbers and arrays of one form, in order."""
        names = sorted((*self._numbers, *self._arrays))
        return [match for name in names if (match := re.fullmatch(pattern, name))]

    def compare(self, result: MetricResult) -> None:
        """Compare one result, if the folder has it."""
        row = self._row(result.name)
        expected = self._numbers if result.name in self._numbers else self._arrays
        if result.name not in expected:
            if result.needed:
                self._report.missing(row)
            return
        self._open.discard(row)
        self._report.checks.append(_compare(row, result, expected[result.name]))

    def broken(self, case: str, why: str) -> None:
        """Miss whatever is left of a case that cannot be computed."""
        for row in sorted(self._open):
            name = row.partition(":")[2]
            if name.startswith((f"{case}/", f"{case}.")) and not INFORMATIONAL.fullmatch(name):
                self._open.discard(row)
                self._report.checks.append(Check(row, None, None, "MISS", why))

    def finish(self) -> None:
        """Report what no case has asked for."""
        for row in sorted(self._open):
            if INFORMATIONAL.fullmatch(row):
                self._report.info(row)
            else:
                self._report.unknown(row)

    def _row(self, name: str) -> str:
        return f"{EXPECTED if '/' in name else ARRAYS}:{name}"


def _compare(row: str, result: MetricResult, expected: Any) -> Check:
    try:
        wanted = np.atleast_1d(np.asarray(expected, dtype=np.float64))
    except (TypeError, ValueError):
        return Check(row, None, None, "MISS", f"{expected!r} is no number")
    error = 0.0
    for value in (result.value, result.also):
        if value is None:
            continue
        actual = np.atleast_1d(np.asarray(value, dtype=np.float64))
        if actual.shape != wanted.shape:
            note = f"shape {list(actual.shape)}, expected {list(wanted.shape)}"
            return Check(row, None, None, "MISS", note)
        error = float(np.abs(actual - wanted).max(initial=error))
    return Check(row, error, result.tolerance, "ok" if error <= result.tolerance else "MISS")


def _flat(prefix: str, content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(f"{prefix}/{key}", value)
    else:
        yield prefix, content


def _read_arrays(path: Path, report: CheckReport) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        report.missing(ARRAYS, f"no such file in {path.parent}")
        return {}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not an npz file of plain arrays: {error}") from error


def _read_numbers(path: Path, report: CheckReport) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        report.missing(EXPECTED, f"no such file in {path.parent}")
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("cases"), dict):
        raise UserError(f"{path}: no object `cases` of golden numbers")
    return content
