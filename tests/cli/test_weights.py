"""`alignbench fetch`, and what `alignbench doctor` says about files that are not here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from alignbench.cli import doctor, weights
from alignbench.errors import UserError
from alignbench.hub.locate import assets_of
from alignbench.registry.lookup import Registry


@pytest.fixture(autouse=True)
def other_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the caches of other programs inside the test's folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))


def test_fetching_a_protocol_lists_all_it_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weights.fetch(["drawbench"], dry_run=True)
    said, registry = capsys.readouterr(), Registry.default()
    names = assets_of(registry, registry.protocol("drawbench"))
    assert [line.split("  ")[0] for line in said.out.splitlines()] == names
    assert said.out.count("(would download)") == len(names)
    for name in names:
        assert f"{name}: licence {registry.asset(name).licence}" in said.err
    assert not list(tmp_path.iterdir())


def test_fetch_takes_models_evaluators_and_assets(capsys: pytest.CaptureFixture[str]) -> None:
    for name, files in {
        "hpsv2.1": ["hpsv2.1"],  # an evaluator and its asset have this name
        "imagereward": ["imagereward", "bert-tokenizer"],  # so has a reward of these files
        "pickscore": [  # the reward finds the evaluator's network, and keeps a tokenizer of its own
            "pickscore",
            "pickscore-processor",
            "laion--CLIP-ViT-H-14-laion2B-s32B-b79K@1c2b8495b281",
        ],
        "clip-score-l14": ["clip-vit-l-14-openai"],
        "llamagen-xl-t2i": ["flan-t5-xl", "policy", "tokenizer"],
        "lpips-vgg": ["lpips-vgg16-trunk"],
        "aesthetic": ["openai--clip-vit-large-patch14@32bd64288804", "sac+logos+ava1-l14-linearMSE"],
    }.items():
        weights.fetch([name], dry_run=True)
        assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == files
    registry = Registry.default()
    recipe = registry.recipe("vapi-llamagen-xxl")
    weights.fetch(["vapi-llamagen-xxl", "lpips-vgg"], dry_run=True)
    brought = {line.split("  ")[0] for line in capsys.readouterr().out.splitlines()}
    assert brought == {
        "policy",
        "tokenizer",
        "lpips-vgg16-trunk",
        *assets_of(registry, registry.protocol(registry.model(recipe.models[0]).protocol)),
    }
    weights.fetch(["digits8"], dry_run=False)
    assert "digits8 needs no files from outside" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"named 'drawbnch'\. Did you mean drawbench"):
        weights.fetch(["drawbnch"])


def test_doctor_names_the_command_for_each_missing_file(tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "cache" / "assets" / "hpsv2.1"
    folder.mkdir(parents=True)
    (folder / "HPS_v2.1_compressed.pt").write_bytes(b"1")
    evaluators = doctor.gather("vapi")["evaluators"]
    assert evaluators["distribution-digits"] == {"runs": "yes", "missing": []}
    assert evaluators["hpsv2.1"]["runs"] == "yes"
    (missing,) = evaluators["clip-score-l14"]["missing"]
    assert evaluators["clip-score-l14"]["runs"] == "no" and "ViT-L-14.pt is not in" in missing["what"]
    assert missing["fix"].startswith("alignbench fetch clip-vit-l-14-openai")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert doctor.gather("vapi")["evaluators"]["hpsv2.1"]["missing"] == [
        {"what": "module open_clip is not installed", "fix": "pip install 'alignbench[rewards]'"}
    ]
