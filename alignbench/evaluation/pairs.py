"""Per-image features of two evaluations, put side by side: by prompt, or image by image.

They lie in run folders, where an evaluation keeps what its evaluators remembered of each image, and are used
only if they give the numbers of the record again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignbench.api import PROMPT
from alignbench.evaluation.features import META
from alignbench.record import Result
from alignbench.run_folder import protocol_folder, row_files
from alignbench.samples.npz import UNREADABLE

TOLERANCE = 1e-5
"""Relative; networks compute in float32 and a metric may be summed in another order."""


class NoPairsError(Exception):
    """Why two evaluations cannot be paired, as a clause."""


@dataclass(frozen=True)
class Pairs:
    """Independent pairs; the mean of a - b is the difference of the two metrics."""

    a: list[float]
    b: list[float]
    by_prompt: bool


@dataclass(frozen=True)
class _Column:
    """One column of all images of a result."""

    values: np.ndarray
    """[seeds, images] float64."""
    prompts: np.ndarray | None
    """[seeds, images] int64, equal for equal prompts; None where images have none."""


def read_pairs(
    folders: tuple[Path, Path],
    results: tuple[Result, Result],
    column: str,
    recorded: tuple[Sequence[float], Sequence[float]],
    *,
    same_draws: bool,
) -> Pairs:
    """Read one column of two evaluations under one protocol from their run folders.

    Args:
        column: whose mean the metric is, up to a factor such as 100 for per cent.
        recorded: the metric of both, one value per seed.
        same_draws: image i of both was drawn from the same condition with the same random numbers.

    Raises:
        NoPairsError: no features of the record, damaged ones, other prompts, nothing in common.
    """
    a, b = (_read(folder, result, column) for folder, result in zip(folders, results, strict=True))
    factor = _factor((a, b), recorded)
    if a.prompts is not None and b.prompts is not None:
        (keys_a, values_a), (keys_b, values_b) = _by_prompt(a), _by_prompt(b)
        if not np.array_equal(keys_a, keys_b):
            raise NoPairsError("the prompts differ")
        return Pairs((values_a * factor).tolist(), (values_b * factor).tolist(), by_prompt=True)
    if not same_draws or a.values.shape != b.values.shape:
        raise NoPairsError("image i of one set has nothing to do with image i of the other")
    values_a, values_b = a.values.ravel(), b.values.ravel()
    return Pairs((values_a * factor).tolist(), (values_b * factor).tolist(), by_prompt=False)


def _by_prompt(side: _Column) -> tuple[np.ndarray, np.ndarray]:
    """Return the prompts, and one value for each whose plain mean is that of all images."""
    assert side.prompts is not None
    keys, index = np.unique(side.prompts.ravel(), return_inverse=True)
    sums = np.bincount(index.ravel(), weights=side.values.ravel(), minlength=len(keys))
    return keys, sums * (len(keys) / side.values.size)


def _factor(sides: Sequence[_Column], recorded: Sequence[Sequence[float]]) -> float:
    """Return what the mean of a column is multiplied with to give the metric: 1, or 100 for per cent."""
    means = np.concatenate([side.values.mean(axis=1) for side in sides])
    metrics = np.concatenate([np.asarray(values, dtype=float) for values in recorded])
    largest = int(np.abs(means).argmax())
    factor = float(metrics[largest] / means[largest]) if means[largest] else 1.0
    if not math.isfinite(factor) or not np.allclose(means * factor, metrics, rtol=TOLERANCE, atol=1e-9):
        raise NoPairsError("the rows kept do not give the recorded values")
    return factor


def _read(run: Path, result: Result, column: str) -> _Column:
    """Read one column of all images of a result."""
    evaluator = result.evaluator.partition("@")[0]
    later = protocol_folder(run, result.protocol.name, result.protocol.digest)
    run = later if later.is_dir() else run
    values, prompts = [], []
    for seed in result.seeds:
        paths = row_files(run, result.subject, result.setting.name, seed, evaluator)
        shards = [_read_shard(path, column) for path in paths]
        if not shards:
            raise NoPairsError("the run folder keeps no rows of it")
        if len({key for _, _, key in shards}) > 1:
            raise NoPairsError(f"{paths[0].parent} holds rows of more than one evaluation")
        values.append(np.concatenate([part for part, _, _ in shards]).astype(np.float64))
        if values[-1].shape != (result.n,):
            raise NoPairsError(f"{paths[0].parent} does not hold one number for each of {result.n:,} images")
        prompts.append([part for _, part, _ in shards if part is not None])
    whole = [np.concatenate(parts) for parts in prompts if parts]
    if any(len(keys) != result.n for keys in whole) or len(whole) not in {0, len(prompts)}:
        raise NoPairsError("some rows lack their prompt")
    return _Column(np.stack(values), np.stack(whole) if whole else None)


def _read_shard(path: Path, column: str) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Return a column, the prompts and the key of one shard."""
    try:
        with np.load(path) as file:
            prompts = file[PROMPT] if PROMPT in file.files else None
            return file[column], prompts, json.loads(str(file[META]))["key"]
    except UNREADABLE as error:
        raise NoPairsError(f"{path} cannot be read") from error
