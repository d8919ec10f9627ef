"""The worst and the best images of a log of samples, by each of its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignbench.evaluation.sample_log import read_log

Place = tuple[int, int]
"""Which of several files, which line of it."""


@dataclass(frozen=True)
class Extremes:
    """What one score says of the images of some files."""

    worst: list[Place]
    best: list[Place]
    tied: tuple[int, int]
    """Images that were not taken although they score like the last of the worst, of the best."""


@dataclass(frozen=True)
class Group:
    """The image sets of one subject at one setting, a file each sampling seed."""

    headers: list[dict[str, Any]]
    found: dict[str, Extremes]
    """By score, as `facts_of` names them; those with a direction."""
    lines: dict[Place, dict[str, Any]]
    """Of all images in `found`."""


def facts_of(header: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{score: what it means}, rewards behind the others."""
    return {**header["scores"], **header["rewards"]}


def values_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """{score: value} of one image; None where a reward had none."""
    return {**line["scores"], **line.get("rewards", {})}


def extremes(paths: Sequence[Path], count: int) -> Group:
    """Read the logs of one subject and setting; the earlier of equal images comes first."""
    headers, columns = [], dict[str, list[float]]()
    for path in paths:
        header, lines = read_log(path)
        headers.append(header)
        wanted = [name for name, fact in facts_of(header).items() if fact.get("direction")]
        for line in lines:
            values = values_of(line)
            for name in wanted:
                value = values.get(name)
                columns.setdefault(name, []).append(np.nan if value is None else value)
    starts = np.cumsum([0, *(header["images"] for header in headers)])
    facts = facts_of(headers[0])
    found = {
        name: _of_column(np.array(values), facts[name]["direction"] == "lower", count, starts)
        for name, values in columns.items()
        if np.isfinite(values).any()
    }
    taken = {place for one in found.values() for place in (*one.worst, *one.best)}
    picked = {}
    for file, path in enumerate(paths):
        for number, line in enumerate(read_log(path)[1]):
            if (file, number) in taken:
                picked[file, number] = line
    return Group(headers, found, picked)


def _of_column(values: np.ndarray, lower: bool, count: int, starts: np.ndarray) -> Extremes:
    known = np.flatnonzero(np.isfinite(values))
    goodness = -values[known] if lower else values[known]

    def end(key: np.ndarray) -> tuple[list[Place], int]:
        order = np.argsort(key, kind="stable")
        taken = known[order[:count]]
        files = np.searchsorted(starts, taken, side="right") - 1
        places = [(int(f), int(i - starts[f])) for f, i in zip(files, taken, strict=True)]
        return places, int((key[order[count:]] == key[order[len(taken) - 1]]).sum())

    worst, best = end(goodness), end(-goodness)
    return Extremes(worst[0], best[0], tied=(worst[1], best[1]))
