"""What is computed of two sets of features: metrics of one kind each, with the error of one image set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from alignbench.api import Metric
from alignbench.metrics.bootstrap import Bootstrap, WeightedFrechet, frechet_bootstrap, resamples
from alignbench.metrics.intervals import Z95, wilson
from alignbench.metrics.mind import mind
from alignbench.metrics.mmd import gaussian_mmd
from alignbench.metrics.moments import moments_of
from alignbench.metrics.precision_recall import precision_recall, real_balls

SIGMA, SCALE = 10.0, 1000.0
"""Width of CMMD's kernel between features of unit length, and its factor."""


class FeatureComparison(Protocol):
    """Some metrics of one kind."""

    def __call__(self, generated: np.ndarray, real: np.ndarray) -> list[Metric]:
        """Compare [N, D] with [M, D]."""


@dataclass(frozen=True)
class Resampling:
    """How metrics of one set are given an error, and where they are computed."""

    replicates: int
    """Below 2: no intervals."""
    seed: int
    device: torch.device

    def metric(self, name: str, values: Sequence[float], n: int) -> Metric:
        """Return the first value with the interval that the others, of resamples, give it."""
        value, *drawn = values
        if len(drawn) < 2:
            return Metric(name, value, n)
        bootstrap = Bootstrap(value, tuple(drawn))
        return Metric(name, value, n, bootstrap.interval, bootstrap.resampled)

    def weights(self, count: int) -> np.ndarray:
        """[1 + replicates, count]: every row once, then what was drawn."""
        return np.stack([np.ones(count, dtype=np.int64), *self.draws(count)])

    def draws(self, count: int) -> list[np.ndarray]:
        if self.replicates < 2:
            return []
        return list(resamples(count, replicates=self.replicates, seed=self.seed))


@dataclass(frozen=True)
class FrechetOf:
    """Fréchet distance, and with `corrected` the same less the bias that resampling sees."""

    name: str
    resampling: Resampling
    corrected: str = ""

    def __call__(self, generated: np.ndarray, real: np.ndarray) -> list[Metric]:
        draws, count = self.resampling, len(generated)
        unknown = [Metric(self.corrected, math.nan, count)] if self.corrected else []
        moments = moments_of([real], draws.device)
        target = (moments.mean, moments.covariance)
        if draws.replicates < 2:
            frechet = WeightedFrechet(generated, *target, device=draws.device)
            return [Metric(self.name, frechet.distance(np.ones(count)), count), *unknown]
        found = frechet_bootstrap(
            generated, *target, replicates=draws.replicates, seed=draws.seed, device=draws.device
        )
        metrics = [Metric(self.name, found.value, count, found.interval, found.resampled)]
        # With fewer images than features the bias is not seen: docs/evaluators/error-bars.md.
        if self.corrected and count >= generated.shape[1]:
            return [*metrics, Metric(self.corrected, found.corrected, count, found.corrected_interval)]
        return [*metrics, *unknown]


@dataclass(frozen=True)
class ManifoldsOf:
    """Precision, recall, density and coverage of as many images of both sets."""

    suffix: str
    k: int
    limit: int
    """Images of each set at most, spread evenly over it: coverage grows with their number."""
    resampling: Resampling

    def __call__(self, generated: np.ndarray, real: np.ndarray) -> list[Metric]:
        count = min(self.limit, len(generated), len(real))
        ours, theirs = (rows[np.arange(count) * len(rows) // count] for rows in (generated, real))
        device = self.resampling.device
        near = precision_recall(ours, theirs, k=self.k, device=device)
        balls = real_balls(ours, theirs, k=self.k, device=device)
        draws, held = self.resampling.draws(count), balls.held_by / self.k
        half = Z95 * float(held.std(ddof=1)) / count**0.5
        shares, densities = (
            tuple(float(times @ rows) / count for times in draws)
            for rows in (near.inside_real.astype(np.float64), held)
        )
        around = (balls.density - half, balls.density + half)
        # Recall and coverage are shares of real images: other generated ones would move balls or fill others.
        return [
            Metric(f"precision{self.suffix}", near.precision, count, wilson(near.precision, count), shares),
            Metric(f"recall{self.suffix}", near.recall, count, wilson(near.recall, count)),
            Metric(f"density{self.suffix}", balls.density, count, around, densities),
            Metric(f"coverage{self.suffix}", balls.coverage, count, wilson(balls.coverage, count)),
        ]


@dataclass(frozen=True)
class KernelOf:
    """CMMD's squared kernel distance of features brought to unit length, times 1000."""

    name: str
    resampling: Resampling

    def __call__(self, generated: np.ndarray, real: np.ndarray) -> list[Metric]:
        ours, theirs = map(_unit, (generated, real))
        weights, device = self.resampling.weights(len(ours)), self.resampling.device
        values = gaussian_mmd(ours, theirs, weights, sigma=SIGMA, device=device)
        return [self.resampling.metric(self.name, [SCALE * value for value in values], len(ours))]


def _unit(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    # A row of zeros, which a dead layer gives, has no direction and stays.
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(lengths > 0, lengths, 1))


@dataclass(frozen=True)
class SlicedOf:
    """MIND."""

    name: str
    directions: int
    seed: int
    resampling: Resampling

    def __call__(self, generated: np.ndarray, real: np.ndarray) -> list[Metric]:
        draws = self.resampling
        values = mind(
            generated,
            real,
            directions=self.directions,
            seed=self.seed,
            replicates=draws.replicates if draws.replicates > 1 else 0,
            resample_seed=draws.seed,
            device=draws.device,
        )
        return [draws.metric(self.name, values, min(len(generated), len(real)))]
