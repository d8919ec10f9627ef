"""Sampling error of a mean whose values come in groups: images of one prompt share what the prompt brings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from alignbench.metrics.intervals import LEVEL, wilson

REPLICATES = 2000


def resampled_interval(
    values: np.ndarray, groups: np.ndarray, *, replicates: int = REPLICATES, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of the mean of [N] values under resampling of whole groups [N].

    Whole groups, because drawing single images would take four images of one prompt for four independent
    ones and make the interval too narrow. Plain percentiles, because a mean is not biased by resampling.
    None for a single group, of which nothing can be said.
    """
    sums, sizes = _by_group(values, groups)
    count = len(sums)
    if count < 2:
        return None
    numbers = np.random.default_rng(seed)
    means = np.empty(replicates)
    for replicate in range(replicates):
        drawn = numbers.integers(0, count, size=count)
        means[replicate] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def share_interval(correct: np.ndarray, groups: np.ndarray) -> tuple[float, float] | None:
    """Return Wilson's interval of a share of [N] bool, with the number of independent images in place of all.

    That number follows from the variance between the groups' sums (the cluster-robust variance of the
    share). It is taken as at least the number of groups, images of a group being at most the same, and at
    most the number of images. Wilson's form, because some tasks have shares near 0, where a share ± 1.96·sd
    is too short and leaves [0, 1]. None with fewer than two groups.
    """
    sums, sizes = _by_group(correct, groups)
    count, images = len(sums), float(sizes.sum())
    if count < 2:
        return None
    share = float(sums.sum()) / images
    variance = count / (count - 1) * float(((sums - share * sizes) ** 2).sum()) / images**2
    single = share * (1 - share)
    independent = min(max(single / variance, count), images) if variance > 0 else float(count)
    return wilson(share, independent)


def _by_group(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of each group's values and the number of them, float64."""
    _, member = np.unique(groups, return_inverse=True)
    sums = np.bincount(member.reshape(-1), weights=values.astype(np.float64))
    return sums, np.bincount(member.reshape(-1)).astype(np.float64)


def interval_of_mean(
    values: Sequence[float], intervals: Sequence[tuple[float, float] | None]
) -> tuple[float, float] | None:
    """Return the interval of the plain mean of independent numbers from theirs; None if one is missing.

    Distances to the lower ends add in quadrature, and so do those to the upper ends (Zou & Donner 2008), so
    that lopsided intervals give a lopsided one.
    """
    present = [interval for interval in intervals if interval is not None]
    if len(present) < len(values):
        return None
    mean, count = math.fsum(values) / len(values), len(values)
    below = math.sqrt(sum((value - low) ** 2 for value, (low, _) in zip(values, present, strict=True)))
    above = math.sqrt(sum((high - value) ** 2 for value, (_, high) in zip(values, present, strict=True)))
    return mean - below / count, mean + above / count
