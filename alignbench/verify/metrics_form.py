"""Golden numbers of distribution metrics: arrays in one file, numbers in another, both under case names."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alignbench.errors import UserError
from alignbench.verify.golden_files import Golden
from alignbench.verify.report import CheckReport, MissingTensor, read_object

ARRAYS = "arrays.npz"
EXPECTED = "expected.json"


class MetricNumbers(Golden):
    """The two files of a folder: `CASE/key/key` are numbers, `CASE.array` are arrays.

    Raises:
        UserError: a file that cannot be read.
    """

    notes = re.compile(r".*(/note|_disagreement|informative|all_agree|/naive_\w+|/adm_code_finite|_max_abs)")
    """Words about the numbers, and what other codes get on purpose or by their precision."""

    def __init__(self, folder: Path, report: CheckReport) -> None:
        arrays, content = _read_arrays(folder / ARRAYS, report), _read_numbers(folder / EXPECTED, report)
        self.cases = content.pop("cases", {})
        numbers = {
            name: value for case in sorted(self.cases) for name, value in _flat(case, self.cases[case])
        }
        super().__init__(report, {**arrays, **numbers}, "")
        for name in sorted(content):
            report.add("info", f"{EXPECTED}:{name}", "about the set")

    def row(self, name: str) -> str:
        return f"{EXPECTED if '/' in name else ARRAYS}:{name}"

    def setting(self, name: str) -> int:
        """Return a whole number that says how others were made; `MissingTensor` if it is not there."""
        if not isinstance(self.values.get(name), int):
            raise MissingTensor(self.row(name))
        return int(self.input(name))

    def compare(
        self, name: str, actual: Any, tolerance: float = 0.0, *, needed: bool = False, also: Any = None
    ) -> None:
        """Compare a number or an array, if the folder has it.

        Args:
            tolerance: largest absolute difference of any entry; 0: equal.
            needed: a case without it is not complete.
            also: the same by another way, held to the same tolerance.
        """
        if name not in self.values:
            if needed:
                self.report.add("MISSING", self.row(name))
            return
        row, expected = self.row(name), self.take(name)
        try:
            wanted = np.atleast_1d(np.asarray(expected, dtype=np.float64))
        except (TypeError, ValueError):
            self.report.add("MISS", row, f"{expected!r} is no number")
            return
        error = 0.0
        for value in (actual, actual if also is None else also):
            found = np.atleast_1d(np.asarray(value, dtype=np.float64))
            if not self.report.same_shape(row, found, wanted):
                return
            error = float(np.abs(found - wanted).max(initial=error))
        self.report.judge(row, error, tolerance)


def _flat(prefix: str, content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(f"{prefix}/{key}", value)
    else:
        yield prefix, content


def _read_arrays(path: Path, report: CheckReport) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        report.add("MISSING", ARRAYS, f"no such file in {path.parent}")
        return {}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not an npz file of plain arrays: {error}") from error


def _read_numbers(path: Path, report: CheckReport) -> dict[str, Any]:
    if not path.exists():
        report.add("MISSING", EXPECTED, f"no such file in {path.parent}")
        return {}
    content = read_object(path)
    if not isinstance(content.get("cases"), dict):
        raise UserError(f"{path}: no object `cases` of golden numbers")
    return content
