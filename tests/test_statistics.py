"""Intervals and comparisons against scipy and against figures worked out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
from scipy import stats

from alignbench.statistics import difference, mean_interval, nested_interval, t_critical, units

A = [1.60, 1.75, 1.68, 1.71]
B = [2.40, 2.51, 2.13]


@pytest.mark.parametrize(
    ("level", "degrees"),
    list(itertools.product([0.5, 0.9, 0.95, 0.999], [1, 1.7, 2, 3, 4.25, 10, 31.5, 200, 5000])),
)
def test_t_critical_is_scipys(level: float, degrees: float) -> None:
    assert t_critical(level, degrees) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees), rel=1e-9)


def test_t_critical_of_one_degree_is_the_cauchy_quantile() -> None:
    assert t_critical(0.95, 1) == pytest.approx(math.tan(math.pi / 2 * 0.95), rel=1e-12)


@pytest.mark.parametrize(("level", "degrees"), [(0.0, 3), (1.0, 3), (0.95, 0)])
def test_t_critical_refuses_what_has_no_quantile(level: float, degrees: float) -> None:
    with pytest.raises(ValueError, match="no t quantile"):
        t_critical(level, degrees)


def test_mean_interval_is_scipys() -> None:
    found = mean_interval(A)
    low, high = stats.t.interval(0.95, len(A) - 1, loc=sum(A) / len(A), scale=stats.sem(A))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert (found.n, found.kind) == (4, "sampling seeds")
    assert found.half_width == pytest.approx((high - low) / 2, rel=1e-12)


def test_interval_of_three_by_hand() -> None:
    # mean 2, standard deviation 1, t(0.975, 2) = 4.302653
    assert mean_interval([1.0, 2.0, 3.0]).half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_one_value_has_no_interval() -> None:
    found = mean_interval([1.5])
    assert (found.mean, found.low, found.high, found.half_width, found.n) == (1.5, None, None, None, 1)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert mean_interval([0.1, 0.1, 0.1]).half_width == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_no_mean_of_nothing_or_of_nan(values: list[float]) -> None:
    with pytest.raises(ValueError, match="no mean"):
        mean_interval(values)


def test_several_training_seeds_count_once_each() -> None:
    runs = [[1.0, 3.0], [3.0, 5.0], [5.0, 7.0]]
    assert units(runs) == ([2.0, 4.0, 6.0], "training seeds")
    found = nested_interval(runs)
    low, high = stats.t.interval(0.95, 2, loc=4.0, scale=2 / math.sqrt(3))
    assert (found.low, found.high, found.n) == (pytest.approx(low), pytest.approx(high), 3)


def test_a_single_run_leaves_its_sampling_seeds() -> None:
    assert units([A]) == (A, "sampling seeds")
    assert nested_interval([A]) == mean_interval(A, kind="sampling seeds")


@pytest.mark.parametrize("runs", [[], [[1.0], []]])
def test_a_run_without_values_is_refused(runs: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="at least one value"):
        units(runs)


@pytest.mark.parametrize(("a", "b"), [(A, B), (B, A), (A, [1.6, 1.8]), ([1.0, 1.1], [1.0, 9.0, 2.0])])
def test_difference_is_welchs(a: list[float], b: list[float]) -> None:
    found = difference(a, b)
    expected = stats.ttest_ind(a, b, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.significant == (expected.pvalue < 0.05)
    assert found.tested


def test_these_comparisons_hold_both_outcomes() -> None:
    assert difference(A, B).significant
    assert not difference(A, [1.6, 1.8]).significant


def test_one_value_on_a_side_cannot_be_tested() -> None:
    found = difference([1.0], [2.0, 2.1])
    assert found.mean == pytest.approx(-1.05)
    assert (found.low, found.high, found.significant, found.tested) == (None, None, False, False)


def test_exact_constants_differ_or_not() -> None:
    assert difference([1.0, 1.0], [2.0, 2.0]).significant
    assert not difference([2.0, 2.0], [2.0, 2.0]).significant


def test_a_constant_against_a_spread_uses_the_spreads_degrees() -> None:
    found = difference([1.0, 1.0, 1.0], [2.0, 3.0, 4.0])
    assert found.high is not None
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, 2) / math.sqrt(3), rel=1e-9)
