"""Error bars of Fréchet distances: against explicit resampling, and by how often they cover the truth."""

from __future__ import annotations

import numpy as np
import pytest

from alignbench.errors import UserError
from alignbench.metrics.bootstrap import (
    Bootstrap,
    WeightedFrechet,
    frechet_at_infinity,
    frechet_bootstrap,
)
from alignbench.metrics.frechet import frechet_distance
from alignbench.metrics.moments import Moments
from tests.metrics.coverage_study import Setting, study

WIDTH = 12
SIZES = [5, 12, 13, 90]
"""Fewer rows than features, as many, one more, many more."""


def rows(count: int, seed: int) -> np.ndarray:
    mix = np.random.default_rng(50).normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)
    return np.asarray(np.random.default_rng(seed).normal(0.4, 1, size=(count, WIDTH)) @ mix)


def reference() -> tuple[np.ndarray, np.ndarray]:
    moments = Moments.of(1.3 * rows(200, 51))
    return moments.mean, moments.covariance


def direct(data: np.ndarray) -> float:
    moments = Moments.of(data)
    return frechet_distance(moments.mean, moments.covariance, *reference())


def test_many_rows_lose_no_digits_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data, weights = rows(90, 1), np.arange(90) % 4
    whole = WeightedFrechet(data, *reference()).distance(weights)
    assert whole == pytest.approx(direct(np.repeat(data, weights, axis=0)), rel=1e-11)
    monkeypatch.setattr("alignbench.metrics.bootstrap.BLOCK", 7)
    assert WeightedFrechet(data, *reference()).distance(weights) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("count", SIZES)
def test_bootstrap_is_that_of_resampled_rows(count: int) -> None:
    data = rows(count, 3)
    found = frechet_bootstrap(data, *reference(), replicates=6, seed=9)
    rng = np.random.default_rng(9)
    assert len(WeightedFrechet(data, *reference())) == count
    draws = [rng.multinomial(count, np.full(count, 1 / count)) for _ in range(6)]
    values = [direct(np.repeat(data, weights, axis=0)) for weights in draws]
    assert found.value == pytest.approx(direct(data), rel=1e-6)
    assert found.resampled == pytest.approx(values, rel=1e-6)
    assert found.bias == pytest.approx(np.mean(values) - direct(data), rel=1e-5)
    assert found.sd == pytest.approx(np.std(values, ddof=1), rel=1e-5)
    assert frechet_bootstrap(data, *reference(), replicates=6, seed=9) == found
    assert frechet_bootstrap(data, *reference(), replicates=6, seed=10) != found


def test_intervals_lie_around_their_points() -> None:
    found = Bootstrap(10.0, (11.0, 13.0, 12.0))
    assert (found.bias, found.sd, found.corrected) == (2, 1, 8)
    assert found.interval == pytest.approx((10 - 1.96, 10 + 1.96), abs=1e-3)
    assert found.corrected_interval == pytest.approx((8 - 1.96, 8 + 1.96), abs=1e-3)


def test_infinity_is_the_intercept_of_the_line_through_the_subsets() -> None:
    data = rows(60, 4)
    rng = np.random.default_rng(7)
    values = [direct(data[rng.permutation(60)[:size]]) for size in (20, 40, 60)]
    slope, intercept = np.polyfit([1 / 20, 1 / 40, 1 / 60], values, 1)
    assert slope > 0
    found = frechet_at_infinity(data, *reference(), seed=7, sizes=(20, 40, 60))
    assert found == pytest.approx(intercept, rel=1e-8)


def test_only_the_corrected_interval_covers() -> None:
    """500 images of 64 features at a known distance; 200 sets of the same are in docs/evaluators."""
    found = study(Setting(features=64, images=500, shift=0.3), sets=12, replicates=30)
    truth, sd = found["truth"], found["sd"]
    assert truth == pytest.approx(0.09)
    assert max(found["percentile"], found["plain"]) <= 0.1 < 0.8 <= min(found["shifted"], found["repeated"])
    assert found["value"] - truth > 3 * sd > 3 * abs(found["corrected"] - truth)
    assert abs(found["infinity"] - truth) < sd == pytest.approx(found["spread"], rel=0.6)


def test_too_few_and_broken_rows_are_an_error() -> None:
    for count in (0, 1):
        with pytest.raises(UserError, match=f"{count} images: a covariance needs at least 2"):
            frechet_bootstrap(rows(count, 0), *reference(), replicates=5, seed=0)
    with pytest.raises(UserError, match="an extrapolation needs at least 30"):
        frechet_at_infinity(rows(29, 0), *reference(), seed=0)
    with pytest.raises(UserError, match="not all numbers are finite"):
        frechet_bootstrap(rows(9, 0) * np.inf, *reference(), replicates=5, seed=0)


def test_what_does_not_fit_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="9 features, 12 in the reference"):
        frechet_bootstrap(rows(9, 0)[:, :9], *reference(), replicates=5, seed=0)
    with pytest.raises(ValueError, match="replicates"):
        frechet_bootstrap(rows(9, 0), *reference(), replicates=1, seed=0)
    for sizes in ((1, 5), (5, 10), (5, 5)):
        with pytest.raises(ValueError, match="subset sizes"):
            frechet_at_infinity(rows(9, 0), *reference(), seed=0, sizes=sizes)
