"""Pretraining of the embedded default, with budgets of a few steps."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from alignbench.backbones.llamagen import model as llamagen
from alignbench.data import digits as data
from alignbench.nets import digits
from alignbench.pretrain import common, llamagen_tiny
from alignbench.pretrain.common import GREY_STEP, Budget, Trainer, augment
from alignbench.registry.lookup import Registry

SHORT = {stage: Budget(steps=2, batch=32, lr=1e-3, warmup=1) for stage in llamagen_tiny.BUDGETS}
FILES = {"digits-features-a", "digits-features-b", "tokenizer", "policy"}


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Ignore progress."""


def shipped(name: str) -> Path:
    return Path(digits.__file__).parents[1] / digits.FOLDER / name


# --- the shipped files ----------------------------------------------------------------------------


def test_card_lists_the_shipped_files() -> None:
    listed = digits.manifest()["files"]
    for file in Registry.default().model("llamagen-tiny").files:
        facts = listed[f"{file.role}.safetensors"]
        assert file.shipped and file.path == f"{digits.FOLDER}/{file.role}.safetensors"
        assert (file.sha256, file.size) == (facts["sha256"], facts["bytes"])


def test_shipped_weights_load_and_reach_the_recorded_validation_numbers() -> None:
    card = Registry.default().model("llamagen-tiny")
    model = llamagen.build(card, {role: shipped(f"{role}.safetensors") for role in ("policy", "tokenizer")})
    listed = digits.manifest()["files"]
    validation = llamagen_tiny.Split.of(llamagen_tiny.open_split("validation"))
    found = {
        "policy": llamagen_tiny.validate_policy(model.policy, model.tokenizer, validation),
        "tokenizer": llamagen_tiny.validate_tokenizer(model.tokenizer, validation),
        **{
            name: llamagen_tiny.validate_classifier(digits.load(name), validation)
            for name in digits.ARCHITECTURES
        },
    }
    for name, values in found.items():
        assert values == pytest.approx(listed[f"{name}.safetensors"]["validation"], rel=2e-2), name


def test_manifest_says_how_the_shipped_files_were_made() -> None:
    manifest = digits.manifest()
    assert {f"{name}.safetensors" for name in FILES} == set(manifest["files"])
    assert manifest["seconds"] <= 240
    for name, budget in llamagen_tiny.BUDGETS.items():
        entry = manifest["files"][f"{name}.safetensors"]
        assert (entry["budget"]["steps"], entry["budget"]["lr"]) == (budget.steps, budget.lr)
    for split, facts in manifest["data"].items():
        assert facts["digest"] == llamagen_tiny.open_split(split).digest
    assert set(manifest["data"]) == {"train", "validation"}


# --- making them ----------------------------------------------------------------------------------


def test_pretrain_writes_what_its_manifest_says(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    manifest = llamagen_tiny.pretrain(
        tmp_path, progress=lambda stage, done, total, note: seen.append((stage, done, total)), budgets=SHORT
    )
    assert seen == [(stage, step, 2) for stage in llamagen_tiny.BUDGETS for step in (1, 2)]
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == FILES
    for name, facts in manifest["files"].items():
        content = (tmp_path / name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (facts["sha256"], facts["bytes"])
        assert all(math.isfinite(value) for value in facts["training"].values())
        # What was just made has the shape of what is shipped.
        shapes = [
            {key: value.shape for key, value in load_file(path).items()}
            for path in (tmp_path / name, shipped(name))
        ]
        assert shapes[0] == shapes[1]


def test_pretraining_is_a_function_of_the_seed_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def watched(*, split: str, **rest: object) -> data.Digits:
        opened.append(split)
        return data.open_digits(split=split, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(llamagen_tiny, "open_digits", watched)
    hashes = []
    for run, seed in enumerate((0, 0, 1)):
        torch.rand(run + 1)  # the state of torch's generator must not matter
        threads, state = torch.get_num_threads(), torch.get_rng_state()
        made = llamagen_tiny.pretrain(tmp_path / str(run), seed=seed, progress=silent, budgets=SHORT)
        assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
        hashes.append({name: facts["sha256"] for name, facts in made["files"].items()})
    assert hashes[0] == hashes[1]
    assert all(hashes[0][name] != hashes[2][name] for name in hashes[0])
    assert set(opened) == {"train", "validation"}, "the test split is never opened"


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
