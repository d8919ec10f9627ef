"""Improved precision and recall (arXiv:1904.06991), density and coverage (arXiv:2002.09797), without ever
holding all distances.

Distances come from matrix products, whose rounding would decide on its own about rows that coincide or lie
on a sphere; every pair within reach of that rounding is therefore computed again from the differences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignbench.metrics.arrays import Device, as_rows, require

TIE = 1 + 1e-12
"""Squared distances whose ratio is below this are equal: order of summation must not break a tie."""
PAIR_VALUES = 1 << 22
"""Feature differences in memory at a time."""


@dataclass(frozen=True)
class Manifold:
    """Which rows of each set lie in a ball around a row of the other."""

    precision: float
    """Share of generated rows near real ones."""
    recall: float
    """Share of real rows near generated ones."""
    inside_real: np.ndarray
    """[N] bool, one per generated row."""
    inside_generated: np.ndarray
    """[M] bool, one per real row."""


@dataclass(frozen=True)
class RealBalls:
    """How generated rows fill the balls around real ones."""

    held_by: np.ndarray
    """[N] int64: the real balls that each generated row lies in."""
    reached: np.ndarray
    """[M] bool: whether any generated row lies in the ball of a real one."""
    k: int

    @property
    def density(self) -> float:
        """Balls that a generated row lies in, over k, mean over rows; about 1 for equal laws, can be more."""
        return float(self.held_by.mean()) / self.k

    @property
    def coverage(self) -> float:
        """Share of real balls that hold a generated row."""
        return float(self.reached.mean())


def precision_recall(
    generated: np.ndarray, real: np.ndarray, *, k: int, block: int = 2048, device: Device = None
) -> Manifold:
    """Return the shares of each set inside the other's k-nearest-neighbour balls.

    A ball reaches to the k-th nearest *other* row of its own set, copies counting as rows; a row on the
    sphere is inside.

    Args:
        generated, real: [N, D] and [M, D], any float type.
        k: neighbours, ≥ 1; N, M > k.
        block: distances are computed block × block at a time. Peak memory: (N + M)·D float64 for the
            rows and about fifteen float64 blocks, 0.5 GB with the default; the result does not depend on it.
        device: where it is computed, in float64 whatever the input.

    Raises:
        ValueError: sets of different width, or k < 1.
        UserError: a set with at most k rows, or a value that is not finite.
    """
    if k < 1 or block < 1:
        raise ValueError(f"{k} neighbours in blocks of {block}")
    require(len(generated), k + 1, what="generated images", why=f"a distance to neighbour {k}")
    ours, theirs = _prepared(generated, real, k, device)
    inside_real = _inside(ours, theirs, _squared_radii(theirs, k, block), block)
    inside_generated = _inside(theirs, ours, _squared_radii(ours, k, block), block)
    return Manifold(float(inside_real.mean()), float(inside_generated.mean()), inside_real, inside_generated)


def real_balls(
    generated: np.ndarray, real: np.ndarray, *, k: int, block: int = 2048, device: Device = None
) -> RealBalls:
    """Return what density and coverage are made of: generated rows in k-nearest-neighbour balls of real ones.

    As in the authors' program a row on the sphere is outside, unlike in `precision_recall`. Coverage grows
    with the number of generated rows.

    Args and errors: as of `precision_recall`, but one generated row is enough.
    """
    if k < 1 or block < 1:
        raise ValueError(f"{k} neighbours in blocks of {block}")
    require(len(generated), 1, what="generated images", why="a density")
    ours, theirs = _prepared(generated, real, k, device)
    squared_radii = _squared_radii(theirs, k, block)
    norms, centre_norms = ours.square().sum(dim=1), theirs.square().sum(dim=1)
    held = torch.zeros(len(ours), dtype=torch.int64, device=ours.device)
    reached = torch.zeros(len(theirs), dtype=torch.bool, device=ours.device)
    for here in _blocks(len(ours), block):
        for there in _blocks(len(theirs), block):
            limit = squared_radii[there.start : there.stop] / TIE
            low, high = _bounds(ours, norms, here, theirs, centre_norms, there)
            inside = high < limit
            unsure = (low < limit) & ~inside
            inside[unsure] = _exact(ours, here, theirs, there, unsure) < limit.expand_as(low)[unsure]
            held[here.start : here.stop] += inside.sum(dim=1)
            reached[there.start : there.stop] |= inside.any(dim=0)
    return RealBalls(held.cpu().numpy(), reached.cpu().numpy(), k)


def _prepared(generated: np.ndarray, real: np.ndarray, k: int, device: Device) -> tuple[Tensor, Tensor]:
    """Both sets in float64 about the mean of the real one."""
    require(len(real), k + 1, what="real images", why=f"a distance to neighbour {k}")
    ours, theirs = as_rows(generated, device), as_rows(real, device)
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"sets of {ours.shape[1]} and of {theirs.shape[1]} features")
    # Near the origin, rounding is smallest; rows that are equal stay equal.
    centre = theirs.mean(dim=0)
    return ours - centre, theirs - centre


def _squared_radii(rows: Tensor, k: int, block: int) -> Tensor:
    """[N, D] → [N] squared distance of each row to its k-th nearest other row."""
    norms = rows.square().sum(dim=1)
    radii = []
    for here in _blocks(len(rows), block):
        nearest = rows.new_full((len(here), k), torch.inf)
        for there in _blocks(len(rows), block):
            low, high = _bounds(rows, norms, here, rows, norms, there)
            itself = here == there
            if itself:
                high.fill_diagonal_(torch.inf)
            limit = nearest[:, -1]
            if len(there) >= k:
                limit = limit.minimum(high.topk(k, largest=False).values[:, -1])
            # Where k copies are known, nothing can be nearer.
            possible = (low <= limit[:, None]) & (nearest[:, -1:] > 0)
            if itself:
                possible.fill_diagonal_(False)
            exact = torch.full_like(low, torch.inf)
            exact[possible] = _exact(rows, here, rows, there, possible)
            nearest = torch.cat([nearest, exact], dim=1).topk(k, largest=False).values
        radii.append(nearest[:, -1])
    return torch.cat(radii)


def _inside(rows: Tensor, centres: Tensor, squared_radii: Tensor, block: int) -> np.ndarray:
    """Say of each of [N, D] rows whether it lies in a ball around one of [M, D] centres: [N] bool."""
    norms, centre_norms = rows.square().sum(dim=1), centres.square().sum(dim=1)
    covered = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for here in _blocks(len(rows), block):
        inside = covered[here.start : here.stop]
        for there in _blocks(len(centres), block):
            radii = squared_radii[there.start : there.stop]
            low, high = _bounds(rows, norms, here, centres, centre_norms, there)
            inside |= (high <= radii).any(dim=1)
            unsure = (low <= radii * TIE) & ~inside[:, None]
            exact = _exact(rows, here, centres, there, unsure)
            row, column = unsure.nonzero(as_tuple=True)
            inside[row[exact <= radii[column] * TIE]] = True
    return covered.cpu().numpy()


def _blocks(count: int, block: int) -> Iterator[range]:
    for start in range(0, count, block):
        yield range(start, min(start + block, count))


def _bounds(
    a: Tensor, a_norms: Tensor, here: range, b: Tensor, b_norms: Tensor, there: range
) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds [n, m] of the squared distances of two blocks of rows."""
    norms = a_norms[here.start : here.stop, None] + b_norms[there.start : there.stop]
    products = a[here.start : here.stop] @ b[there.start : there.stop].T
    # Rounding of a dot product of D terms, however it is summed, and of the terms around it.
    slack = norms * ((a.shape[1] + 8) * torch.finfo(a.dtype).eps)
    distances = norms.sub_(products, alpha=2)
    return distances - slack, distances + slack


def _exact(a: Tensor, here: range, b: Tensor, there: range, wanted: Tensor) -> Tensor:
    """Squared distances of the pairs marked in [n, m] `wanted`, from differences, in row-major order."""
    row, column = wanted.nonzero(as_tuple=True)
    size = max(1, PAIR_VALUES // a.shape[1])
    parts = [
        (a[here.start + i] - b[there.start + j]).square_().sum(dim=1)
        for i, j in zip(row.split(size), column.split(size), strict=True)
    ]
    return torch.cat(parts) if parts else a.new_zeros(0)
