"""Moments, Fréchet distance, Inception Score, precision and recall against other people's code."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from alignbench.errors import UserError
from alignbench.metrics import precision_recall as manifold
from alignbench.metrics.frechet import frechet_distance
from alignbench.metrics.inception_score import Order, inception_score, inception_score_of_probabilities
from alignbench.metrics.moments import Moments, moments_of
from alignbench.metrics.precision_recall import precision_recall


def rows(count: int, width: int, seed: int, *, offset: float = 0.0) -> np.ndarray:
    """[count, width] non-negative rows with correlated columns, as after a ReLU."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(width, width)) / np.sqrt(width)
    return np.asarray(np.maximum(rng.normal(0.3, 1, size=(count, width)) @ mix, 0) + offset)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    one, two = Moments.of(a), Moments.of(b)
    return frechet_distance(one.mean, one.covariance, two.mean, two.covariance)


def official_frechet(a: np.ndarray, b: np.ndarray) -> float:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    moments = (fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b))
    return float(fid_statistics_to_metric(*moments, verbose=False)["frechet_inception_distance"])


# --- moments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "offset", "dtype"),
    [
        ([500], 1e4, np.float64),
        ([1, 300, 199], 0.0, np.float64),
        ([3, 97, 1, 150, 49, 150, 2, 48], 1e4, np.float64),
        ([250, 250], 1e3, np.float32),
    ],
)
def test_any_cut_into_shards_and_any_order_give_the_same_moments_in_float64(
    sizes: list[int], offset: float, dtype: type[np.floating]
) -> None:
    data = rows(500, 12, 0, offset=offset).astype(dtype)
    wide = data.astype(np.float64)
    cuts = np.split(data, np.cumsum(sizes)[:-1])
    merged = [functools.reduce(Moments.merge, map(Moments.of, order)) for order in (cuts, cuts[::-1])]
    for found in (moments_of([data[:0], *cuts]), *merged):
        assert found.count == 500 and found.covariance.dtype == np.float64
        assert found.mean == pytest.approx(wide.mean(axis=0), rel=1e-14)
        assert found.covariance == pytest.approx(np.cov(wide.T), rel=1e-10, abs=1e-10)


def test_input_is_not_changed() -> None:
    data = rows(20, 3, 1)
    data.flags.writeable = False
    before = data.copy()
    moments_of([data])
    precision_recall(data, data, k=1)
    assert np.array_equal(data, before)


# --- Fréchet distance -----------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "other"), [(300, 200), (90, 900)])
def test_frechet_distance_is_torch_fidelitys_and_scipys(count: int, other: int) -> None:
    a, b = rows(count, 24, 0), rows(other, 24, 1) * 1.2
    theirs = official_frechet(a, b)
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    scipys = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet(a, b) == pytest.approx(theirs, rel=1e-9)
    assert frechet(a, b) == pytest.approx(scipys, rel=1e-9)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-12)


def test_frechet_distance_of_one_dimension_is_the_closed_form() -> None:
    found = frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([-2.0]), np.array([[0.25]]))
    assert found == pytest.approx(9 + (2 - 0.5) ** 2, rel=1e-15)
    assert frechet(np.ones((5, 3)), np.zeros((4, 3))) == pytest.approx(3), "constant features have no spread"


@pytest.mark.parametrize(("count", "other"), [(9, 7), (9, 400)])
def test_fewer_images_than_features_lose_no_digits(count: int, other: int) -> None:
    a, b = rows(count, 32, 0), rows(other, 32, 1)
    # Singular values of the product of two tall factors: no covariance is ever formed.
    x, y = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (a, b))
    traces = np.sum((a.mean(0) - b.mean(0)) ** 2) + (x**2).sum() + (y**2).sum()
    expected = traces - 2 * np.linalg.svd(x @ y.T, compute_uv=False).sum()
    assert frechet(a, b) == pytest.approx(expected, rel=1e-11)
    theirs = official_frechet(a, b)
    assert frechet(a, b) == pytest.approx(theirs, rel=1e-6)


# --- class score ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "order", "shuffle"), [(200, "in-order", False), (207, "shuffled", True)])
def test_inception_score_is_torch_fidelitys(count: int, order: Order, shuffle: bool) -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * rows(count, 11, 3)
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=10, shuffle=shuffle, rng_seed=2020)
    expected = (theirs["inception_score_mean"], theirs["inception_score_std"])
    assert inception_score(logits, order=order, seed=2020) == pytest.approx(expected, rel=1e-10)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert inception_score_of_probabilities(p, order=order, seed=2020) == pytest.approx(expected, rel=1e-10)


def test_chunks_of_one_size_count_alike_even_a_short_last_one() -> None:
    logits = 3 * rows(25, 5, 4)
    parts = [inception_score(logits[a : a + 10], splits=1, order="in-order", seed=0)[0] for a in (0, 10, 20)]
    found = inception_score(logits, order="in-order", seed=0, split_size=10)
    assert found == pytest.approx((np.mean(parts), np.std(parts)), rel=1e-14)


def test_a_sorted_set_scores_like_a_shuffled_one() -> None:
    perfect = 50 * np.repeat(np.eye(10), 100, axis=0)
    mixed = perfect[np.random.RandomState(5).permutation(1000)]
    for logits in (perfect, mixed):
        assert inception_score(logits, order="shuffled", seed=2020)[0] == pytest.approx(9.65, abs=0.1)
    assert inception_score(perfect, order="in-order", seed=0)[0] == pytest.approx(1)


def test_impossible_classes_count_as_nothing() -> None:
    certain = np.eye(4)[[0, 1, 0, 1]]
    assert inception_score_of_probabilities(certain, splits=1, order="in-order", seed=0) == (2, 0)
    assert inception_score(1e5 * certain, splits=1, order="in-order", seed=0) == (2, 0)


# --- precision and recall -------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "block"), [(1, 2048), (3, 7), (9, 64)])
def test_manifolds_are_torch_fidelitys_and_scikit_learns(k: int, block: int) -> None:
    from sklearn.neighbors import NearestNeighbors
    from torch_fidelity.metric_prc import prc_features_to_metric

    generated, real = rows(110, 6, 5), rows(80, 6, 6)
    found = precision_recall(generated, real, k=k, block=block)
    theirs = prc_features_to_metric(
        torch.from_numpy(generated), torch.from_numpy(real), prc_neighborhood=k, verbose=False
    )
    assert found.precision == pytest.approx(theirs["precision"], rel=1e-6)
    assert found.recall == pytest.approx(theirs["recall"], rel=1e-6)
    for inside, points, centres in (
        (found.inside_real, generated, real),
        (found.inside_generated, real, generated),
    ):
        radii = NearestNeighbors(n_neighbors=k + 1).fit(centres).kneighbors(centres)[0][:, -1]
        distances = np.linalg.norm(points[:, None] - centres[None], axis=2)
        assert np.array_equal(inside, (distances <= radii).any(axis=1))
    assert found.precision == found.inside_real.mean()
    assert found.recall == found.inside_generated.mean()


@pytest.mark.parametrize(("dtype", "offset"), [(np.float32, 1e4), (np.float64, 0.0)])
def test_every_copy_of_a_real_row_is_inside(dtype: type[np.floating], offset: float) -> None:
    """Radii are 0 here: only distances that are exactly 0 count."""
    real = np.repeat(rows(40, 64, 7, offset=offset), 4, axis=0).astype(dtype)
    generated = np.concatenate([real[::-4], real[:1] + dtype(0.01)])
    found = precision_recall(generated, real, k=3, block=13)
    assert found.inside_real.tolist() == [True] * 40 + [False]


def test_a_row_on_the_sphere_is_inside_and_one_beyond_is_not() -> None:
    rng = np.random.default_rng(8)
    turn = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    # A far cluster of three: its first row has the radius 5 for k = 2, and the others point away.
    real = np.array([[100.0, 0], [103, 0], [105, 0], *np.zeros((3, 2))]) @ turn[:2]
    generated = np.array([[97.0, 4], [97, 4.0001], [100, -5], *np.full((3, 2), 1e4)]) @ turn[:2]
    found = precision_recall(generated, real, k=2)
    assert found.inside_real[:3].tolist() == [True, False, True]


def test_equal_sets_are_inside_each_other_and_a_collapsed_one_has_no_recall() -> None:
    data = rows(50, 8, 9)
    same = precision_recall(data, data, k=3, block=16)
    assert (same.precision, same.recall) == (1, 1)
    collapsed = precision_recall(np.repeat(data[:1], 50, axis=0), data, k=3, block=16)
    assert (collapsed.precision, collapsed.recall) == (1, 1 / 50)


def test_memory_is_that_of_a_few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of distances may be larger than a block, however many rows there are."""
    sizes: list[int] = []
    bounds = manifold._bounds

    def watched(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        found = bounds(*arguments)  # type: ignore[arg-type]
        sizes.append(found[0].numel())
        return found

    monkeypatch.setattr(manifold, "_bounds", watched)
    precision_recall(rows(150, 4, 0), rows(90, 4, 1), k=2, block=32)
    assert max(sizes) == 32 * 32
    assert sum(sizes) == 150 * 150 + 90 * 90 + 2 * 150 * 90


# --- what cannot be computed ----------------------------------------------------------------------

ONE, TWO = rows(1, 4, 0), rows(2, 4, 0)
BROKEN = np.full((20, 4), np.nan)


def test_too_little_or_broken_is_an_error() -> None:
    for attempt, words in (
        (lambda: moments_of([ONE[:0]]), "no features"),
        (lambda: Moments.of(ONE).covariance, "1 images: a covariance needs at least 2"),
        (lambda: moments_of([TWO, BROKEN]), "not all numbers are finite"),
        (lambda: inception_score(rows(9, 4, 0), order="shuffled", seed=0), "9 images.*at least 10"),
        (lambda: inception_score(ONE[:0], order="in-order", seed=0, split_size=5), "0 images"),
        (lambda: inception_score(BROKEN, order="shuffled", seed=0), "not all numbers are finite"),
        (lambda: inception_score_of_probabilities(-TWO - 1, order="shuffled", seed=0), "negative"),
        (lambda: precision_recall(rows(3, 4, 0), rows(9, 4, 0), k=3), "3 generated images.*at least 4"),
        (lambda: precision_recall(rows(9, 4, 0), rows(3, 4, 0), k=3), "3 real images"),
        (lambda: precision_recall(BROKEN, rows(9, 4, 0), k=3), "not all numbers are finite"),
    ):
        with pytest.raises(UserError, match=words):
            attempt()


def test_what_does_not_fit_is_a_programming_error() -> None:
    for attempt, words in (
        (lambda: moments_of([TWO, rows(3, 5, 0)]), "shards of 4 and of 5"),
        (lambda: Moments.of(np.zeros(5)), r"must be \[N, D\]"),
        (lambda: inception_score(np.zeros(5), order="in-order", seed=0), r"logits must be \[N, D\]"),
        (lambda: frechet_distance(np.zeros(3), np.eye(2), np.zeros(2), np.eye(2)), "do not fit"),
        (lambda: frechet_distance(np.zeros(3), np.eye(3), np.zeros(2), np.eye(2)), "3 and of 2 features"),
        (lambda: precision_recall(rows(9, 4, 0), rows(9, 5, 0), k=3), "4 and of 5 features"),
        (lambda: precision_recall(rows(9, 4, 0), rows(9, 4, 0), k=0), "0 neighbours"),
        (lambda: inception_score(TWO, splits=0, order="in-order", seed=0), "0 splits"),
    ):
        with pytest.raises(ValueError, match=words):
            attempt()
