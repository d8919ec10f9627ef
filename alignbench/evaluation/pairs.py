"""Per-image rows of two evaluations, put side by side: by prompt, or image by image.

The rows lie in run folders, where an evaluation keeps what its evaluators remembered of each image. Rows are
used only if they give the numbers of the record again.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignbench.api import PROMPT
from alignbench.evaluation.features import META
from alignbench.record import Result
from alignbench.run_folder import protocol_folder, row_folder

TOLERANCE = 1e-5
"""Relative; networks compute in float32 and a metric may be summed in another order."""


class NoRowsError(Exception):
    """Why rows cannot be used, as a clause."""


@dataclass(frozen=True)
class ImageRows:
    """One column of all images of a result."""

    values: np.ndarray
    """[seeds, images] float64."""
    prompts: np.ndarray | None
    """[seeds, images] int64, equal for equal prompts; None where images have none."""


@dataclass(frozen=True)
class Pairs:
    """Independent pairs; the mean of a - b is the difference of the two metrics."""

    a: list[float]
    b: list[float]
    by_prompt: bool


def pair(a: ImageRows, b: ImageRows, *, same_draws: bool) -> Pairs:
    """Put rows side by side.

    Args:
        a: rows of one result.
        b: rows of another under the same protocol.
        same_draws: image i of both was drawn from the same condition with the same random numbers.

    Raises:
        NoRowsError: other prompts, or images that have nothing in common.
    """
    if a.prompts is not None and b.prompts is not None:
        names = np.unique(a.prompts)
        if not np.array_equal(names, np.unique(b.prompts)):
            raise NoRowsError("the prompts differ")
        return Pairs(_by_prompt(a), _by_prompt(b), by_prompt=True)
    if not same_draws or a.values.shape != b.values.shape:
        raise NoRowsError("image i of one set has nothing to do with image i of the other")
    return Pairs(a.values.ravel().tolist(), b.values.ravel().tolist(), by_prompt=False)


def _by_prompt(rows: ImageRows) -> list[float]:
    """Return one value for each prompt, in the order of the keys, whose plain mean is that of all images."""
    assert rows.prompts is not None
    names, places = np.unique(rows.prompts.ravel(), return_inverse=True)
    sums = np.bincount(places.ravel(), weights=rows.values.ravel(), minlength=len(names))
    found: list[float] = (sums * (len(names) / rows.values.size)).tolist()
    return found


def factor(rows: Sequence[ImageRows], recorded: Sequence[Sequence[float]]) -> float:
    """Return what the mean of a column is multiplied with to give the metric: 1, or 100 for per cent.

    Args:
        rows: of both results.
        recorded: the metric of both, one value per seed.

    Raises:
        NoRowsError: no single factor gives all recorded values again.
    """
    means = np.concatenate([item.values.mean(axis=1) for item in rows])
    values = np.concatenate([np.asarray(item, dtype=float) for item in recorded])
    largest = int(np.abs(means).argmax())
    found = float(values[largest] / means[largest]) if means[largest] else 1.0
    if not math.isfinite(found) or not np.allclose(means * found, values, rtol=TOLERANCE, atol=1e-9):
        raise NoRowsError("the rows kept do not give the recorded values")
    return found


def read_rows(run: Path, result: Result, column: str) -> ImageRows:
    """Read one column of a result's images from its run folder.

    Raises:
        NoRowsError: no rows, other rows than those of the record, or damaged ones.
    """
    evaluator = result.evaluator.partition("@")[0]
    later = protocol_folder(run, result.protocol.name, result.protocol.digest)
    place = later if later.is_dir() else run
    folders = [
        row_folder(place, result.subject, result.setting.name, seed) / evaluator for seed in result.seeds
    ]
    values, prompts = [], []
    for folder in folders:
        pieces = list(_shards(folder, column))
        values.append(np.concatenate([piece for piece, _ in pieces]).astype(np.float64))
        if values[-1].shape != (result.n,):
            raise NoRowsError(f"{folder} does not hold one number for each of {result.n:,} images")
        prompts.append([keys for _, keys in pieces if keys is not None])
    whole = [np.concatenate(keys) for keys in prompts if keys]
    if any(len(keys) != result.n for keys in whole) or len(whole) not in {0, len(folders)}:
        raise NoRowsError("some rows lack their prompt")
    return ImageRows(np.stack(values), np.stack(whole) if whole else None)


def _shards(folder: Path, column: str) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield a column and the prompts of each shard, in order."""
    paths = sorted(folder.glob("shard-*.npz"))
    if not paths:
        raise NoRowsError("the run folder keeps no rows of it")
    keys = set()
    for path in paths:
        try:
            with np.load(path) as file:
                keys.add(json.loads(str(file[META]))["key"])
                yield file[column], file[PROMPT] if PROMPT in file.files else None
        except (OSError, ValueError, EOFError, LookupError, zipfile.BadZipFile) as error:
            raise NoRowsError(f"{path} cannot be read") from error
    if len(keys) > 1:
        raise NoRowsError(f"{folder} holds rows of more than one evaluation")
