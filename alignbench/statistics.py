"""Means, intervals and comparisons for tables: Student's t and Welch's t, nothing heavier.

The t quantile is computed here because importing scipy.stats takes longer than a whole leaderboard; a
test compares the two. Intervals say what they were taken over: seeds of training or seeds of sampling.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LEVEL = 0.95

Unit = Literal["training seeds", "sampling seeds"]
"""What the independent values behind a mean are."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval."""

    mean: float
    low: float | None
    """None where one value allows no interval."""
    high: float | None
    n: int
    """Independent values."""
    kind: Unit

    @property
    def half_width(self) -> float | None:
        return None if self.high is None else self.high - self.mean


@dataclass(frozen=True)
class Difference:
    """Mean of a minus mean of b."""

    mean: float
    low: float | None
    """None where the difference cannot be tested (fewer than two values on a side)."""
    high: float | None
    significant: bool
    """The interval excludes 0; False where nothing could be tested."""

    @property
    def tested(self) -> bool:
        return self.low is not None


def units(runs: Sequence[Sequence[float]]) -> tuple[list[float], Unit]:
    """Return the independent values of nested data.

    Values of one trained model share its training luck, so with several training seeds each run counts
    once, by its mean over sampling seeds. A single run leaves only its sampling seeds.

    Args:
        runs: one sequence of values per training seed, one value per sampling seed.
    """
    if not runs or not all(runs):
        raise ValueError("every run needs at least one value")
    if len(runs) == 1:
        return list(runs[0]), "sampling seeds"
    return [_mean(run) for run in runs], "training seeds"


def mean_interval(
    values: Sequence[float], *, level: float = LEVEL, kind: Unit = "sampling seeds"
) -> Interval:
    """Return the mean and its Student-t interval; a single value has none."""
    mean = _mean(values)
    if len(values) < 2:
        return Interval(mean, None, None, 1, kind)
    half = t_critical(level, len(values) - 1) * math.sqrt(_variance(values) / len(values))
    return Interval(mean, mean - half, mean + half, len(values), kind)


def nested_interval(runs: Sequence[Sequence[float]], *, level: float = LEVEL) -> Interval:
    """Return the interval over the independent values of nested data; see `units`."""
    values, kind = units(runs)
    return mean_interval(values, level=level, kind=kind)


def difference(a: Sequence[float], b: Sequence[float], *, level: float = LEVEL) -> Difference:
    """Compare two means without assuming equal variances.

    Source: Welch 1947, degrees of freedom after Satterthwaite 1946. No correction for the number of
    comparisons. Pairs that share a sampling seed are treated as independent, which errs on the side of
    "not significant" where sharing makes them move together.
    """
    mean = _mean(a) - _mean(b)
    if len(a) < 2 or len(b) < 2:
        return Difference(mean, None, None, False)
    part_a, part_b = _variance(a) / len(a), _variance(b) / len(b)
    squared = part_a + part_b
    if squared == 0.0:  # two exact constants
        return Difference(mean, mean, mean, mean != 0.0)
    degrees = squared**2 / (part_a**2 / (len(a) - 1) + part_b**2 / (len(b) - 1))
    half = t_critical(level, degrees) * math.sqrt(squared)
    return Difference(mean, mean - half, mean + half, abs(mean) > half)


@functools.cache
def t_critical(level: float, degrees: float) -> float:
    """Return t with P(|T| ≤ t) = level for Student's t.

    Solves I_x(1/2, degrees/2) = level for x = t² / (degrees + t²) by bisection.
    """
    if not 0.0 < level < 1.0 or degrees <= 0.0:
        raise ValueError(f"no t quantile at level {level} with {degrees} degrees of freedom")
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return math.sqrt(degrees * low / (1.0 - low))
        if _incomplete_beta(middle, 0.5, degrees / 2) < level:
            low = middle
        else:
            high = middle


def _mean(values: Sequence[float]) -> float:
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"no mean of {list(values)}")
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), by its continued fraction."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast only below this
        return 1.0 - _incomplete_beta(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * _beta_fraction(x, a, b))


def _beta_fraction(x: float, a: float, b: float) -> float:
    """Return 1 + d1/(1 + d2/(1 + …)), DLMF 8.17.22, by the modified Lentz algorithm."""
    value, c, d = 1.0, 1.0, 0.0
    for step in range(1, 10_000):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / (1.0 + term * d)
        c = 1.0 + term / c
        value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            return value
    raise ArithmeticError(f"incomplete beta did not converge at x={x}, a={a}, b={b}")
