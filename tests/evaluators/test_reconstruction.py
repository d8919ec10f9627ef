"""PSNR, SSIM and LPIPS of reconstructions as evaluators: columns, means, intervals, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from alignbench.api import ImageBatch
from alignbench.errors import RunFailed
from alignbench.evaluators.reconstruction import LpipsComparison, PixelComparison, build_lpips, build_pixels
from alignbench.hub.verify import AssetFile
from alignbench.metrics import image_quality
from alignbench.nets import lpips
from alignbench.registry.lookup import Registry
from tests.helpers.data_sets import refused
from tests.helpers.lpips_trunks import random_trunk
from tests.helpers.toys import Memory

REGISTRY = Registry.default()
CPU = torch.device("cpu")
TRUNK = "lpips-vgg16-trunk"


def batch(count: int = 6, side: int = 16) -> ImageBatch:
    numbers = torch.Generator().manual_seed(side)
    originals = torch.randint(0, 256, (count, 3, side, side), generator=numbers, dtype=torch.uint8)
    noise = torch.randint(-20, 21, originals.shape, generator=numbers)
    images = (originals + noise).clamp(0, 255).to(torch.uint8)
    images[0] = originals[0]
    return ImageBatch(ids=range(100, 100 + count), images=images, originals=originals)


def pixels() -> PixelComparison:
    card = REGISTRY.evaluator("reconstruction-pixels")
    return build_pixels(card, options={}, assets={}, device=CPU)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_trunk("vgg", tmp_path_factory.mktemp("vgg") / "trunk.pth")


def perceptual(trunk: Path, **options: int) -> LpipsComparison:
    card = REGISTRY.evaluator("reconstruction-lpips")
    files = {TRUNK: AssetFile(TRUNK, trunk, "0" * 64)}
    return build_lpips(card, options={"batch": 32, **options}, assets=files, device=CPU)


def test_rows_of_pixels_are_the_functions_of_each_image_alone() -> None:
    whole = batch()
    rows = pixels().measure(whole)
    assert whole.originals is not None
    assert rows["exact"].tolist() == [1, 0, 0, 0, 0, 0]
    assert np.array_equal(rows["psnr"], image_quality.psnr(whole.images, whole.originals).numpy())
    assert np.array_equal(rows["ssim"], image_quality.ssim(whole.images, whole.originals).numpy())
    doubled = image_quality.ssim(whole.images, whole.originals, data_range=510)
    assert np.array_equal(rows["ssim_range2"], doubled.numpy())
    error = ((whole.images.double() - whole.originals.double()) / 255).square().mean(dim=(1, 2, 3))
    assert rows["mse"] == pytest.approx(error.numpy(), rel=1e-12)
    assert rows["psnr"][1:] == pytest.approx(-10 * np.log10(error.numpy()[1:]), rel=1e-12)
    assert all(values.dtype == np.float64 and np.isfinite(values).all() for values in rows.values())
    for row in range(6):
        one = slice(row, row + 1)
        part = ImageBatch(ids=whole.ids[one], images=whole.images[one], originals=whole.originals[one])
        assert {name: [values[row]] for name, values in rows.items()} == pixels().measure(part)


@torch.no_grad()
def test_rows_of_lpips_are_the_distance_of_each_image_alone(trunk: Path) -> None:
    whole = batch(side=20)
    assert whole.originals is not None
    found = perceptual(trunk).measure(whole)["lpips"]
    distance = lpips.FeatureDistance(lpips.load_trunk("vgg", trunk), lpips.heads("vgg"))
    images, originals = (side.float() / 127.5 - 1 for side in (whole.images, whole.originals))
    expected = distance.distance(images, distance.prepare(originals), repeats=1)
    assert found == pytest.approx(expected.numpy(), rel=1e-6) and found.dtype == np.float64
    assert found[0] == 0 and (found[1:] > 0.001).all()
    small = perceptual(trunk, batch=4).measure(whole)["lpips"]
    assert small == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("name", ["reconstruction-pixels", "reconstruction-lpips"])
def test_scores_are_means_with_intervals_under_the_card_s_names(name: str, trunk: Path) -> None:
    card = REGISTRY.evaluator(name)
    assert card.needs == ["originals"]
    evaluator = pixels() if name == "reconstruction-pixels" else perceptual(trunk)
    numbers = np.random.default_rng(0)
    columns = {fact.column: numbers.normal(size=50) for fact in card.metrics.values()}
    assert set(columns) == set(evaluator.measure(batch(2)))
    metrics = evaluator.score(Memory(columns), None)
    assert {metric.name for metric in metrics} == set(card.metrics)
    for metric in metrics:
        values = columns[card.metrics[metric.name].column]
        half = 1.959964 * math.sqrt(values.var(ddof=1) / 50)
        assert metric.value == pytest.approx(values.mean()) and metric.n == 50
        assert metric.interval == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-5)
    for rows in (columns["psnr" if "psnr" in columns else "lpips"][:1], np.zeros(50)):  # no spread seen
        alike = evaluator.score(Memory(dict.fromkeys(columns, rows)), None)
        assert all(metric.interval is None and metric.value == rows[0] for metric in alike)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    numbers = np.random.default_rng(1)
    columns = [fact.column for fact in REGISTRY.evaluator("reconstruction-pixels").metrics.values()]
    evaluator, inside = pixels(), 0
    for _ in range(400):
        draws = numbers.gamma(4.0, 1.0, size=200)  # skewed, mean 4
        low, high = evaluator.score(Memory(dict.fromkeys(columns, draws)), None)[0].interval or (0.0, 0.0)
        inside += low < 4.0 < high
    assert 0.91 <= inside / 400 <= 0.98


def test_identities_tell_networks_apart_and_nothing_else(trunk: Path) -> None:
    assert pixels().identity == pixels().identity
    assert perceptual(trunk).identity == perceptual(trunk, batch=1).identity
    other = {TRUNK: AssetFile(TRUNK, trunk, "1" * 64)}
    card = REGISTRY.evaluator("reconstruction-lpips")
    changed = build_lpips(card, options={"batch": 32}, assets=other, device=CPU)
    assert len({pixels().identity, perceptual(trunk).identity, changed.identity}) == 3


def test_what_cannot_be_measured_is_refused(trunk: Path) -> None:
    for evaluator, side in ((pixels(), 6), (perceptual(trunk), 15)):
        assert f"images of {side} px are too small" in refused(evaluator.measure, batch(side=side))
        bare = ImageBatch(ids=[0], images=batch(1).images)
        assert "no reconstructions" in refused(evaluator.measure, bare)
    assert pixels().measure(batch(side=7)) and perceptual(trunk).measure(batch(side=16))


def test_broken_weights_are_named_with_the_image(trunk: Path, tmp_path: Path) -> None:
    state = torch.load(trunk)
    state["features.0.bias"][3] = float("nan")
    torch.save(state, tmp_path / "trunk.pth")
    with pytest.raises(RunFailed, match="image 100: its LPIPS is not finite"):
        perceptual(tmp_path / "trunk.pth").measure(batch(2))
