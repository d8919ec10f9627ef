"""Sampling error of a mean whose rows come in groups: images of one prompt share what the prompt brings."""

from __future__ import annotations

import numpy as np

REPLICATES = 2000
LEVEL = 0.95


def resampled_interval(
    values: np.ndarray, groups: np.ndarray, *, replicates: int = REPLICATES, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of the mean under resampling of whole groups.

    Whole groups, because drawing single images would take four images of one prompt for four independent
    ones and make the interval too narrow. Plain percentiles, because a mean is not biased by resampling.

    Args:
        values: [N] numbers.
        groups: [N] the group of each; any values that can be compared.
        replicates: resamplings.
        seed: of them.

    Returns:
        (low, high), or None for a single group, of which nothing can be known.
    """
    _, member = np.unique(groups, return_inverse=True)
    member = member.reshape(-1)
    count = int(member.max()) + 1 if len(member) else 0
    if count < 2:
        return None
    sums = np.bincount(member, weights=values.astype(np.float64), minlength=count)
    sizes = np.bincount(member, minlength=count).astype(np.float64)
    numbers = np.random.default_rng(seed)
    means = np.empty(replicates)
    for replicate in range(replicates):
        drawn = numbers.integers(0, count, size=count)
        means[replicate] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
