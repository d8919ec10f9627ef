"""The distribution evaluator against golden numbers, closed forms and other people's code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from alignbench.api import ImageBatch, Reference
from alignbench.errors import UserError
from alignbench.evaluators import digits as distribution
from alignbench.nets import digits
from alignbench.registry.lookup import Registry

DATA = Path(__file__).parents[1] / "golden" / "golden-metrics"
ARRAYS = np.load(DATA / "arrays.npz")
EXPECTED = json.loads((DATA / "expected.json").read_text())["cases"]
PAIRS = ["asymmetric24", "duplicates8", "lowrank64"]
METRICS = {"fd-digits", "fd-pixels", "is-digits", "precision", "recall", "class-accuracy"}


@dataclass(frozen=True)
class Memory:
    """Rows held in memory."""

    digest: str
    rows: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.rows["logits"])

    def column(self, name: str) -> np.ndarray:
        return self.rows[name]

    def shards(self, name: str) -> Iterator[np.ndarray]:
        yield self.rows[name]


def strokes(count: int, seed: int, *, side: int = 8) -> Tensor:
    """[count, 3, side, side] uint8 grey blobs with more variety than 8 numbers."""
    rng = np.random.default_rng(seed)
    grey = np.kron(rng.integers(0, 256, (count, 4, 4)), np.ones((2, 2))) * rng.random((count, 8, 8))
    big = np.kron(grey, np.ones((side // 8, side // 8)))
    return torch.from_numpy(np.repeat(big[:, None], 3, axis=1).astype(np.uint8))


def evaluator(**changes: int) -> distribution.DigitsDistribution:
    card = Registry.default().evaluator("distribution-digits")
    options = {name: option.default for name, option in card.options.items()} | changes
    return distribution.build(card, options=options, assets={}, device=torch.device("cpu"))


def measured(images: Tensor, labels: Tensor | None = None, *, batch: int = 64) -> Memory:
    judge = evaluator()
    parts = []
    for start in range(0, max(1, len(images)), batch):
        ids = range(start, min(start + batch, len(images)))
        part = slice(ids.start, ids.stop)
        parts.append(
            judge.measure(
                ImageBatch(ids=ids, images=images[part], labels=labels[part] if labels is not None else None)
            )
        )
    return Memory("sha256:x", {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def scores(samples: Memory, reference: Memory, **changes: int) -> dict[str, float]:
    found = evaluator(**changes).score(samples, Reference(digest="r", measured=reference))
    return {metric.name: metric.value for metric in found}


def golden(case: str) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(ARRAYS[f"{case}.gen"]), torch.from_numpy(ARRAYS[f"{case}.ref"])


# --- arithmetic -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", PAIRS)
def test_frechet_distance_is_golden(case: str) -> None:
    generated, real = golden(case)
    # Singular covariances cost the general eigenvalue solver half its digits.
    tolerance = {"abs": 1e-4} if case == "lowrank64" else {"rel": 1e-9}
    assert distribution.frechet_distance(generated, real) == pytest.approx(EXPECTED[case]["fid"], **tolerance)


def test_frechet_distance_of_given_diagonal_moments() -> None:
    # Rows ±a·sqrt((n-1)/2)·e_i have the covariance diag(a²); then the distance is |Δμ|² + Σ(a-b)².
    def rows(scales: list[float], mean: float) -> Tensor:
        n = 2 * len(scales)
        axes = torch.diag(torch.tensor(scales, dtype=torch.float64)) * ((n - 1) / 2) ** 0.5
        return torch.cat([axes, -axes]) + mean

    found = distribution.frechet_distance(rows([1.0, 2.0, 3.0], 0.0), rows([2.0, 0.5, 3.0], 0.5))
    assert found == pytest.approx(3 * 0.25 + 1.0 + 2.25, rel=1e-12)


def test_frechet_distance_matches_scipy_and_survives_an_offset() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)), rng.normal(0.3, 2.0, size=(90, 6))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    for offset in (0.0, 1e4):
        found = distribution.frechet_distance(torch.from_numpy(a + offset), torch.from_numpy(b + offset))
        assert found == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("case", PAIRS)
def test_precision_and_recall_are_golden(case: str) -> None:
    found = distribution.precision_recall(*golden(case), neighbours=3)
    expected = EXPECTED[case]["pr"]["3"]
    assert found == pytest.approx({key: expected[key] for key in ("precision", "recall")}, abs=1e-6)


def test_exchanging_the_sets_exchanges_precision_and_recall() -> None:
    generated, real = golden("asymmetric24")
    there = distribution.precision_recall(generated, real, neighbours=3)
    back = distribution.precision_recall(real, generated, neighbours=3)
    assert there["precision"] > 0.9 > 0.5 > there["recall"]
    assert (there["precision"], there["recall"]) == (back["recall"], back["precision"])


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_precision_and_recall_match_scikit_learn(neighbours: int) -> None:
    rng = np.random.default_rng(neighbours)
    generated, real = rng.normal(0.8, 1.2, size=(130, 4)), rng.normal(size=(90, 4))

    def covered(rows: np.ndarray, centres: np.ndarray) -> float:
        tree = NearestNeighbors(n_neighbors=neighbours + 1).fit(centres)
        radius = tree.kneighbors(centres)[0][:, -1]
        distance = np.linalg.norm(rows[:, None] - centres[None], axis=2)
        return float((distance <= radius).any(axis=1).mean())

    found = distribution.precision_recall(
        torch.from_numpy(generated), torch.from_numpy(real), neighbours=neighbours
    )
    assert found["precision"] == pytest.approx(covered(generated, real), abs=1e-6)
    assert found["recall"] == pytest.approx(covered(real, generated), abs=1e-6)


@pytest.mark.parametrize("case", ["is_sorted_1000x20", "is_underflow_200x20"])
def test_class_score_is_golden_and_shuffled(case: str) -> None:
    logits = torch.from_numpy(ARRAYS[f"{case}.logits"])
    found = distribution.class_score(logits, splits=10, shuffle_seed=2020)
    assert found == pytest.approx(EXPECTED[case]["torch_fidelity_10_shuffled_seed2020"]["mean"], rel=1e-10)
    assert found != pytest.approx(EXPECTED[case]["torch_fidelity_10_in_order"]["mean"], rel=1e-2)


def test_class_score_of_perfect_and_constant_classifiers() -> None:
    perfect = 1e3 * torch.eye(10, dtype=torch.float64).repeat(20, 1)
    assert distribution.class_score(perfect, splits=1, shuffle_seed=0) == pytest.approx(10)
    assert distribution.class_score(perfect * 0, splits=4, shuffle_seed=0) == pytest.approx(1)


# --- the evaluator --------------------------------------------------------------------------------


def test_names_are_those_of_the_card_and_say_digits() -> None:
    labels = torch.zeros(40, dtype=torch.int64)
    reference = Reference(digest="r", measured=measured(strokes(30, 1)))
    metrics = evaluator().score(measured(strokes(40, 0), labels), reference)
    card = Registry.default().evaluator("distribution-digits")
    assert {metric.name for metric in metrics} == METRICS == set(card.metrics)
    assert card.needs == ["reference"]
    assert all(metric.n == 40 for metric in metrics)
    assert not {name for name in METRICS if "fid" in name or "inception" in name}


def test_rows_are_one_per_image_in_float64() -> None:
    labels = torch.arange(6)
    rows = measured(strokes(6, 0, side=16), labels).rows
    assert {name: (column.shape, column.dtype) for name, column in rows.items()} == {
        "pixels": ((6, 64), np.float64),
        "penultimate": ((6, 32), np.float64),
        "logits": ((6, 10), np.float64),
        "label": ((6,), np.int64),
        "correct": ((6,), np.float64),
    }
    assert np.array_equal(rows["correct"], rows["logits"].argmax(axis=1) == labels.numpy())


def test_all_values_match_a_direct_computation() -> None:
    samples, reference = strokes(160, 0), strokes(150, 1)
    net = digits.load("digits-features-a").double()
    labels = net.logits(samples.double() / 127.5 - 1).argmax(dim=1)
    labels[:40] = (labels[:40] + 1) % 10
    found = scores(measured(samples, labels), measured(reference), splits=1)
    logits = net.logits(samples.double() / 127.5 - 1).numpy()
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found["is-digits"] == pytest.approx(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()))
    assert found["class-accuracy"] == pytest.approx(0.75)
    grey = [torch.as_tensor(part).double().mean(1).flatten(1) / 127.5 - 1 for part in (samples, reference)]
    assert found["fd-pixels"] == pytest.approx(distribution.frechet_distance(*grey), rel=1e-9)


def test_same_images_score_zero_and_one() -> None:
    images = measured(strokes(50, 2))
    found = scores(images, images)
    assert found["fd-digits"] == pytest.approx(0, abs=1e-6)
    assert found["fd-pixels"] == pytest.approx(0, abs=1e-6)
    assert (found["precision"], found["recall"]) == (1, 1)
    assert "class-accuracy" not in found


def test_a_few_of_the_real_images_are_precise_but_miss_the_rest() -> None:
    images = strokes(80, 2)
    found = scores(measured(images[:12]), measured(images))
    assert found["precision"] == 1 > 0.9 > found["recall"] >= 12 / 80


def test_pixel_repeated_copies_and_other_batches_score_the_same() -> None:
    reference = measured(strokes(140, 1))  # more rows than the 64 pixels: regular covariances
    small = scores(measured(strokes(150, 0)), reference)
    large = scores(measured(strokes(150, 0, side=32), batch=7), reference)
    assert small == pytest.approx(large, rel=1e-9)


def test_order_of_the_samples_changes_only_the_splits() -> None:
    images, reference = strokes(60, 0), measured(strokes(40, 1))
    forward, backward = (scores(measured(data), reference, splits=1) for data in (images, images.flip(0)))
    assert forward == pytest.approx(backward, rel=1e-8)


def test_rows_of_another_network_are_not_these() -> None:
    assert evaluator().identity == evaluator().identity
    assert evaluator().identity != evaluator(neighbours=4).identity


@pytest.mark.parametrize(
    ("samples", "reference", "changes", "words"),
    [
        (0, 30, {}, "0 samples"),
        (9, 30, {}, "9 samples.*10 splits need at least 10"),
        (3, 30, {"splits": 1}, "3 samples: 3 neighbours"),
        (30, 3, {}, "3 reference images"),
    ],
)
def test_too_few_images_are_an_error(
    samples: int, reference: int, changes: dict[str, int], words: str
) -> None:
    rows = measured(strokes(30, 0)).rows
    few, real = (
        Memory("x", {name: column[:count] for name, column in rows.items()}) for count in (samples, reference)
    )
    with pytest.raises(UserError, match=words):
        scores(few, real, **changes)


@pytest.mark.parametrize("reference", [None, Reference(digest="only statistics")])
def test_real_images_are_needed(reference: Reference | None) -> None:
    with pytest.raises(UserError, match="compared with real digits"):
        evaluator().score(measured(strokes(30, 0)), reference)


def test_features_that_are_not_finite_are_an_error() -> None:
    judge = evaluator()
    with torch.no_grad():
        judge._net.dense.bias[0] = torch.nan
    with pytest.raises(UserError, match=r"images 4 to 8: .*not finite"):
        judge.measure(ImageBatch(ids=range(4, 9), images=strokes(5, 0)))
