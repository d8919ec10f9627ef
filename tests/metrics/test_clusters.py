"""Intervals of means and shares over images that come in groups."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignbench.evaluators.geneval.evaluator import TASKS
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
    for share, count in ((0.3, 50), (0.0, 20), (1.0, 300)):
        low, high = wilson(share, count)
        assert 0 <= low <= share <= high <= 1
        for bound in (low, high):
            assert abs(share - bound) == pytest.approx(
                1.959963984540054 * math.sqrt(bound * (1 - bound) / count), abs=1e-7
            )


def test_independent_images_give_wilsons_interval() -> None:
    """With one image per prompt the robust variance is p(1-p)/(n-1), so n - 1 would count; n is the floor."""
    correct = np.array([1] * 30 + [0] * 70, dtype=bool)
    found = share_interval(correct, np.arange(100))
    assert found == pytest.approx(wilson(0.3, 100))
    assert found == pytest.approx((0.21895, 0.39585), abs=1e-5)  # Wilson's formula, by hand


def test_four_equal_images_of_a_prompt_count_once() -> None:
    once = np.array([1] * 30 + [0] * 70, dtype=bool)
    assert share_interval(np.repeat(once, 4), np.repeat(np.arange(100), 4)) == pytest.approx(wilson(0.3, 100))


def test_prompts_that_agree_count_every_image_and_no_more() -> None:
    correct = np.tile(np.array([1, 0], dtype=bool), 50)
    assert share_interval(correct, np.repeat(np.arange(25), 4)) == pytest.approx(wilson(0.5, 25))
    mixed = correct.copy()
    mixed[0] = False
    assert share_interval(mixed, np.repeat(np.arange(25), 4)) == pytest.approx(wilson(0.49, 100))


def test_shares_of_zero_and_one_have_an_interval() -> None:
    groups = np.repeat(np.arange(50), 4)
    low, high = share_interval(np.zeros(200, bool), groups) or (1, 1)
    assert low == 0 and 0.07 < high < 0.08  # z² / (50 + z²) = 0.0713
    low, high = share_interval(np.ones(200, bool), groups) or (0, 0)
    assert 0.92 < low < 0.93 and high == 1


def test_the_order_of_images_does_not_matter() -> None:
    numbers = np.random.default_rng(0)
    correct, groups = numbers.random(80) < 0.4, np.repeat(np.arange(20), 4)
    order = numbers.permutation(80)
    assert share_interval(correct[order], groups[order] * 7 + 3) == pytest.approx(
        share_interval(correct, groups)
    )


def test_intervals_of_equal_shares_shrink_by_the_root_of_their_number() -> None:
    assert interval_of_mean([0.5] * 4, [(0.4, 0.7)] * 4) == pytest.approx((0.45, 0.6))
    assert interval_of_mean([0.5, 0.5], [(0.4, 0.6), None]) is None


@pytest.mark.parametrize(("mean", "concentration"), [(0.03, 2.0), (0.25, 0.2), (0.8, 1e6)])
def test_intervals_hold_the_true_share(mean: float, concentration: float) -> None:
    """Prompts differ in difficulty (beta), each has four images; 0.2: hardly any prompt is in between."""
    numbers = np.random.default_rng(1)
    groups = np.repeat(np.arange(100), 4)
    held = 0
    for _ in range(400):
        difficulty = numbers.beta(mean * concentration, (1 - mean) * concentration, 100)
        low, high = share_interval(numbers.random(400) < np.repeat(difficulty, 4), groups) or (1, 0)
        held += low <= mean <= high
    assert 0.92 <= held / 400 <= 0.99


def test_the_interval_of_the_overall_score_holds_it() -> None:
    numbers = np.random.default_rng(2)
    means = dict(zip(TASKS, (0.75, 0.26, 0.2, 0.55, 0.04, 0.03), strict=True))
    sizes = dict(zip(TASKS, (80, 99, 80, 94, 100, 100), strict=True))
    true = sum(means.values()) / 6
    held, widths = 0, []
    for _ in range(150):
        parts = []
        for task, mean in means.items():
            difficulty = np.repeat(numbers.beta(mean, 1 - mean, sizes[task]), 4)
            correct = numbers.random(len(difficulty)) < difficulty
            groups = np.repeat(np.arange(sizes[task]), 4)
            parts.append((float(correct.mean()), share_interval(correct, groups)))
        low, high = interval_of_mean([value for value, _ in parts], [found for _, found in parts]) or (1, 0)
        held += low <= true <= high
        widths.append(high - low)
    assert held >= 138  # 92 %
    assert 0.03 < float(np.mean(widths)) < 0.08
