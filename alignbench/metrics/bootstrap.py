"""Sampling error and finite-sample bias of a Fréchet distance, from the features of one image set.

The reference is taken as given: only the generated rows are resampled. A resample is a vector of weights
(how often each row was drawn), so no rows are copied and what depends on the reference is done once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignbench.metrics.arrays import Device, as_moments, as_rows, require
from alignbench.metrics.frechet import covariance_root
from alignbench.metrics.intervals import Z95

BLOCK = 8192
"""Rows whose weighted copy is in memory at a time."""
POINTS = 15
"""Subset sizes of the extrapolation, as in arXiv:1911.07023."""


@dataclass(frozen=True)
class Bootstrap:
    """A distance with what resampling says about it."""

    value: float
    """The plain distance of all rows."""
    resampled: tuple[float, ...]
    """The distances of the resamples."""

    @property
    def bias(self) -> float:
        """Mean of the resampled distances minus `value`: an estimate of the finite-sample bias of `value`."""
        return float(np.mean(self.resampled)) - self.value

    @property
    def sd(self) -> float:
        """Standard deviation of the resampled distances."""
        return float(np.std(self.resampled, ddof=1))

    @property
    def corrected(self) -> float:
        """The distance without its estimated bias; can be negative near 0."""
        return self.value - self.bias

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of what `value` would be in other draws of as many images."""
        return self.value - Z95 * self.sd, self.value + Z95 * self.sd

    @property
    def corrected_interval(self) -> tuple[float, float]:
        """95 % interval for the distance that infinitely many images would have."""
        return self.corrected - Z95 * self.sd, self.corrected + Z95 * self.sd


class WeightedFrechet:
    """Fréchet distance of weighted rows to a fixed Gaussian, cheap for many weightings.

    The root of Σw Σr has the eigenvalues of a matrix over features (D × D) or over rows (N × N), whichever
    is smaller.

    Args:
        features: [N, D], N ≥ 2, any float type; computed in float64.
        mean, cov: [D] and [D, D] of the reference.
        device: where it is computed. Memory: two copies of the features, and a few of the smaller matrix.

    Raises:
        ValueError: shapes that do not fit together.
        UserError: fewer than two rows, or a value that is not finite.
    """

    def __init__(
        self, features: np.ndarray, mean: np.ndarray, cov: np.ndarray, *, device: Device = None
    ) -> None:
        require(len(features), 2, what="images", why="a covariance")
        reference_mean, reference_cov = as_moments(mean, cov, device)
        self._rows = as_rows(features, device)
        if self._rows.shape[1] != len(reference_mean):
            raise ValueError(f"{self._rows.shape[1]} features, {len(reference_mean)} in the reference")
        centre = self._rows.mean(dim=0)
        self._rows -= centre
        self._gap = centre - reference_mean
        self._norms = self._rows.square().sum(dim=1)
        self._trace = reference_cov.trace()
        self._gram: Tensor | None = None
        self._projected: Tensor | None = None
        if len(self._rows) <= len(reference_mean):
            self._gram = self._rows @ reference_cov @ self._rows.T
        else:
            self._projected = self._rows @ covariance_root(reference_cov)

    def __len__(self) -> int:
        return len(self._rows)

    def distance(self, weights: np.ndarray) -> float:
        """Return the distance of the rows, row i taken `weights[i]` times: [N] whole numbers ≥ 0, sum ≥ 2."""
        w = torch.from_numpy(np.asarray(weights, dtype=np.float64)).to(self._rows.device)
        total = w.sum()
        shift = (w @ self._rows) / total
        trace = (w @ self._norms - total * shift.square().sum()) / (total - 1)
        matrix = self._root_matrix(w) / (total - 1)
        # Rounding makes zero eigenvalues slightly negative.
        cross = torch.linalg.eigvalsh(matrix).clamp_min(0).sqrt().sum()
        return float((self._gap + shift).square().sum() + trace + self._trace - 2 * cross)

    def _root_matrix(self, w: Tensor) -> Tensor:
        """Scatter whose eigenvalues are those of (N − 1)·Σw Σr, zeros aside."""
        drawn = w > 0
        if self._gram is not None:
            return _centred_gram(self._gram[drawn][:, drawn], w[drawn])
        assert self._projected is not None
        if int(drawn.sum()) <= self._projected.shape[1]:
            rows = self._projected[drawn]
            return _centred_gram(rows @ rows.T, w[drawn])
        mean = (w @ self._projected) / w.sum()
        scatter = torch.outer(mean, mean) * -w.sum()
        for part, weight in zip(self._projected.split(BLOCK), w.split(BLOCK), strict=True):
            scatter.addmm_(part.T * weight, part)
        return scatter


def _centred_gram(gram: Tensor, w: Tensor) -> Tensor:
    """Inner products [n, n] of weighted rows about their weighted mean."""
    share = w / w.sum()
    with_mean = gram @ share
    centred = gram - with_mean - with_mean[:, None] + share @ with_mean
    return centred * w.sqrt() * w.sqrt()[:, None]


def distances_of(
    features: np.ndarray, mean: np.ndarray, cov: np.ndarray, weights: np.ndarray, device: Device = None
) -> list[float]:
    """Return the Fréchet distance of the rows for each weighting [K, N]; see `WeightedFrechet`."""
    frechet = WeightedFrechet(features, mean, cov, device=device)
    return [frechet.distance(one) for one in weights]


Distances = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Device], list[float]]
_distances: ContextVar[Distances] = ContextVar("distances", default=distances_of)


@contextmanager
def computed_by(distances: Distances) -> Iterator[None]:
    """Let something else than this process alone compute the distances of resamples inside the block.

    Args:
        distances: gives what `distances_of` gives.
    """
    before = _distances.set(distances)
    try:
        yield
    finally:
        _distances.reset(before)


def resamples(count: int, *, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each of `count` images is drawn, [count] int64 with sum `count`, for each replicate.

    The same for every set of as many images, whatever is computed of them.
    """
    rng = np.random.default_rng(seed)
    for _ in range(replicates):
        yield rng.multinomial(count, np.full(count, 1 / count))


def frechet_bootstrap(
    features: np.ndarray,
    mean: np.ndarray,
    cov: np.ndarray,
    *,
    replicates: int,
    seed: int,
    device: Device = None,
) -> Bootstrap:
    """Resample the rows with replacement and see how their Fréchet distance moves.

    The resampled distances lie above `value` by about as much as `value` lies above the truth, so their
    percentiles do not cover it; `corrected` and `corrected_interval` undo the shift.

    Args:
        features: [N, D] of the generated images, N ≥ 2.
        mean, cov: [D] and [D, D] of the reference.
        replicates: resamples, ≥ 2; each costs one eigen-solve of min(N, D) at most.

    Raises:
        ValueError: shapes that do not fit together, or fewer than two replicates.
        UserError: too few rows, or a value that is not finite.
    """
    if replicates < 2:
        raise ValueError(f"{replicates} replicates; a standard deviation needs two")
    count = len(features)
    require(count, 2, what="images", why="a covariance")
    weights = np.stack([np.ones(count, dtype=np.int64), *resamples(count, replicates=replicates, seed=seed)])
    value, *drawn = _distances.get()(features, mean, cov, weights, device)
    return Bootstrap(value, tuple(drawn))


def frechet_at_infinity(
    features: np.ndarray,
    mean: np.ndarray,
    cov: np.ndarray,
    *,
    seed: int,
    sizes: Sequence[int] = (),
    device: Device = None,
) -> float:
    """Extrapolate the Fréchet distance to infinitely many images (FID∞, arXiv:1911.07023).

    A straight line is fitted to the distances of random subsets over 1/size; its intercept is returned.
    Deviation: the paper draws its images with quasi-random numbers; subsets of given images are used here.

    Args:
        features: [N, D] of the generated images.
        mean, cov: [D] and [D, D] of the reference.
        sizes: rows per subset, each in [2, N]; empty: 15 sizes evenly spaced from N/10 to N, the first one
            at least 2·D if that leaves half of the range: below, distances do not lie on a line. With
            N < 4·D the result means nothing.

    Raises:
        ValueError: shapes that do not fit together, or sizes out of range.
        UserError: too few rows, or a value that is not finite.
    """
    count = len(features)
    if not sizes:
        require(count, 2 * POINTS, what="images", why="an extrapolation")
        smallest = min(max(count / 10, 2 * len(mean)), count / 2)
        sizes = [round(size) for size in np.linspace(smallest, count, POINTS)]
    if min(sizes) < 2 or max(sizes) > count or len(set(sizes)) < 2:
        raise ValueError(f"subset sizes {list(sizes)} of {count} rows")
    rng = np.random.default_rng(seed)
    weights = np.zeros((len(sizes), count), dtype=np.int64)
    for number, size in enumerate(sizes):
        weights[number, rng.permutation(count)[:size]] = 1
    values = _distances.get()(features, mean, cov, weights, device)
    return float(np.polynomial.polynomial.polyfit(1 / np.asarray(sizes, dtype=np.float64), values, 1)[0])
