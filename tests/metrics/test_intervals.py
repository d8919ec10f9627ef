"""Intervals and comparisons against scipy's own tests, closed forms and figures worked out by hand."""

from __future__ import annotations

import math

import pytest
from scipy import optimize, stats

from alignbench.metrics.intervals import (
    Z95,
    difference,
    mean_interval,
    paired_difference,
    resampled_difference,
    set_interval,
    t_critical,
    units,
)
from tests.metrics.paired_study import study

A = [1.60, 1.75, 1.68, 1.71]
B = [2.40, 2.51, 2.13]


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_t_critical_has_the_closed_forms(level: float) -> None:
    assert t_critical(level, 1) == pytest.approx(math.tan(math.pi / 2 * level), rel=1e-12)
    assert t_critical(level, 2) == pytest.approx(level * math.sqrt(2 / (1 - level**2)), rel=1e-12)
    normal = t_critical(level, math.inf)
    assert math.erf(normal / math.sqrt(2)) == pytest.approx(level, rel=1e-12)
    assert level != 0.95 or normal == pytest.approx(Z95, rel=1e-15)
    assert t_critical(level, 1e7) == pytest.approx(normal, rel=1e-6)
    for degrees in (1.7, 4.25, 31.5, 200, 5000):  # Welch's degrees are no whole numbers
        assert 1 - 2 * stats.t.sf(t_critical(level, degrees), degrees) == pytest.approx(level, rel=1e-9)


def test_mean_interval_is_students() -> None:
    found = mean_interval(A)
    low, high = stats.t.interval(0.95, len(A) - 1, loc=sum(A) / len(A), scale=stats.sem(A))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert (found.n, found.kind) == (4, "sampling seeds")
    assert found.half_width == pytest.approx((high - low) / 2, rel=1e-12)
    # mean 2, standard deviation 1, t(0.975, 2) = 4.302653
    assert mean_interval([1.0, 2.0, 3.0]).half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert mean_interval([0.1, 0.1, 0.1]).half_width == pytest.approx(0.0, abs=1e-15)
    alone = mean_interval([1.5])
    assert (alone.mean, alone.low, alone.high, alone.half_width, alone.n) == (1.5, None, None, None, 1)


def test_several_training_seeds_count_once_each() -> None:
    assert units([[1.0, 3.0], [3.0, 5.0], [5.0, 7.0]]) == ([2.0, 4.0, 6.0], "training seeds")
    assert units([A]) == (A, "sampling seeds")


def test_what_has_no_interval_is_refused() -> None:
    for level, degrees in ((0.0, 3), (1.0, 3), (0.95, 0)):
        with pytest.raises(ValueError, match="no t quantile"):
            t_critical(level, degrees)
    for values in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="no mean"):
            mean_interval(values)
    for runs in ([], [[1.0], []]):
        with pytest.raises(ValueError, match="at least one value"):
            units(runs)


# --- Welch's t ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(A, B), (B, A), (A, [1.6, 1.8]), ([1.0, 1.1], [1.0, 9.0, 2.0])])
def test_difference_is_welchs(a: list[float], b: list[float]) -> None:
    found = difference(a, b)
    expected = stats.ttest_ind(a, b, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.significant == (expected.pvalue < 0.05) == (a in (A, B) and b in (A, B))
    assert found.tested
    assert difference(a, b, sd_a=100.0, sd_b=100.0) == found, "used for single values only"


def test_what_cannot_be_tested_and_exact_constants() -> None:
    found = difference([1.0], [2.0, 2.1])
    assert found.mean == pytest.approx(-1.05)
    assert (found.low, found.high, found.significant, found.tested) == (None, None, False, False)
    assert not difference([1.0], [2.0], sd_a=0.1).tested
    assert not difference([1.0], A, sd_b=0.1).tested
    assert difference([1.0, 1.0], [2.0, 2.0]).significant
    assert not difference([2.0, 2.0], [2.0, 2.0]).significant
    spread = difference([1.0, 1.0, 1.0], [2.0, 3.0, 4.0])  # degrees of freedom of the side that varies
    assert spread.high is not None
    assert spread.high - spread.mean == pytest.approx(stats.t.ppf(0.975, 2) / math.sqrt(3), rel=1e-9)


# --- the error of single image sets ---------------------------------------------------------------


def test_an_interval_of_one_set_gives_its_standard_deviation() -> None:
    found = set_interval(5.0, [5.0 - 1.96 * 0.3, 5.0 + 1.96 * 0.3])
    assert (found.mean, found.n, found.kind, found.of_one_set) == (5.0, 1, "images of one set", True)
    assert found.half_width == pytest.approx(0.588)
    assert found.set_sd == pytest.approx(0.3, rel=1e-4)
    skewed = set_interval(0.98, [0.90, 1.0])  # a value need not stand in the middle
    assert skewed.half_width == pytest.approx(0.05)
    assert (skewed.low, skewed.high) == (0.90, 1.0)
    assert mean_interval(A).set_sd is None and mean_interval([1.0]).set_sd is None


def test_two_single_sets_are_compared_by_the_normal_distribution() -> None:
    sd = math.hypot(0.3, 0.4)
    low, high = stats.norm.interval(0.95, loc=1.0, scale=sd)
    found = difference([3.0], [2.0], sd_a=0.3, sd_b=0.4)
    assert found.mean == 1.0 and (found.low, found.high) == pytest.approx((low, high))
    assert found.significant == (2 * stats.norm.sf(1.0 / sd) < 0.05)
    assert found.significant and not difference([2.9], [2.0], sd_a=0.3, sd_b=0.4).significant


@pytest.mark.parametrize(
    ("value", "sd", "differs"), [(1.9, 0.05, True), (1.9, 0.3, False), (1.72, 0.01, False), (1.8, 1e-6, True)]
)
def test_seeds_against_a_single_set_are_welchs_with_one_known_variance(
    value: float, sd: float, differs: bool
) -> None:
    # A sample of 10^9 values with the same error of the mean is as good as a known variance.
    count = 10**9
    mean, spread = sum(A) / len(A), math.sqrt(sum((x - sum(A) / 4) ** 2 for x in A) / 3)
    expected = stats.ttest_ind_from_stats(
        mean, spread, len(A), value, sd * math.sqrt(count), count, equal_var=False
    )
    found = difference(A, [value], sd_b=sd)
    assert found.low is not None and found.high is not None
    degrees = optimize.brentq(
        lambda df: 2 * stats.t.sf(abs(expected.statistic), df) - expected.pvalue, 1, 1e9, xtol=1e-9
    )
    scale = found.mean / expected.statistic
    low, high = stats.t.interval(0.95, degrees, loc=found.mean, scale=scale)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-5)
    assert found.significant == (expected.pvalue < 0.05) == differs
    mirrored = difference([value], A, sd_a=sd)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


# --- pairs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_paired_difference_is_scipys(shift: float) -> None:
    a, b = [2.40, 2.51, 2.13, 2.90, 2.2], [2.30 - shift, 2.49 - shift, 2.2 - shift, 2.7 - shift, 2.1 - shift]
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    found = paired_difference(a, b)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.significant == (expected.pvalue < 0.05) == (shift > 0)


def test_pairs_see_what_welch_cannot() -> None:
    a, b = [1.0, 2.0, 3.0, 4.0], [1.11, 2.09, 3.1, 4.12]
    assert paired_difference(b, a).significant
    assert not difference(b, a).significant
    assert not paired_difference([1.0], [2.0]).tested
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0, 2.0], [1.0])


def test_resampled_difference_by_hand() -> None:
    found = resampled_difference(1.0, 3.0, [1.1, 0.9, 1.3], [3.0, 3.0, 3.0])
    half = float(stats.t.ppf(0.975, 2)) * 0.2  # standard deviation of -1.9, -2.1, -1.7
    assert found.mean == -2.0 and (found.low, found.high) == pytest.approx((-2 - half, -2 + half))
    assert found.significant
    assert not resampled_difference(1.0, 1.0, [1.0, 2.0], [1.0, 2.0]).significant
    with pytest.raises(ValueError):
        resampled_difference(1.0, 2.0, [1.0, 2.0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_paired_resamples_cover_and_see_more_where_images_have_more_in_common(correlation: float) -> None:
    one = study(correlation, 1.12, sets=40, replicates=20)
    assert one["paired"] >= 0.9 and one["paired_sd"] < (0.6 if correlation else 1.1) * one["unpaired_sd"]
    assert one["spread"] == pytest.approx(one["paired_sd"], rel=0.45)
