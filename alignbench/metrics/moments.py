"""Mean and scatter of feature rows, gathered piece by piece and merged exactly.

Sums of squares are never kept: with features far from zero they lose the variance to rounding. Each piece
is centred on its own mean and merged by the pairwise update of Chan, Golub and LeVeque (1983), so the
result does not depend on how the rows were cut beyond float64 rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alignbench.errors import UserError
from alignbench.metrics.arrays import Device, as_rows, require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """First and second moments of N rows, float64."""

    count: int
    """N ≥ 1."""
    mean: np.ndarray
    """[D]."""
    scatter: np.ndarray
    """[D, D], Σ (x − mean)(x − mean)ᵀ."""

    @staticmethod
    def of(rows: np.ndarray) -> Moments:
        """Return the moments of [N, D] rows, N ≥ 1."""
        return moments_of([rows])

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of rows together."""
        gap = other.mean - self.mean
        count = self.count + other.count
        mean = self.mean + gap * (other.count / count)
        between = np.outer(gap, gap) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> np.ndarray:
        """[D, D], the scatter over N − 1.

        Raises:
            UserError: a single row has no covariance.
        """
        require(self.count, 2, what="images", why="a covariance")
        return self.scatter / (self.count - 1)


def moments_of(shards: Iterable[np.ndarray], device: Device = None) -> Moments:
    """Return the moments of all rows of all shards [n, D], read one at a time; empty ones are skipped.

    Memory: one shard and two D × D.

    Raises:
        ValueError: shards of different widths.
        UserError: no rows at all, or a value that is not finite.
    """
    count = 0
    mean: Tensor | None = None
    scatter: Tensor | None = None
    for shard in shards:
        rows = as_rows(shard, device)
        new = rows.shape[0]
        if not new:
            continue
        if mean is not None and mean.shape[0] != rows.shape[1]:
            raise ValueError(f"shards of {mean.shape[0]} and of {rows.shape[1]} features")
        centre = rows.mean(dim=0)
        rows -= centre
        rest = rows.mean(dim=0)  # what rounding left over; matters for rows far from zero
        rows -= rest
        centre += rest
        if mean is None or scatter is None:
            count, mean, scatter = new, centre, rows.T @ rows
            continue
        gap = centre - mean
        mean = mean + gap * (new / (count + new))
        scatter.addmm_(rows.T, rows).addr_(gap, gap, alpha=count * new / (count + new))
        count += new
    if mean is None or scatter is None:
        raise UserError("no features to take moments of", fix="use more images")
    return Moments(count, mean.cpu().numpy(), scatter.cpu().numpy())
