"""pFID: which codes are near, what is moved, and the mean of distances against scipy."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from alignbench.api import ImageBatch, Reference
from alignbench.backbones.llamagen.model import build
from alignbench.errors import RunFailed, UserError
from alignbench.evaluators.perturbed import PerturbedReconstruction, build_digits, build_inception
from alignbench.files import package_file
from alignbench.hub.verify import AssetFile
from alignbench.metrics.bootstrap import resamples
from alignbench.nets import inception
from alignbench.registry.lookup import Registry
from alignbench.samples.real import DatasetImages
from alignbench.samples.reconstructed import ReconstructedImages, nearest_codes
from tests.evaluators import test_digits
from tests.helpers.data_sets import opened
from tests.helpers.inception_toys import ASSET, batch_of, pictures, scorer
from tests.helpers.toys import Memory

REGISTRY = Registry.default()
CPU = torch.device("cpu")


def digits_evaluator(**changes: str) -> PerturbedReconstruction:
    card = REGISTRY.evaluator("reconstruction-pfid-digits")
    options = {name: option.default for name, option in card.options.items()} | changes
    return build_digits(card, options=options)


@cache
def tokenizer() -> Any:
    card = REGISTRY.model("llamagen-tiny")
    return build(card, {str(file.role): package_file(file.path) for file in card.files}).tokenizer


def reconstructions(*, batch: int = 100, seed: int = 0, codes: Any = None) -> ReconstructedImages:
    protocol = REGISTRY.protocol("digits8-perturbed").model_copy(update={"batch": batch})
    backbone: Any = SimpleNamespace(tokenizer=codes or tokenizer())
    dataset = opened("digits8", "test", num_classes=10)
    return ReconstructedImages(dataset, backbone, protocol, CPU, weights_digest="sha256:w", seed=seed)


def measured(evaluator: Any, images: Any) -> Memory:
    parts = [evaluator.measure(images.load(number)) for number in range(len(images.shards()))]
    return Memory({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


@cache
def originals() -> DatasetImages:
    return DatasetImages(opened("digits8", "test", num_classes=10))


def by_scipy(one: np.ndarray, two: np.ndarray) -> float:
    first, second = (np.cov(rows.astype(np.float64), rowvar=False) for rows in (one, two))
    root = scipy.linalg.sqrtm(first @ second).real
    gap = one.astype(np.float64).mean(axis=0) - two.astype(np.float64).mean(axis=0)
    return float(gap @ gap + np.trace(first + second - 2 * root))


def of_few(one: np.ndarray, two: np.ndarray) -> float:
    """The same of fewer rows than features: the root's trace is that of the rows' inner products."""
    (gap, first), (other, second) = (
        (x.mean(axis=0), x - x.mean(axis=0)) for x in (one.astype("f8"), two.astype("f8"))
    )
    first, second = first / np.sqrt(len(one) - 1), second / np.sqrt(len(two) - 1)
    root = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    return float(np.square(gap - other).sum() + np.square(first).sum() + np.square(second).sum() - 2 * root)


# --- which codes ----------------------------------------------------------------------------------


def test_the_nearest_codes_are_others_by_squared_distance() -> None:
    found = nearest_codes(torch.tensor([[0.0], [1.0], [3.0], [3.5]]), 2)
    assert found.tolist() == [[1, 2], [0, 2], [3, 1], [2, 1]]
    rows = torch.randn(700, 5, generator=torch.Generator().manual_seed(0))  # more than one block
    distance = (rows.double()[:, None] - rows.double()).square().sum(-1).fill_diagonal_(torch.inf)
    assert torch.equal(nearest_codes(rows, 40), distance.argsort(dim=1)[:, :40])


class Numbers:
    """Codes are pixel values on a line of `num_codes`; decoding gives them back, four levels apart."""

    downsample, code_dim = 1, 1

    def __init__(self, num_codes: int) -> None:
        self.num_codes = num_codes

    def encode(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 64), self.num_codes // 2)

    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return ((tokens * 4 + 0.5) / 127.5 - 1).view(-1, 1, *grid).expand(-1, 3, -1, -1)

    def codebook(self) -> Tensor:
        return torch.arange(self.num_codes).float()[:, None]


@pytest.mark.parametrize(("share", "near", "count"), [(0.9, 200, 1), (0.5, 500, 2), (1.0, 4096, 16)])
def test_a_share_of_codes_moves_to_one_of_the_nearest(share: float, near: int, count: int) -> None:
    """Of 64 codes on a line; the number of near ones is proportional to the codebook's size, and rounded."""
    codes = Numbers(64)
    whole = reconstructions(codes=codes).load(0)
    assert whole.perturbed is not None
    moved = whole.perturbed(share, near / 16_384)[:, 0].double() / 4
    gap = (moved.floor() - 32).abs()
    changed = gap > 0  # never to itself
    assert changed.double().mean().item() == pytest.approx(share, abs=0.02)  # 6,400 codes
    values = moved.floor()[changed].unique(return_counts=True)
    assert len(values[0]) == count and gap.max() == (count + 1) // 2
    assert (values[1] / values[1].sum() * count - 1).abs().max() < 0.2


def test_numbers_belong_to_image_pair_and_seed_however_sets_are_cut() -> None:
    def images(share: float, near: float, **options: Any) -> Tensor:
        whole, parts = reconstructions(codes=Numbers(64), **options), []
        for number in range(len(whole.shards())):
            perturbed = whole.load(number).perturbed
            assert perturbed is not None
            parts.append(perturbed(share, near))
        return torch.cat(parts)

    first = images(0.5, 0.1)
    assert torch.equal(first, images(0.5, 0.1, batch=37))
    assert not torch.equal(first[0], first[1])
    for other in (images(0.6, 0.1), images(0.5, 0.11), images(0.5, 0.1, seed=1)):
        assert not torch.equal(first, other)
    assert reconstructions(seed=1).identity != reconstructions().identity


# --- the metric -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Matrix is singular")  # two features are always 0
def test_the_mean_is_that_of_scipy_s_distances_on_the_same_features() -> None:
    evaluator = digits_evaluator(shares="0.9,0.5", nearest="128,384")
    samples, real = measured(evaluator, reconstructions()), measured(evaluator, originals())
    (metric,) = evaluator.score(samples, Reference(digest="r", measured=real))
    net, expected = test_digits.evaluator(), []
    for share in (0.9, 0.5):
        for near in (128, 384):
            parts = []
            for number in range(4):
                batch = reconstructions().load(number)
                assert batch.perturbed is not None
                moved = ImageBatch(ids=batch.ids, images=batch.perturbed(share, near / 16_384))
                parts.append(net.measure(moved)["penultimate"])
            features = measured(net, originals()).column("penultimate")
            expected.append(by_scipy(np.concatenate(parts), features))
    assert metric.name == "pfid-digits" and metric.n == 400 and metric.interval is None
    assert metric.value == pytest.approx(np.mean(expected), abs=1e-6)
    assert len(set(expected)) == 4 and min(expected) > 0.3  # 0.11 unperturbed


def test_without_perturbation_it_is_the_distance_of_reconstructions_bit_for_bit() -> None:
    evaluator, plain = digits_evaluator(shares="0,0.0,0.00", nearest="1,200,360"), test_digits.evaluator()
    values = []
    for one in (evaluator, plain):
        reference = Reference(digest="r", measured=measured(one, originals()))
        metrics = one.score(measured(one, reconstructions()), reference)
        values.append(metrics[0].value)
    assert values[0] == values[1] > 0


class Narrow:
    """In place of Inception: formulas do not know how many features there are."""

    def rows(self, images: Tensor, *, batch: int) -> dict[str, np.ndarray]:
        pooled = torch.nn.functional.adaptive_avg_pool2d(images.float(), (2, 4)).flatten(1)
        return {"pool": (pooled / 64).sin().numpy()}


def inception_evaluator(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> PerturbedReconstruction:
    monkeypatch.setattr(inception, "load", lambda path, device: Narrow())
    card = REGISTRY.evaluator("reconstruction-pfid-inception")
    options = {name: option.default for name, option in card.options.items()} | {"bootstrap": 20} | changes
    file = AssetFile(ASSET, Path("weights"), "0" * 64)
    return build_inception(card, options=options, assets={ASSET: file}, device=CPU)


def test_inception_s_value_and_resamples_are_those_of_fid(monkeypatch: pytest.MonkeyPatch) -> None:
    """With images that moving changes in a known way; resample k draws the same images for each pair."""
    real, made = pictures(9, seed=2, cells=6), pictures(10, seed=1)
    darker = {share: batch_of((made * (1 - share)).astype(np.uint8)).images for share in (0.0, 0.5)}
    evaluator = inception_evaluator(monkeypatch, shares="0,0.5", nearest="200")
    batch = ImageBatch(
        ids=range(10), images=batch_of(made).images, perturbed=lambda share, near: darker[share]
    )
    samples, reference = Memory(evaluator.measure(batch)), Memory(evaluator.measure(batch_of(real)))
    assert reference.rows.keys() == {"real"} and samples.column("0-200").shape == (10, 24)
    (metric,) = evaluator.score(samples, Reference(digest="r", measured=reference))
    pairs = [of_few(samples.column(name), reference.column("real")) for name in ("0-200", "0.5-200")]
    assert metric.value == pytest.approx(np.mean(pairs), rel=1e-6)
    weights = next(resamples(10, replicates=20, seed=0))
    drawn = [
        of_few(np.repeat(samples.column(f"{a}-200"), weights, axis=0), reference.column("real"))
        for a in ("0", "0.5")
    ]
    assert len(metric.resampled) == 20 and metric.resampled[0] == pytest.approx(np.mean(drawn), rel=1e-6)
    half = 1.959963984540054 * np.std(metric.resampled, ddof=1)
    assert metric.interval == pytest.approx((metric.value - half, metric.value + half), rel=1e-12)

    plain = inception_evaluator(monkeypatch, shares="0", nearest="200", bootstrap=0)
    (alone,) = plain.score(samples, Reference(digest="r", measured=reference))
    rows = {name: reference.column("real") for name in ("pool", "logits", "spatial")}
    same = {name: samples.column("0-200") for name in rows}
    ours = scorer(bootstrap=0).score(Memory(same), Reference(digest="r", measured=Memory(rows)))
    assert alone.value == next(metric.value for metric in ours if metric.name == "fid")
    assert alone.interval is None and plain.identity != evaluator.identity


def test_what_cannot_be_is_refused() -> None:
    for wrong in ({"shares": "1.1"}, {"shares": ""}, {"nearest": "two"}, {"nearest": "-1"}):
        with pytest.raises(UserError, match="no list of numbers"):
            digits_evaluator(**wrong)
    with pytest.raises(UserError, match="pfid-digits compares with the original images"):
        digits_evaluator().score(Memory({"0.9-128": np.zeros((4, 2))}), None)
    evaluator = digits_evaluator()
    evaluator._frechet = SimpleNamespace(features=lambda images: np.full((len(images), 2), np.nan))  # type: ignore[assignment]
    with pytest.raises(RunFailed, match="image 5: the network's features are not finite"):
        evaluator.measure(ImageBatch(ids=range(5, 7), images=torch.zeros(2, 3, 8, 8, dtype=torch.uint8)))
