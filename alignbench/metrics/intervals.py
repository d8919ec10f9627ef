"""Means, intervals and comparisons for tables: Student's t and Welch's t. Imports scipy on use and no torch.

Intervals say what they were taken over: seeds of training, seeds of sampling, or the images of one set, whose
sampling error its evaluator estimated.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LEVEL = 0.95
"""Of every interval here, unless another one is asked for."""
Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""

Unit = Literal["training seeds", "sampling seeds", "images of one set"]
"""What varies behind an interval: independent values, or the images a single value was computed from."""


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
        if self.low is None or self.high is None:
            return None
        # An interval of one set need not have the value in its middle.
        return (self.high - self.low) / 2 if self.of_one_set else self.high - self.mean

    @property
    def of_one_set(self) -> bool:
        """Whether it is the sampling error of a single image set."""
        return self.kind == "images of one set"

    @property
    def set_sd(self) -> float | None:
        """Standard deviation of a single value, from the interval of its image set; None without one."""
        half = self.half_width
        return None if half is None or not self.of_one_set else half / Z95


@dataclass(frozen=True)
class Difference:
    """Mean of a minus mean of b."""

    mean: float
    low: float | None = None
    """None where the difference cannot be tested (fewer than two values on a side)."""
    high: float | None = None

    @property
    def tested(self) -> bool:
        return self.low is not None

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0; False where nothing could be tested."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


def units(runs: Sequence[Sequence[float]]) -> tuple[list[float], Unit]:
    """Return the independent values of nested data: for each training seed, one value per sampling seed.

    Values of one trained model share its training luck, so with several training seeds each run counts
    once, by its mean over sampling seeds. A single run leaves only its sampling seeds.
    """
    if not runs or not all(runs):
        raise ValueError("every run needs at least one value")
    if len(runs) == 1:
        return list(runs[0]), "sampling seeds"
    return [_mean(run) for run in runs], "training seeds"


def mean_interval(
    values: Sequence[float], *, kind: Unit = "sampling seeds", level: float = LEVEL
) -> Interval:
    """Return the mean and its Student-t interval; a single value has none."""
    mean = _mean(values)
    if len(values) < 2:
        return Interval(mean, None, None, 1, kind)
    half = t_critical(level, len(values) - 1) * math.sqrt(_variance(values) / len(values))
    return Interval(mean, mean - half, mean + half, len(values), kind)


def set_interval(value: float, bounds: Sequence[float]) -> Interval:
    """Return the interval that an evaluator gave to the single value of one image set."""
    low, high = bounds
    return Interval(_mean([value]), low, high, 1, "images of one set")


def difference(
    a: Sequence[float],
    b: Sequence[float],
    *,
    sd_a: float | None = None,
    sd_b: float | None = None,
    level: float = LEVEL,
) -> Difference:
    """Compare two means without assuming equal variances.

    The variance of a side with several values comes from their spread. That of a single value is the square
    of its given standard deviation, taken as known: with one on both sides this is a normal test, with one
    on one side only that side's degrees of freedom are infinite.

    Source: Welch 1947, degrees of freedom after Satterthwaite 1946. Who makes several comparisons corrects
    `level`. Pairs that share a sampling seed are treated as independent, which errs on the side of
    "not significant" where sharing makes them move together.

    Args:
        sd_a: sampling error of a's value if a has only one; None: unknown, nothing can be tested.
    """
    mean = _mean(a) - _mean(b)
    (variance_a, degrees_a), (variance_b, degrees_b) = _error_of_mean(a, sd_a), _error_of_mean(b, sd_b)
    if variance_a is None or variance_b is None:
        return Difference(mean)
    squared = variance_a + variance_b
    if squared == 0.0:  # two exact constants
        return Difference(mean, mean, mean)
    uncertain = variance_a**2 / degrees_a + variance_b**2 / degrees_b
    degrees = squared**2 / uncertain if uncertain > 0.0 else math.inf
    return _around(mean, t_critical(level, degrees) * math.sqrt(squared))


def _error_of_mean(values: Sequence[float], sd: float | None) -> tuple[float | None, float]:
    """Return the variance of a mean, None if it is unknown, and its degrees of freedom."""
    if len(values) > 1:
        return _variance(values) / len(values), len(values) - 1
    return None if sd is None else sd**2, math.inf


def paired_difference(a: Sequence[float], b: Sequence[float], *, level: float = LEVEL) -> Difference:
    """Compare the means of values that belong together pair by pair; Student's t over the differences.

    A single pair cannot be tested.

    Raises:
        ValueError: a and b differ in length.
    """
    interval = mean_interval([x - y for x, y in zip(a, b, strict=True)], level=level)
    return Difference(interval.mean, interval.low, interval.high)


def resampled_difference(
    a: float, b: float, drawn_a: Sequence[float], drawn_b: Sequence[float], *, level: float = LEVEL
) -> Difference:
    """Compare two metrics of one image set each by what resampling, at least twice, does to their difference.

    Resample k of both sets holds the same image numbers, so what images of a pair have in common cancels.
    The interval is what the difference would be in other draws of as many pairs; a bias that both metrics
    have alike cancels as well. It is Student's t with one degree of freedom less than there are resamples.

    Raises:
        ValueError: other numbers of resamples.
    """
    differences = [x - y for x, y in zip(drawn_a, drawn_b, strict=True)]
    return _around(a - b, t_critical(level, len(differences) - 1) * math.sqrt(_variance(differences)))


def _around(mean: float, half: float) -> Difference:
    return Difference(mean, mean - half, mean + half)


@functools.cache
def t_critical(level: float, degrees: float) -> float:
    """Return t with P(|T| ≤ t) = level for Student's t; infinite degrees are the normal distribution."""
    if not 0.0 < level < 1.0 or degrees <= 0.0:
        raise ValueError(f"no t quantile at level {level} with {degrees} degrees of freedom")
    from scipy import special

    upper = (1.0 + level) / 2
    return float(special.ndtri(upper) if math.isinf(degrees) else special.stdtrit(degrees, upper))


def _mean(values: Sequence[float]) -> float:
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"no mean of {list(values)}")
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def wilson(share: float, count: float) -> tuple[float, float]:
    """95 % interval of a share of `count` independent draws (Wilson 1927): has a width even at 0 and 1."""
    spread = Z95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    # At the ends the exact bound is the share itself; rounding must not move it.
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)
