"""Pretraining of both embedded models with budgets of a few steps, and what was shipped of it."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from alignbench.backbones.base import unwrap
from alignbench.backbones.llamagen import model as llamagen
from alignbench.backbones.text import words
from alignbench.data import shapes
from alignbench.nets import digits
from alignbench.pretrain import common, llamagen_tiny, shapes_tiny, shapes_tokenizer
from alignbench.pretrain.common import GREY_STEP, Budget, Progress, Trainer, augment
from alignbench.pretrain.llamagen_tiny import MODEL
from alignbench.registry.lookup import Registry

MODULES = {"llamagen-tiny": llamagen_tiny, "shapes-tiny": shapes_tiny}
WEIGHTS = Path(digits.__file__).parents[1] / "weights"
MANIFESTS = {name: json.loads((WEIGHTS / name / "manifest.json").read_text()) for name in MODULES}
LIMITS = {"llamagen-tiny": (240, 2 * 2**20), "shapes-tiny": (360, 3_000_000)}
"""Seconds and bytes."""
both = pytest.mark.parametrize("name", MODULES)


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Ignore progress."""


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "COUNTS", {"pretraining": 60, "train": 60, "validation": 12, "test": 12})
    monkeypatch.setattr(shapes_tokenizer, "LATENT_SCENES", 60)


def pretrain(name: str, out: Path, *, seed: int = 0, progress: Progress = silent) -> dict[str, Any]:
    """Pretrain with two steps a stage."""
    short = {stage: Budget(steps=2, batch=8, lr=1e-3, warmup=1) for stage in MODULES[name].BUDGETS}
    made: dict[str, Any] = MODULES[name].pretrain(out, seed=seed, progress=progress, budgets=short)
    return made


# --- the shipped files ----------------------------------------------------------------------------


@both
def test_card_and_manifest_describe_the_shipped_files(name: str) -> None:
    listed, card = MANIFESTS[name]["files"], Registry.default().model(name)
    assert {path.name for path in (WEIGHTS / name).glob("*.safetensors")} == set(listed)
    assert {f"{file.role}.safetensors" for file in card.files} <= set(listed)
    for file in card.files:
        facts = listed[f"{file.role}.safetensors"]
        assert file.shipped and file.path == f"weights/{name}/{file.role}.safetensors"
        assert (file.sha256, file.size) == (facts["sha256"], facts["bytes"])
    for path, facts in listed.items():
        content = (WEIGHTS / name / path).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (facts["sha256"], facts["bytes"])
    assert sum(facts["bytes"] for facts in listed.values()) <= LIMITS[name][1]


@both
def test_manifest_says_how_the_shipped_files_were_made(name: str) -> None:
    manifest, module = MANIFESTS[name], MODULES[name]
    assert manifest["seconds"] <= LIMITS[name][0]
    for file, facts in manifest["files"].items():
        stage = file.removesuffix(".safetensors")
        if stage in module.BUDGETS:
            made, budget = facts["budget"], module.BUDGETS[stage]
            assert (made["steps"], made["lr"], made["batch"]) == (budget.steps, budget.lr, budget.batch)
    assert len(manifest["data"]) == 2 and "test" not in manifest["data"]
    for split, facts in manifest["data"].items():
        assert facts["digest"] == module.open_split(split).digest


def test_shipped_weights_load_and_reach_the_recorded_validation_numbers() -> None:
    model = llamagen.build(
        Registry.default().model(MODEL),
        {role: WEIGHTS / MODEL / f"{role}.safetensors" for role in ("policy", "tokenizer")},
    )
    listed = MANIFESTS[MODEL]["files"]
    validation = llamagen_tiny.Split.of(llamagen_tiny.open_split("validation"))
    found = {
        "policy": llamagen_tiny.validate_policy(unwrap(model.policy), model.tokenizer, validation),
        "tokenizer": llamagen_tiny.validate_tokenizer(model.tokenizer, validation),
        **{
            name: llamagen_tiny.validate_classifier(digits.load(name), validation)
            for name in digits.ARCHITECTURES
        },
    }
    for name, values in found.items():
        assert values == pytest.approx(listed[f"{name}.safetensors"]["validation"], rel=2e-2), name


# --- making them ----------------------------------------------------------------------------------


@pytest.mark.slow
@both
@pytest.mark.usefixtures("few_scenes")
def test_pretraining_is_a_function_of_the_seed_and_leaves_no_trace(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: set[str] = set()
    open_split = MODULES[name].open_split

    def watched(split: str) -> object:
        opened.add(split)
        return open_split(split)

    monkeypatch.setattr(MODULES[name], "open_split", watched)
    hashes, seen = [], list[tuple[str, int, int]]()
    for run, seed in enumerate((0, 0, 1)):
        torch.rand(run + 1)  # the state of torch's generator must not matter
        threads, state = torch.get_num_threads(), torch.get_rng_state()
        out = tmp_path / str(run)
        manifest = pretrain(name, out, seed=seed, progress=lambda *at: seen.append(at[:3]))
        assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
        hashes.append({file: facts["sha256"] for file, facts in manifest["files"].items()})
    assert hashes[0] == hashes[1]
    assert all(hashes[0][file] != hashes[2][file] for file in hashes[0])
    assert seen == 3 * [(stage, step, 2) for stage in MODULES[name].BUDGETS for step in (1, 2)]
    assert opened == set(MANIFESTS[name]["data"]), "the test split is never opened"
    # What its manifest says, and of the shape of what is shipped.
    assert manifest == json.loads((out / "manifest.json").read_text())
    assert {path.name for path in out.iterdir()} == {path.name for path in (WEIGHTS / name).iterdir()}
    for file, facts in manifest["files"].items():
        content = (out / file).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (facts["sha256"], facts["bytes"])
        assert all(math.isfinite(value) for value in facts["training"].values())
        new, old = load_file(out / file), load_file(WEIGHTS / name / file)
        assert {key: value.shape for key, value in new.items()} == {k: v.shape for k, v in old.items()}


@pytest.mark.usefixtures("few_scenes")
def test_what_was_just_made_is_a_model(tmp_path: Path) -> None:
    pretrain("shapes-tiny", tmp_path)
    files = {role: tmp_path / f"{role}.safetensors" for role in ("policy", "tokenizer", "text")}
    assert files["text"].stat().st_size == (WEIGHTS / "shapes-tiny" / "text.safetensors").stat().st_size
    encoder = words.load(files.pop("text"))
    llamagen.build(Registry.default().model("shapes-tiny"), files, encoder=encoder)
    saved = tmp_path / "again.safetensors"
    encoder.save(saved)
    assert words.load(saved).config == encoder.config


# --- the loop -------------------------------------------------------------------------------------


def test_batches_are_permutations_without_the_remainder() -> None:
    budget = Budget(steps=7, batch=4, lr=1.0)
    rows = torch.stack(list(common.batches(0, "x", size=14, budget=budget)))
    assert rows.shape == (7, 4)
    for epoch in (rows[:3], rows[3:6]):
        assert len(epoch.unique()) == 12 and epoch.max() < 14
    assert not torch.equal(rows[:3], rows[3:6])
    with pytest.raises(ValueError, match="do not fill a batch"):
        next(common.batches(0, "x", size=3, budget=budget))


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    budget = Budget(steps=100, batch=1, lr=2.0, warmup=10)
    assert common.learning_rate(0, budget) == pytest.approx(0.2)
    assert common.learning_rate(9, budget) == common.learning_rate(10, budget) == 2.0
    assert common.learning_rate(55, budget) == pytest.approx(1.0)
    assert 0 < common.learning_rate(99, budget) < 1e-3


def test_fit_solves_a_regression_and_reports_the_tail() -> None:
    net = nn.Linear(3, 1)
    inputs = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    target = inputs @ torch.tensor([[1.0], [-2.0], [0.5]]) + 3

    def losses_of(rows: Tensor) -> dict[str, Tensor]:
        error = (net(inputs[rows]) - target[rows]).square().mean()
        return {"loss": error, "root": error.sqrt()}

    budget = Budget(steps=300, batch=16, lr=0.1)
    tail = Trainer({"x": budget}, 0, silent).fit("x", net, losses_of, size=64).training
    assert tail["loss"] < 1e-3 and set(tail) == {"loss", "root"}
    assert not net.training


def test_fit_stops_on_a_gradient_that_is_not_finite() -> None:
    net = nn.Linear(1, 1)
    trainer = Trainer({"x": Budget(steps=1, batch=2, lr=0.1)}, 0, silent)
    with pytest.raises(RuntimeError, match="non-finite"):
        trainer.fit("x", net, lambda rows: {"loss": net.weight.sum() * math.inf}, size=4)


# --- augmentation ---------------------------------------------------------------------------------


def test_augmentation_is_small_random_and_the_same_in_all_channels() -> None:
    images = llamagen_tiny.Split.of(llamagen_tiny.open_split("train")).images[:64]
    torch.manual_seed(0)
    first, second = augment(images), augment(images)
    assert first.shape == images.shape and first.dtype == images.dtype
    torch.testing.assert_close(first, first[:, :1].expand_as(first))
    assert not torch.equal(first, second)
    assert 1e-4 < (first - images).square().mean() < 0.05
    assert first.abs().max() <= 1 + GREY_STEP / 2


def test_augmentation_keeps_the_border_black_and_the_average_in_place() -> None:
    torch.manual_seed(0)
    black = augment(torch.full((50, 3, 8, 8), -1.0))
    assert (black + 1).abs().max() <= GREY_STEP / 2 + 1e-6
    dot = torch.full((2000, 3, 8, 8), -1.0)
    dot[:, :, 3:5, 3:5] = 1
    mass = (augment(dot) + 1).mean(dim=(0, 1))
    centre = (mass.sum(0) * torch.arange(8)).sum() / mass.sum()
    assert centre == pytest.approx(3.5, abs=0.02)
