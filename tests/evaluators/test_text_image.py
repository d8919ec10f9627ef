"""CLIP score and HPS as evaluators, against open_clip used directly on the same images."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from alignbench.api import Evaluator, ImageBatch, Prompt, ScoreRequest
from alignbench.errors import RunFailed
from alignbench.evaluation.evaluate import build_evaluators
from alignbench.evaluation.features import FeatureStore, StoredFeatures, measure, units_of
from alignbench.evaluators import hps
from alignbench.hub.locate import locate_asset
from alignbench.hub.verify import verify_asset
from alignbench.progress import Progress, Stage
from alignbench.registry.lookup import Registry
from alignbench.rewards.build import build
from alignbench.samples.external import SampleImages
from tests.helpers.data_sets import refused
from tests.helpers.tiny_open_clip import make_config, make_model, save_folder
from tests.helpers.toys import alone

REGISTRY = Registry.default()
CPU = torch.device("cpu")
LONG = " ".join(["word"] * 76)
PROMPTS = ("a fox", "two red cubes", LONG, "a fox", "Ünïcode “quotes”", LONG[:-5])
"""75 words fit beside the marks of beginning and end, 76 do not."""
CLIP = "clip-vit-l-14-openai"
STAGE = Stage(Progress(), "measuring", total=1, done=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """quick: OpenAI's kind; plain: HPS's kind."""
    base = tmp_path_factory.mktemp("open_clip")
    save_folder(base / "quick", quick_gelu=True)
    save_folder(base / "plain", quick_gelu=False, weights="open_clip_pytorch_model.bin")
    return base


def pictures(shape: tuple[int, int] = (40, 40), count: int = len(PROMPTS)) -> Tensor:
    """Coarse pictures in 8 bits, [count, 3, H, W]."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    return (F.interpolate(coarse, shape, mode="bilinear", align_corners=True) * 255).round().byte()


def batch_of(images: Tensor, texts: Sequence[str] = PROMPTS) -> ImageBatch:
    return ImageBatch(ids=range(len(images)), images=images, prompts=[Prompt(text) for text in texts])


def built(name: str, *paths: Path, **options: Any) -> Evaluator:
    """Build one evaluator of the registry on files or folders of the tests, in the order of its assets."""
    assets = dict(zip(REGISTRY.evaluator(name).assets, paths, strict=True))
    files = {
        asset: verify_asset(locate_asset(asset, REGISTRY.asset(asset), str(path)))
        for asset, path in assets.items()
    }
    protocol = REGISTRY.protocol("drawbench").model_copy(
        update={"evaluators": [name], "options": {name: options}}
    )
    return build_evaluators(REGISTRY, protocol, files, CPU)[name]


def rows_of(evaluator: Evaluator, batch: ImageBatch, folder: Path) -> StoredFeatures:
    """Measure in shards of four."""
    images = SampleImages(
        "toy",
        "toy",
        len(batch),
        lambda ids: batch.images[ids.start : ids.stop],
        prompts=batch.prompts,
        batch=4,
    )
    store = FeatureStore(folder, "key")
    units = units_of(images, {"it": evaluator}, {"it": store})
    measure(units, alone(len(units)), STAGE)
    return store.rows(len(images.shards()))


def oracle(path: Path, images: Tensor, texts: Sequence[str] = PROMPTS) -> Tensor:
    """100 × cosine by open_clip alone, from PIL images one by one, [n] float64."""
    import open_clip

    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{path}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{path}")
    cosines = []
    with torch.no_grad():
        for image, text in zip(images, texts, strict=True):
            ready = prepare(Image.fromarray(image.permute(1, 2, 0).numpy()))[None]
            seen = model.eval().encode_image(ready, normalize=True)
            cosines.append((seen * model.encode_text(tokenizer([text]), normalize=True)).sum())
    return 100 * torch.stack(cosines).double()


# --- CLIP score -----------------------------------------------------------------------------------


SHAPES = ((40, 40), (28, 28), (20, 60), (70, 30))


@pytest.mark.parametrize("shape", SHAPES)
def test_clip_score_is_what_open_clip_says(folder: Path, shape: tuple[int, int]) -> None:
    kind = "plain" if shape == (28, 28) else "quick"
    rows = built("clip-score-l14", folder / kind).measure(batch_of(pictures(shape)))
    expected = oracle(folder / kind, pictures(shape))
    assert expected.std() > 1
    assert np.abs(rows["score"] - expected.numpy()).max() < 1e-6 * 100


def test_the_activation_makes_a_difference_here(folder: Path) -> None:
    """Otherwise the test above could not tell the two architectures apart."""
    images = pictures()
    assert (oracle(folder / "quick", images) - oracle(folder / "plain", images)).abs().max() > 0.01


@pytest.mark.parametrize(
    ("name", "kind"), [("clip-score-l14", "quick"), ("clip-score-b32", "quick"), ("hpsv2.1", "plain")]
)
def test_metrics_from_stored_shards(folder: Path, tmp_path: Path, name: str, kind: str) -> None:
    evaluator = built(name, folder / kind)
    rows = rows_of(evaluator, batch_of(pictures()), tmp_path)
    mean, truncated = evaluator.score(rows, None)
    facts = REGISTRY.evaluator(name).metrics
    assert list(facts) == [mean.name, truncated.name] == [mean.name, f"{mean.name}-truncated"]
    assert (mean.n, truncated.value, truncated.n) == (6, 1.0, 6)
    assert mean.interval is not None and mean.interval[0] < mean.value < mean.interval[1]
    assert rows.column("truncated").tolist() == [text == LONG for text in PROMPTS]
    drawbench, fact = REGISTRY.protocol("drawbench"), facts[mean.name]
    assert name in drawbench.evaluators and drawbench.samples == 200 * drawbench.images_per_prompt
    assert fact.per == "prompt" and rows.column(fact.column).mean() == pytest.approx(mean.value)


def test_neither_batches_nor_neighbours_matter(folder: Path) -> None:
    images = pictures()
    whole = built("clip-score-l14", folder / "quick").measure(batch_of(images))["score"]
    small = built("clip-score-l14", folder / "quick", batch=2)
    for rows in (slice(0, 6), slice(4, 5)):
        found = small.measure(batch_of(images[rows], PROMPTS[rows]))["score"]
        assert np.abs(found - whole[rows]).max() < 1e-4


def test_prefix_and_scale(folder: Path) -> None:
    images = pictures()
    changed = built("clip-score-b32", folder / "quick", prefix="A photo depicts", scale=2.5)
    expected = oracle(folder / "quick", images, [f"A photo depicts {text}" for text in PROMPTS])
    rows = changed.measure(batch_of(images))
    assert np.abs(rows["score"] - expected.numpy() / 40).max() < 1e-5
    assert rows["truncated"].tolist() == [text in (LONG, LONG[:-5]) for text in PROMPTS]


def test_identity_is_options_and_weights_but_not_the_batch(folder: Path, tmp_path: Path) -> None:
    first = built("clip-score-l14", folder / "quick").identity
    assert built("clip-score-l14", folder / "quick", batch=1).identity == first
    others = [
        built("clip-score-l14", folder / "quick", prefix="a").identity,
        built("clip-score-l14", folder / "quick", scale=1.0).identity,
        built("clip-score-l14", folder / "plain").identity,
    ]
    copied = Path(shutil.copytree(folder / "quick", tmp_path / "copy"))
    assert built("clip-score-l14", copied).identity == first
    config = json.loads((copied / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.1, 0.1, 0.1]
    (copied / "open_clip_config.json").write_text(json.dumps(config))
    others.append(built("clip-score-l14", copied).identity)
    assert len({first, *others}) == 5


def test_images_without_prompts_are_refused(folder: Path) -> None:
    evaluator = built("clip-score-l14", folder / "quick")
    message = refused(evaluator.measure, ImageBatch(ids=range(6), images=pictures()))
    assert "clip-l14 compares images with their prompts" in message


def test_scores_that_are_not_finite_are_named(folder: Path, tmp_path: Path) -> None:
    evaluator = built("clip-score-l14", folder / "quick")
    with torch.no_grad():
        evaluator.network.visual.proj.fill_(math.nan)  # type: ignore[attr-defined]
    with pytest.raises(
        RunFailed, match="evaluator 'it' failed: ValueError: column score holds values that are not numbers"
    ):
        rows_of(evaluator, batch_of(pictures()), tmp_path)


# --- HPS ------------------------------------------------------------------------------------------


def hps_oracle(path: Path, images: Tensor) -> Tensor:
    """100 × cosine by open_clip and torchvision, prepared as the official program does."""
    import open_clip
    from torchvision.transforms import functional as tv

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{path}")
    ready = []
    for image in images:
        pixels = tv.to_tensor(Image.fromarray(image.permute(1, 2, 0).numpy()))
        height, width = pixels.shape[1:]
        size = [round(length * 28 / max(height, width)) for length in (height, width)]
        pixels = tv.resize(pixels, size, tv.InterpolationMode.BICUBIC, antialias=True)
        down, right = 28 - size[0], 28 - size[1]
        pixels = tv.pad(pixels, [right // 2, down // 2, right - right // 2, down - down // 2])
        ready.append(tv.normalize(pixels, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        seen = model.eval().encode_image(torch.stack(ready), normalize=True)
        read = model.encode_text(open_clip.get_tokenizer("ViT-H-14")(list(PROMPTS)), normalize=True)
    scores: torch.Tensor = 100 * (seen * read).sum(dim=-1).double()
    return scores


@pytest.mark.parametrize("shape", SHAPES)
def test_hps_is_what_open_clip_says_after_padding(folder: Path, shape: tuple[int, int]) -> None:
    rows = built("hpsv2.1", folder / "plain").measure(batch_of(pictures(shape)))
    expected = hps_oracle(folder / "plain", pictures(shape))
    assert expected.std() > 1
    assert np.abs(rows["score"] - expected.numpy()).max() < 1e-6 * 100
    assert rows["truncated"].sum() == 1


def test_hps_checkpoint_file_and_its_versions(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    (tmp_path / "tiny-test.json").write_text(json.dumps(make_config(quick_gelu=False)))
    open_clip.add_model_config(tmp_path / "tiny-test.json")
    state = make_model(make_config(quick_gelu=False)).state_dict()
    torch.save({"epoch": 0, "state_dict": state}, tmp_path / "HPS_v2.1_compressed.pt")
    monkeypatch.setattr(hps, "ARCHITECTURE", "tiny-test")
    metrics = {}
    for name in ("hpsv2.1", "hpsv2.0"):
        evaluator = built(name, tmp_path / "HPS_v2.1_compressed.pt")
        rows = rows_of(evaluator, batch_of(pictures()), tmp_path / name)
        assert np.abs(rows.column("score") - hps_oracle(folder / "plain", pictures()).numpy()).max() < 1e-4
        metrics[name] = [metric.name for metric in evaluator.score(rows, None)]
    assert metrics == {name: [name, f"{name}-truncated"] for name in metrics}


def test_hps_evaluator_agrees_with_the_reward(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder / "plain", tmp_path / "copy"))
    (copied / "open_clip_pytorch_model.bin").rename(copied / "HPS_v2.1_compressed.pt")
    reward = build(f"hpsv2.1(path={copied})", REGISTRY, CPU, image_size=40)
    request = ScoreRequest(images=pictures().float() / 255, group=torch.arange(6), texts=PROMPTS)
    rows = built("hpsv2.1", folder / "plain").measure(batch_of(pictures()))
    assert np.abs(rows["score"] - 100 * reward.score(request).values.double().numpy()).max() < 1e-4
