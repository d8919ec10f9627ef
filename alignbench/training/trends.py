"""How each series of a training log began and ended: a few plain numbers for the record."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np

END = 0.1
"""Share of the steps that is a beginning or an end."""
FEWEST = 2
"""Steps at each end: fewer have no spread."""
NO_SERIES = {"step", "lr"}


def trends(log: Path) -> dict[str, dict[str, float]]:
    """Return {name in `metrics.jsonl`: the fields of `record.Trend`}; empty without a log.

    Values that are no finite numbers do not count; a series of fewer than four others, or of numbers too
    large to add up, has no trend.
    """
    if not log.is_file():
        return {}
    series: dict[str, list[float]] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, AttributeError):  # a damaged line
            for name, value in json.loads(line).items():
                if name not in NO_SERIES and isinstance(value, int | float):
                    series.setdefault(name, []).append(value)
    with np.errstate(all="ignore"):
        found = {name: _trend(np.array(values, dtype=float)) for name, values in series.items()}
    return {name: numbers for name, numbers in found.items() if numbers}


def _trend(given: np.ndarray) -> dict[str, float]:
    """Summarise one series, [n]; empty where that is impossible."""
    values = given[np.isfinite(given)]
    size = max(int(len(values) * END), FEWEST)
    if len(values) < 2 * size:
        return {}
    first, last = values[:size], values[-size:]
    numbers = {
        "first": first.mean(),
        "last": last.mean(),
        "mean": values.mean(),
        "highest": values.max(),
        "error": np.sqrt((first.var(ddof=1) + last.var(ddof=1)) / size),
    }
    if not all(map(np.isfinite, numbers.values())):
        return {}
    # Six digits say all that such numbers can, and keep records short.
    return {name: float(f"{x:.6g}") for name, x in numbers.items()}
