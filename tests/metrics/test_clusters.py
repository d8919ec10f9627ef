"""Intervals of means and shares over images that come in groups."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignbench.metrics.clusters import interval_of_mean, resampled_interval, share_interval
from alignbench.metrics.intervals import wilson

# --- means ----------------------------------------------------------------------------------------


def test_interval_takes_prompts_for_independent_and_not_images() -> None:
    """Groups of equal size and no spread inside: the error is that of the group means."""
    numbers = np.random.default_rng(0)
    means = numbers.normal(size=50)
    values, groups = np.repeat(means, 20), np.repeat(np.arange(50), 20)
    low, high = resampled_interval(values, groups) or (0.0, 0.0)
    expected = 2 * 1.96 * means.std() / math.sqrt(50)
    assert high - low == pytest.approx(expected, rel=0.08)
    assert low < values.mean() < high
    order = numbers.permutation(1000)
    assert resampled_interval(values[order], groups[order]) == pytest.approx((low, high))
    singles = resampled_interval(values, np.arange(1000))
    assert singles is not None and singles[1] - singles[0] < 0.35 * (high - low)


def test_interval_of_groups_of_unequal_size() -> None:
    """Two groups: the mean of a replicate is one of three numbers."""
    values = np.array([0.0, 0.0, 0.0, 10.0])
    assert resampled_interval(values, np.array([7, 7, 7, -1])) == (0.0, 10.0)
    assert resampled_interval(values, np.zeros(4)) is None
    assert resampled_interval(np.full(9, 3.5), np.arange(9)) == (3.5, 3.5)


# --- shares ---------------------------------------------------------------------------------------


def test_wilsons_bounds_solve_his_equation() -> None:
    """Solutions p of |share − p| = z √(p (1 − p) / n); at 0 and 1 one of them is the share itself."""
    assert wilson(0.3, 100) == pytest.approx((0.21895, 0.39585), abs=1e-5)  # his formula, by hand
    for share, count in ((0.3, 50), (0.0, 20), (1.0, 300)):
        low, high = wilson(share, count)
        assert 0 <= low <= share <= high <= 1
        for bound in (low, high):
            assert abs(share - bound) == pytest.approx(
                1.959963984540054 * math.sqrt(bound * (1 - bound) / count), abs=1e-7
            )


ONCE = np.array([1] * 30 + [0] * 70, dtype=bool)
HALVES = np.tile(np.array([1, 0], dtype=bool), 50)
FOURS = np.repeat(np.arange(25), 4)


@pytest.mark.parametrize(
    ("correct", "groups", "share", "count"),
    [
        # One image per prompt: the robust variance is p(1-p)/(n-1), so n - 1 would count; n is the floor.
        (ONCE, np.arange(100), 0.3, 100),
        # Four equal images of a prompt count once.
        (np.repeat(ONCE, 4), np.repeat(np.arange(100), 4), 0.3, 100),
        # Prompts that agree: no spread to see, so groups count; with a little of it every image does.
        (HALVES, FOURS, 0.5, 25),
        (HALVES & (np.arange(100) > 0), FOURS, 0.49, 100),
        (np.zeros(200, bool), np.repeat(np.arange(50), 4), 0.0, 50),
        (np.ones(200, bool), np.repeat(np.arange(50), 4), 1.0, 50),
    ],
)
def test_shares_count_independent_images(
    correct: np.ndarray, groups: np.ndarray, share: float, count: int
) -> None:
    assert share_interval(correct, groups) == pytest.approx(wilson(share, count))
    order = np.random.default_rng(0).permutation(len(correct))
    assert share_interval(correct[order], groups[order] * 7 + 3) == pytest.approx(wilson(share, count))


def test_intervals_of_equal_shares_shrink_by_the_root_of_their_number() -> None:
    assert interval_of_mean([0.5] * 4, [(0.4, 0.7)] * 4) == pytest.approx((0.45, 0.6))
    assert interval_of_mean([0.5, 0.5], [(0.4, 0.6), None]) is None


@pytest.mark.parametrize(
    ("means", "sizes", "concentration"),
    [
        ((0.03,), (100,), 2.0),
        ((0.25,), (100,), 0.2),  # hardly any prompt is in between
        ((0.8,), (100,), 1e6),
        ((0.75, 0.26, 0.2, 0.55, 0.04, 0.03), (80, 99, 80, 94, 100, 100), 1.0),  # GenEval's six tasks
    ],
)
def test_intervals_hold_the_true_share(
    means: tuple[float, ...], sizes: tuple[int, ...], concentration: float
) -> None:
    """Prompts differ in difficulty (beta), each has four images; of several tasks the mean counts."""
    numbers = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        values, found = [], []
        for mean, size in zip(means, sizes, strict=True):
            difficulty = numbers.beta(mean * concentration, (1 - mean) * concentration, size)
            correct = numbers.random(4 * size) < np.repeat(difficulty, 4)
            values.append(float(correct.mean()))
            found.append(share_interval(correct, np.repeat(np.arange(size), 4)))
        low, high = interval_of_mean(values, found) or (1, 0)
        held += bool(low <= np.mean(means) <= high)
        assert high - low < (0.08 if len(means) > 1 else 0.3)
    assert 0.92 <= held / 400 <= 0.99
