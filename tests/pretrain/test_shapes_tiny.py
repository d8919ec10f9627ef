"""The embedded text-to-image model: its shipped weights, how they are made, and every method on it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import alignbench
from alignbench import api
from alignbench.backbones.llamagen import model as llamagen
from alignbench.backbones.llamagen.model import LlamaGen
from alignbench.backbones.text import words
from alignbench.cli.main import main
from alignbench.data import shapes as data
from alignbench.pretrain import shapes_tiny, shapes_tokenizer
from alignbench.pretrain.common import POLICY, TOKENIZER, Budget, pixels_of
from alignbench.registry.lookup import Registry
from tests.pretrain.test_llamagen_tiny import silent

REGISTRY = Registry.default()
CARD = REGISTRY.model("shapes-tiny")
FOLDER = Path(alignbench.__file__).parent / "weights" / "shapes-tiny"
MANIFEST: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text())
SHORT = {stage: Budget(steps=2, batch=8, lr=1e-3, warmup=1) for stage in shapes_tiny.BUDGETS}
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


def test_card_and_manifest_describe_the_shipped_files() -> None:
    assert {file.role for file in CARD.files} == {"policy", "tokenizer", "text"}
    for file in CARD.files:
        content = (FOLDER.parents[1] / file.path).read_bytes()
        facts = MANIFEST["files"][f"{file.role}.safetensors"]
        assert file.shipped and file.path == f"weights/shapes-tiny/{file.role}.safetensors"
        assert file.sha256 == facts["sha256"] == hashlib.sha256(content).hexdigest()
        assert file.size == facts["bytes"] == len(content)
    assert sum(file.size or 0 for file in CARD.files) <= 3_000_000


def test_manifest_says_how_they_were_made() -> None:
    assert MANIFEST["seconds"] <= 360
    for stage, file in [(TOKENIZER, "tokenizer"), (POLICY, "policy")]:
        made, budget = MANIFEST["files"][f"{file}.safetensors"]["budget"], shapes_tiny.BUDGETS[stage]
        assert (made["steps"], made["lr"], made["batch"]) == (budget.steps, budget.lr, budget.batch)


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


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "COUNTS", {"pretraining": 60, "train": 60, "validation": 12, "test": 12})
    monkeypatch.setattr(shapes_tokenizer, "LATENT_SCENES", 60)


@pytest.mark.usefixtures("few_scenes")
def test_pretraining_is_a_function_of_the_seed(tmp_path: Path) -> None:
    hashes = []
    for run, seed in enumerate((0, 0, 1)):
        torch.rand(run + 1)  # the state of torch's generator must not matter
        state = torch.get_rng_state()
        made = shapes_tiny.pretrain(tmp_path / str(run), seed=seed, progress=silent, budgets=SHORT)
        assert torch.equal(torch.get_rng_state(), state)
        hashes.append({name: facts["sha256"] for name, facts in made["files"].items()})
    assert hashes[0] == hashes[1]
    assert all(hashes[0][name] != hashes[2][name] for name in hashes[0])


@pytest.mark.usefixtures("few_scenes")
def test_pretraining_makes_what_the_card_describes(tmp_path: Path) -> None:
    made = shapes_tiny.pretrain(tmp_path, progress=silent, budgets=SHORT)
    files = {role: tmp_path / f"{role}.safetensors" for role in ("policy", "tokenizer", "text")}
    assert {path.name for path in tmp_path.iterdir()} == {
        "manifest.json",
        *data.PROMPT_FILES.values(),
        *(path.name for path in files.values()),
    }
    for role, path in files.items():
        content = path.read_bytes()
        assert made["files"][path.name]["sha256"] == hashlib.sha256(content).hexdigest()
        shipped = (FOLDER / f"{role}.safetensors").read_bytes()
        assert len(content) == len(shipped)
    encoder = words.load(files.pop("text"))
    llamagen.build(CARD, files, encoder=encoder)
    saved = tmp_path / "again.safetensors"
    encoder.save(saved)
    assert words.load(saved).config == encoder.config


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
    with pytest.raises(SystemExit) as stopped:
        main(["sample", *arguments, "--out", str(tmp_path / "s")])
    assert (stopped.value.code or 0) == code
    drawn = sorted(path.name for path in tmp_path.glob("s/*.png"))
    assert drawn == ([] if code else ["00000.png", "00001.png", "00002.png", "grid.png"])


# --- every method ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["vapi", "reward-only", "ste", "tokenizer-decoder", "ntp", "ar-grpo"])
def test_every_method_runs(method: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = [
        "run", "--method", method, "--model", "shapes-tiny", "--protocol", "shapes-validation",
        "--steps", "2", "--out", str(out),
        "--set", "train.images_per_step=4", "--set", "train.micro_batch=4", "--set", "train.warmup_steps=1",
        "--set", "protocol.seeds=10", "--set", "protocol.settings=t1", "--set", "protocol.samples=60",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert not stopped.value.code
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
