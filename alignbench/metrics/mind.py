"""The Monge Inception Distance (arXiv:2605.06797): a sliced Wasserstein distance of two sets of features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from alignbench.metrics.arrays import Device, as_rows, require
from alignbench.metrics.bootstrap import resamples

GROUP = 16
"""Directions whose projections are in memory together."""


def mind(
    generated: np.ndarray,
    real: np.ndarray,
    *,
    directions: int,
    seed: int,
    replicates: int = 0,
    resample_seed: int = 0,
    device: Device = None,
) -> list[float]:
    """Return 3·D times the mean over random unit directions of the squared 1-D Wasserstein-2 distance.

    A set that is larger than the other is replaced by a random part of it of the other's size, n. Part and
    directions are those that torch-fidelity (git, `metric_mind.py`) draws with the same seed; projections and
    sums are float64 here and float32 there.

    Args:
        generated, real: [N, D] and [M, D], any float type.
        directions: ≥ 1; the paper takes 1000.
        replicates: resamples of the n generated rows that count, whose distances follow the plain one.

    Raises:
        ValueError: sets of different width, or no direction.
        UserError: an empty set, or a value that is not finite.
    """
    if directions < 1:
        raise ValueError(f"{directions} directions")
    for rows, what in ((generated, "generated images"), (real, "real images")):
        require(len(rows), 1, what=what, why="a distance")
    ours, theirs = as_rows(generated, device), as_rows(real, device)
    width, count = ours.shape[1], min(len(ours), len(theirs))
    if theirs.shape[1] != width:
        raise ValueError(f"sets of {width} and of {theirs.shape[1]} features")
    rng = torch.Generator().manual_seed(seed)
    ours, theirs = (_part(rows, count, rng) for rows in (ours, theirs))
    drawn = torch.randn(directions, width, generator=rng)
    units = (drawn / drawn.norm(dim=1, keepdim=True).clamp_min(1e-12)).to(ours)
    draws = list(resamples(count, replicates=replicates, seed=resample_seed))
    times = [torch.from_numpy(one).to(ours.device) for one in draws]
    totals = sum((_squared_gaps(ours, theirs, group, times) for group in units.split(GROUP)), 0 * ours[0, 0])
    values: list[float] = (3 * width * totals / (directions * count)).tolist()
    return values


def _part(rows: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Return `count` rows, at random where there are more."""
    if len(rows) == count:
        return rows
    return rows[torch.randperm(len(rows), generator=rng)[:count].to(rows.device)]


def _squared_gaps(ours: Tensor, theirs: Tensor, units: Tensor, times: list[Tensor]) -> Tensor:
    """Sum (x(j) − y(j))² over order statistics and directions [G, D]: of all rows, then of each resample."""
    sorted_ours, order = (units @ ours.T).sort(dim=1)
    sorted_theirs = (units @ theirs.T).sort(dim=1).values
    sums = [(sorted_ours - sorted_theirs).square().sum()]
    for counts in times:  # a row drawn twice is two neighbours of the sorted ones
        again = sorted_ours.flatten().repeat_interleave(counts[order].flatten())
        sums.append((again.view_as(sorted_theirs) - sorted_theirs).square().sum())
    return torch.stack(sums)
