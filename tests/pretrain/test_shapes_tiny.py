"""The embedded text-to-image model: its shipped weights, how they are made, and every method on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignbench import api
from alignbench.backbones.llamagen import model as llamagen
from alignbench.backbones.llamagen.model import LlamaGen
from alignbench.backbones.text import words
from alignbench.files import package_file
from alignbench.pretrain import shapes_tiny, shapes_tokenizer
from alignbench.pretrain.common import pixels_of
from alignbench.registry.lookup import Registry
from tests.helpers.command import alignbench

REGISTRY = Registry.default()
CARD = REGISTRY.model("shapes-tiny")
FOLDER = package_file("weights/shapes-tiny")
MANIFEST: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text())
CAPTIONS = ["a red square", "two rings", "a white circle and a blue cross", "a ring below a square"]


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    shape = CARD.policy
    assert shape.caption_dim is not None
    files: dict[str, Path] = {file.role: FOLDER / f"{file.role}.safetensors" for file in CARD.files}
    encoder = words.build(
        files.pop("text"),
        digest="",
        slots=shape.condition_tokens,
        width=shape.caption_dim,
        device=torch.device("cpu"),
    )
    return llamagen.build(CARD, files, encoder=encoder)


# --- the shipped files ----------------------------------------------------------------------------


def test_shipped_weights_reach_the_recorded_validation_numbers(model: LlamaGen) -> None:
    scenes = shapes_tiny.open_split("validation")
    images, files = pixels_of(scenes), MANIFEST["files"]
    found = shapes_tokenizer.validate(model.tokenizer, images, scenes.captions)
    assert found == pytest.approx(files["tokenizer.safetensors"]["validation"], rel=2e-2)
    assert found["right"] >= 0.95, "the tokenizer would cap every score"
    assert MANIFEST["data"]["validation"]["digest"] == scenes.digest
    features = model.text_condition(scenes.captions)
    tokens = model.tokenizer.encode(images)
    with torch.no_grad():
        logits = model.logits(features, tokens[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).item()
    recorded = files["policy.safetensors"]["validation"]
    assert loss == pytest.approx(recorded["cross_entropy"], rel=1e-3)
    assert 0.2 <= recorded["right"] <= 0.8, "methods could not differ"


def test_text_rows_depend_on_their_text_alone(model: LlamaGen) -> None:
    together, alone = model.text_condition(CAPTIONS), model.text_condition(CAPTIONS[2:3])
    assert isinstance(together, api.TextFeatures) and isinstance(alone, api.TextFeatures)
    torch.testing.assert_close(together.features[2:3], alone.features)


def test_samples_follow_their_captions(model: LlamaGen) -> None:
    captions = ["a red square"] * 40
    uniforms = torch.rand(40, model.num_tokens, generator=torch.Generator().manual_seed(0)).double()
    drawn = model.generate(model.text_condition(captions), uniforms, api.Sampling(temperature=0.7))
    images = model.tokenizer.decode(drawn.tokens, model.grid)
    right = shapes_tokenizer.share_right(images, captions)
    wrong = shapes_tokenizer.share_right(images, ["a blue ring"] * 40)
    assert right > 0.3 and wrong < 0.1


# --- making them again ----------------------------------------------------------------------------


def test_codes_cover_what_is_rare() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(12, 8, generator=generator), dim=-1)
    owners = torch.cat([torch.zeros(5000, dtype=torch.long), torch.arange(1, 12)])
    noise = 1e-3 * torch.randn(len(owners), 8, generator=generator)
    points = torch.nn.functional.normalize(centres[owners] + noise, dim=-1)
    codes = shapes_tokenizer.codes_on(points, 12)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(12))
    assert ((centres @ codes.T).max(dim=1).values > 0.999).all()


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--model", "shapes-tiny", "--prompt", "two rings", "--prompt", "a white circle", "-n", "3"], 0),
        (["--model", "shapes-tiny"], 2),
        (["--model", "shapes-tiny", "--prompt", "a photo"], 2),
        (["--model", "shapes-tiny", "--prompt", "two rings", "--classes", "1"], 2),
        (["--model", "llamagen-tiny", "--prompt", "two rings"], 2),
    ],
)
def test_pictures_are_drawn_from_prompts(arguments: list[str], code: int, tmp_path: Path) -> None:
    assert alignbench("sample", *arguments, "--out", tmp_path / "s").returncode == code
    drawn = sorted(path.name for path in tmp_path.glob("s/*.png"))
    assert drawn == ([] if code else ["00000.png", "00001.png", "00002.png", "grid.png"])


# --- a run --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_scenes")
def test_a_whole_run(tmp_path: Path) -> None:
    """The contract has every method train it."""
    out = tmp_path / "run"
    arguments = [
        "run", "--method", "vapi", "--model", "shapes-tiny", "--protocol", "shapes-validation",
        "--steps", "2", "--out", str(out),
        "--set", "train.images_per_step=4", "--set", "train.micro_batch=4", "--set", "train.warmup_steps=1",
        "--set", "protocol.seeds=10", "--set", "protocol.settings=t1", "--set", "protocol.samples=60",
    ]  # fmt: skip
    assert alignbench(*arguments).returncode == 0
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "complete"
    scores = {row["subject"]: row["metrics"] for row in record["results"]}
    assert set(scores) == {"base", "method"}
    for metrics in scores.values():
        tasks = [
            value[0] for name, value in metrics.items() if name not in ("shapes-overall", "shapes-images")
        ]
        assert len(tasks) == 6
        assert metrics["shapes-overall"][0] == pytest.approx(sum(tasks) / 6)
