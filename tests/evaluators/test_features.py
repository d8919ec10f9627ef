"""FD-DINOv2 with PRDC, CMMD and MIND on tiny networks, against other people's code and formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from alignbench.api import ImageBatch, Metric, Reference
from alignbench.errors import RunFailed
from alignbench.evaluators.features import FeatureDistances, build_digits
from alignbench.hub.verify import AssetFile
from alignbench.metrics.bootstrap import resamples
from alignbench.metrics.intervals import Z95, wilson
from alignbench.registry.lookup import Registry, import_target
from tests.evaluators.test_digits import measured as digit_rows
from tests.evaluators.test_digits import scores as digit_scores
from tests.evaluators.test_digits import strokes
from tests.helpers.command import alignbench
from tests.helpers.data_sets import refused
from tests.helpers.inception_toys import batch_of, network, random_weights, save_pngs
from tests.helpers.inception_toys import pictures as smooth
from tests.helpers.tiny_open_clip import save_folder
from tests.helpers.toys import Memory
from tests.nets.test_dinov2 import metas_weights

REGISTRY, CPU = Registry.default(), torch.device("cpu")


def built(name: str, path: Path, **changes: int) -> FeatureDistances:
    card = REGISTRY.evaluator(name)
    options = {key: option.default for key, option in card.options.items()} | changes
    assets = {asset: AssetFile(asset, path, "0" * 64) for asset in card.assets}
    evaluator: FeatureDistances = import_target(card.target)(card, options=options, assets=assets, device=CPU)
    return evaluator


def made_up(count: int, seed: int, *, shift: float = 0.0, width: int = 6) -> Memory:
    rows = np.random.default_rng(seed).normal(shift, 1, size=(count, width))
    return Memory({"features": rows.astype(np.float32)})


def scored(evaluator: FeatureDistances, ours: Memory, real: Memory) -> dict[str, Metric]:
    return {one.name: one for one in evaluator.score(ours, Reference(digest="r", measured=real))}


def pictures(count: int, seed: int, side: int = 32) -> torch.Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=numbers, dtype=torch.uint8)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    torch.save(metas_weights(), folder / "dinov2_vitl14_pretrain.pth")
    return folder


def prdc(ours: np.ndarray, real: np.ndarray, k: int) -> dict[str, float]:
    """All distances at once, as in the authors' program."""
    from sklearn.metrics import pairwise_distances

    own = [np.sort(pairwise_distances(rows), axis=1)[:, k] for rows in (real, ours)]
    apart = pairwise_distances(real, ours)
    return {
        "precision": float((apart < own[0][:, None]).any(axis=0).mean()),
        "recall": float((apart < own[1][None]).any(axis=1).mean()),
        "density": float((apart < own[0][:, None]).sum(axis=0).mean() / k),
        "coverage": float((apart.min(axis=1) < own[0]).mean()),
    }


def test_fd_dinov2_and_prdc_are_those_of_dgm_evals_formulas(dinov2: Path) -> None:
    evaluator = built("distribution-dinov2", dinov2, bootstrap=4)
    ours, real = made_up(90, 1, shift=0.8), made_up(60, 2)
    found = scored(evaluator, ours, real)
    assert set(found) == set(REGISTRY.evaluator("distribution-dinov2").metrics)
    a, b = (memory.column("features").astype(np.float64) for memory in (ours, real))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    traces = np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert found["fd-dinov2"].value == pytest.approx(((a.mean(0) - b.mean(0)) ** 2).sum() + traces, rel=1e-9)
    assert found["fd-dinov2-corrected"].value < found["fd-dinov2"].value
    part = a[np.arange(60) * 90 // 60]  # both sets are cut to one size
    for name, value in prdc(part, b, 5).items():
        metric = found[f"{name}-dinov2"]
        assert metric.value == pytest.approx(value, abs=1e-12) and metric.n == 60
        if name != "density":
            assert metric.interval == pytest.approx(wilson(value, 60))
    assert 0 < found["density-dinov2"].value < 1 and 0 < found["coverage-dinov2"].value < 1
    few = scored(built("distribution-dinov2", dinov2, manifold_images=30), ours, real)
    assert few["coverage-dinov2"].value == pytest.approx(prdc(a[::3], b[::2], 5)["coverage"], abs=1e-12)


def test_errors_of_a_set_are_those_of_its_resamples(dinov2: Path) -> None:
    plain, drawing = (built("distribution-dinov2", dinov2, bootstrap=n, bootstrap_seed=5) for n in (0, 3))
    ours, real = made_up(60, 1, shift=0.5), made_up(60, 2)
    found = scored(drawing, ours, real)
    assert {name for name, metric in found.items() if metric.resampled} == {
        "fd-dinov2", "precision-dinov2", "density-dinov2",
    }  # fmt: skip
    for times, value in zip(resamples(60, replicates=3, seed=5), found["fd-dinov2"].resampled, strict=True):
        again = Memory({"features": np.repeat(ours.column("features"), times, axis=0)})
        assert value == pytest.approx(scored(plain, again, real)["fd-dinov2"].value, rel=1e-8)
    drawn = found["fd-dinov2"].resampled
    half = Z95 * np.std(drawn, ddof=1)
    value = found["fd-dinov2"].value
    assert found["fd-dinov2"].interval == pytest.approx((value - half, value + half))
    low, high = found["density-dinov2"].interval or (0, 0)
    assert low < found["density-dinov2"].value < high
    assert not any(metric.resampled for metric in scored(plain, ours, real).values())


def test_cmmd_is_that_of_its_program(tmp_path: Path) -> None:
    """Features: PIL bicubic to the network's side, CLIP's mean and spread (the folder's), unit length."""
    evaluator = built("cmmd", save_folder(tmp_path / "clip", quick_gelu=True), bootstrap=3)
    sets = {seed: pictures(6, seed) for seed in (1, 2)}
    rows = {seed: Memory(evaluator.measure(ImageBatch(ids=range(6), images=x))) for seed, x in sets.items()}
    import open_clip

    from alignbench.nets import clip

    model = clip.load(tmp_path / "clip", "unused")
    prepared = [
        np.asarray(Image.fromarray(one.permute(1, 2, 0).numpy()).resize((28, 28), Image.Resampling.BICUBIC))
        for one in sets[1]
    ]
    assert isinstance(model.network, open_clip.CLIP)
    scaled = torch.from_numpy(np.stack(prepared)).permute(0, 3, 1, 2) / 255
    mean, spread = (torch.tensor(x)[:, None, None] for x in ((0.5, 0.4, 0.3), (0.3, 0.3, 0.2)))
    with torch.no_grad():
        seen = model.network.encode_image((scaled - mean) / spread)
    expected = (seen / seen.norm(dim=1, keepdim=True)).numpy()
    assert rows[1].column("features") == pytest.approx(expected, abs=1e-6)
    x, y = (rows[seed].column("features").astype(np.float64) for seed in (1, 2))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / 200).mean())

    found = scored(evaluator, rows[1], rows[2])["cmmd"]
    assert found.value == pytest.approx(1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)), abs=1e-6)
    assert len(found.resampled) == 3 and found.interval is not None


def test_mind_is_torch_fidelitys_formula_on_fids_features() -> None:
    evaluator = built("mind", random_weights(), bootstrap=2, directions=40)
    images = pictures(4, 1, side=48)
    rows = evaluator.measure(ImageBatch(ids=range(4), images=images))["features"]
    assert np.array_equal(rows, network().rows(images, batch=64)["pool"])
    ours, real = made_up(50, 1, shift=0.4), made_up(30, 2)
    rng = torch.Generator().manual_seed(2020)
    part = torch.randperm(50, generator=rng)[:30].numpy()
    units = torch.randn(40, 6, generator=rng)
    turned = (units / units.norm(dim=1, keepdim=True)).double().numpy().T
    x, y = (np.sort(z @ turned, axis=0) for z in (ours.column("features")[part], real.column("features")))
    found = scored(evaluator, ours, real)["mind"]
    assert found.value == pytest.approx(3 * 6 * ((x - y) ** 2).mean(), rel=1e-9)
    assert found.n == 30 and len(found.resampled) == 2


def test_digits_get_all_of_them_from_the_network_of_their_other_metrics() -> None:
    card = REGISTRY.evaluator("features-digits")
    evaluator = build_digits(card, options={name: option.default for name, option in card.options.items()})
    sets = [strokes(60, seed) for seed in (1, 2)]
    ours, real = (Memory(evaluator.measure(ImageBatch(ids=range(60), images=x))) for x in sets)
    found = scored(evaluator, ours, real)
    assert set(found) == set(card.metrics)
    assert ours.column("features") == pytest.approx(digit_rows(sets[0]).column("penultimate"), rel=1e-12)
    usual = digit_scores(*map(digit_rows, sets), neighbours=5)
    assert found["frechet-digits"].value == pytest.approx(usual["fd-digits"], rel=1e-9)
    for name in ("precision", "recall"):
        assert found[f"{name}-digits"].value == pytest.approx(usual[name], rel=1e-6)
    assert all(metric.interval is not None for metric in found.values())


def test_no_real_images_and_too_few_are_refused(dinov2: Path) -> None:
    evaluator = built("distribution-dinov2", dinov2)
    nothing, real = (Reference(digest="r", measured=rows) for rows in (None, made_up(5, 0)))
    assert "there are none" in refused(evaluator.score, made_up(9, 0), nothing)
    assert "5 reference images are too few" in refused(evaluator.score, made_up(9, 0), real)

    def broken(images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images), 2), float("nan"))

    evaluator = FeatureDistances(broken, [], options={"batch": 2}, weights="0")
    with pytest.raises(RunFailed, match="image 7: the network's features are not finite"):
        evaluator.measure(ImageBatch(ids=range(7, 10), images=pictures(3, 0)))


def test_images_of_a_folder_are_scored_against_a_reference_of_one_s_own(dinov2: Path, tmp_path: Path) -> None:
    """What `alignbench reference` writes names the Inception network; its images are what counts here."""
    images = {seed: smooth(8, seed, side=256) for seed in (1, 2)}
    save_pngs(tmp_path / "generated", images[1])
    np.savez(tmp_path / "real.npz", arr_0=images[2], network="f" * 64, image_size=256)
    done = alignbench(
        "evaluate", "--samples", tmp_path / "generated", "--out", tmp_path / "run",
        "--protocol", "imagenet256-dinov2",
        "--set", f"assets.dinov2-large={dinov2}", "--set", "protocol.samples=8",
        "--set", f"assets.imagenet256-train-images={tmp_path / 'real.npz'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    evaluator = built("distribution-dinov2", dinov2)
    ours, real = (Memory(evaluator.measure(batch_of(images[seed]))) for seed in (1, 2))
    for name, metric in scored(evaluator, ours, real).items():
        recorded = result["metrics"][name][0]
        assert (
            recorded is None if np.isnan(metric.value) else recorded == pytest.approx(metric.value, rel=1e-6)
        )
    assert set(result["intervals"]) == set(result["metrics"]) - {"fd-dinov2-corrected"}


def test_a_reward_of_the_same_family_marks_cmmd() -> None:
    fact = REGISTRY.evaluator("cmmd").metrics["cmmd"]
    assert fact.was_reward(["openai/clip-vit-large-patch14"]) and fact.was_reward(fact.networks)
    others: list[Any] = ["laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "digits-features-b"]
    assert not fact.was_reward(others) and not fact.was_reward([])
    plain = REGISTRY.evaluator("clip-score-l14").metrics["clip-l14"]
    assert plain.was_reward(["openai/clip-vit-large-patch14"])
