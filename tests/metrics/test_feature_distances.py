"""Density, coverage, kernel and sliced distances against closed forms and brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignbench.errors import UserError
from alignbench.metrics import mmd
from alignbench.metrics.bootstrap import resamples
from alignbench.metrics.mind import mind
from alignbench.metrics.mmd import gaussian_mmd
from alignbench.metrics.precision_recall import real_balls


def rows(count: int, width: int, seed: int, *, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, size=(count, width))


def plain(count: int) -> np.ndarray:
    return np.ones((1, count))


def drawn(count: int, replicates: int) -> np.ndarray:
    return np.stack([np.ones(count), *resamples(count, replicates=replicates, seed=3)])


# --- density and coverage -------------------------------------------------------------------------


def test_density_and_coverage_of_points_on_a_line() -> None:
    """k = 1: the balls of 0, 1, 3 and 10 reach 1, 1, 2 and 7 far; a point on a sphere is outside."""
    real = np.array([[0.0], [1], [3], [10]])
    found = real_balls(np.array([[0.5], [2], [4.5], [1.5], [20]]), real, k=1)
    assert found.held_by.tolist() == [2, 1, 2, 2, 0]
    assert found.reached.tolist() == [True, True, True, True]
    assert (found.density, found.coverage) == (7 / 5, 1)
    far = real_balls(np.array([[-1.0], [17]]), real, k=1)  # both on spheres
    assert (far.density, far.coverage) == (0, 0)


def test_an_outlier_hardly_counts_and_a_set_against_itself_is_one() -> None:
    """Naeem et al., section 3.1: one real outlier fills precision, but density by 1 / k at most."""
    data = rows(60, 4, 0)
    same = real_balls(data, data, k=5, block=16)
    assert (same.density, same.coverage) == (1, 1)  # k of each ball's points are inside, itself included
    real = np.concatenate([data, [[40.0, 0, 0, 0]]])
    between = np.full((20, 4), [20.0, 0, 0, 0])
    assert real_balls(between, real, k=5).density == pytest.approx(1 / 5)


@pytest.mark.parametrize(("k", "block", "dtype"), [(1, 2048, np.float64), (5, 16, np.float32)])
def test_density_and_coverage_are_those_of_all_distances(
    k: int, block: int, dtype: type[np.floating]
) -> None:
    generated, real = (rows(n, 6, n, shift=shift).astype(dtype) for n, shift in ((110, 1.0), (70, 0)))
    real[:3] = generated[:3]  # copies
    x, y = generated.astype(np.float64), real.astype(np.float64)
    apart = np.linalg.norm(y[:, None] - x[None], axis=2)
    radii = np.sort(np.linalg.norm(y[:, None] - y[None], axis=2), axis=1)[:, k]
    inside = apart < radii[:, None]
    found = real_balls(generated, real, k=k, block=block)
    assert found.density == pytest.approx(inside.sum(axis=0).mean() / k, rel=1e-12)
    assert found.coverage == pytest.approx((apart.min(axis=1) < radii).mean(), rel=1e-12)
    assert 0.2 < found.coverage < 1
    assert np.array_equal(found.held_by, inside.sum(axis=0))


# --- kernel distance ------------------------------------------------------------------------------


def test_kernel_distance_of_three_unit_vectors() -> None:
    """By CMMD's scale and kernel; the number was computed by hand from the formula."""
    x, y = np.array([[1.0, 0], [0, 1], [0.6, 0.8]]), np.array([[0.0, 1], [0.8, 0.6], [-1, 0]])
    assert 1000 * gaussian_mmd(x, y, plain(3), sigma=10)[0] == pytest.approx(3.6090999296853887, abs=1e-12)
    assert gaussian_mmd(x, x[::-1], plain(3), sigma=10)[0] == pytest.approx(0, abs=1e-15)


def test_kernel_distance_is_that_of_all_kernel_values(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rows(50, 5, 1), rows(33, 5, 2, shift=0.4)
    weights = drawn(50, 4)

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / 8).mean())

    again = [np.repeat(x, one.astype(int), axis=0) for one in weights]
    expected = [mean(z, z) + mean(y, y) - 2 * mean(z, y) for z in again]
    for block in (7, 2048):
        monkeypatch.setattr(mmd, "BLOCK", block)
        assert gaussian_mmd(x, y, weights, sigma=2) == pytest.approx(expected, rel=1e-11)


def test_kernel_distance_of_normal_laws_is_the_closed_form() -> None:
    """Mean kernel (1 + 2/σ²)^(−D/2) exp(−|Δ|² / 2(σ² + 2)), unit spreads, means Δ apart."""
    x, y = rows(3000, 3, 5), rows(3000, 3, 6, shift=1.0)
    truth = 2 * (1 + 2 / 4) ** -1.5 * (1 - np.exp(-3 / (2 * 6)))
    assert gaussian_mmd(x, y, plain(3000), sigma=2)[0] == pytest.approx(truth, rel=0.06)


# --- sliced Wasserstein distance ------------------------------------------------------------------


def mind_on_axes(x: np.ndarray, y: np.ndarray) -> float:
    """The formula on given directions, here the axes."""
    return float(3 * x.shape[1] * np.mean((np.sort(x, axis=0) - np.sort(y, axis=0)) ** 2))


def reference_mind(x: np.ndarray, y: np.ndarray, directions: int, seed: int) -> float:
    """torch-fidelity's order of draws: part of the larger set, then float32 normal directions."""
    rng, n = torch.Generator().manual_seed(seed), min(len(x), len(y))
    x, y = (z if len(z) == n else z[torch.randperm(len(z), generator=rng)[:n].numpy()] for z in (x, y))
    units = torch.randn(directions, x.shape[1], generator=rng)
    turned = (units / units.norm(dim=1, keepdim=True)).double().numpy().T
    return float(3 * x.shape[1] * np.mean((np.sort(x @ turned, axis=0) - np.sort(y @ turned, axis=0)) ** 2))


def test_sliced_distance_along_the_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.array([[1.0, 0], [0, 1], [0.6, 0.8]]), np.array([[0.0, 1], [0.8, 0.6], [-1, 0]])
    assert mind_on_axes(x, y) == pytest.approx(1.44, abs=1e-12)
    monkeypatch.setattr(torch, "randn", lambda *shape, generator: torch.eye(2))
    assert mind(x, y, directions=2, seed=0) == [pytest.approx(1.44, abs=1e-12)]


@pytest.mark.parametrize(("ours", "theirs"), [(40, 40), (60, 40), (40, 70)])
def test_sliced_distance_is_the_formula_whichever_set_is_larger(ours: int, theirs: int) -> None:
    x, y = rows(ours, 6, 1), rows(theirs, 6, 2, shift=0.3)
    found = mind(x, y, directions=50, seed=7)
    assert found == [pytest.approx(reference_mind(x, y, 50, 7), rel=1e-12)]
    assert mind(x, y, directions=50, seed=8) != found
    assert mind(x[:40], x[:40], directions=50, seed=7) == [0]


def test_resampled_sliced_distances_are_those_of_repeated_rows() -> None:
    x, y = rows(40, 6, 1), rows(40, 6, 2, shift=0.3)
    found = mind(x, y, directions=30, seed=7, replicates=3, resample_seed=3)
    again = [np.repeat(x, times.astype(int), axis=0) for times in drawn(40, 3)]
    assert found == pytest.approx([reference_mind(z, y, 30, 7) for z in again], rel=1e-12)


def test_sliced_distance_of_normal_laws_is_the_closed_form() -> None:
    """3 (|Δ|² + D (s₁ − s₂)²) for spheres of spreads s₁, s₂ whose means are Δ apart."""
    x, y = rows(4000, 3, 5), 1.5 * rows(4000, 3, 6) + [1.0, 0, 0]
    assert mind(x, y, directions=1000, seed=0)[0] == pytest.approx(3 * (1 + 3 * 0.25), rel=0.04)


def test_what_does_not_fit_is_refused() -> None:
    data = rows(9, 3, 0)
    with pytest.raises(UserError, match="0 generated images"):
        mind(data[:0], data, directions=1, seed=0)
    with pytest.raises(UserError, match="5 real images: a distance to neighbour 5 needs at least 6"):
        real_balls(data, data[:5], k=5)
    with pytest.raises(UserError, match="not all numbers are finite"):
        gaussian_mmd(data * np.inf, data, plain(9), sigma=1)
    for refused in (
        lambda: gaussian_mmd(data, data[:, :2], plain(9), sigma=1),
        lambda: gaussian_mmd(data, data, plain(8), sigma=1),
        lambda: mind(data, data[:, :2], directions=1, seed=0),
        lambda: real_balls(data, data[:, :2], k=1),
        lambda: mind(data, data, directions=0, seed=0),
    ):
        with pytest.raises(ValueError, match=r"sets of 3 and of 2|weights|0 directions"):
            refused()
