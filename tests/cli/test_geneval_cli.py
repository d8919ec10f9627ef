"""GenEval from the command line: an official folder, saved detections and a random CLIP give a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignbench.api import ImageBatch, Prompt
from alignbench.registry.lookup import Registry
from alignbench.samples.geneval_layout import write_layout
from tests.evaluators.test_geneval import tiny_clip  # noqa: F401  (a fixture)
from tests.helpers.command import alignbench

BENCH, COW = {"class": "bench", "count": 1}, {"class": "cow", "count": 1}
LINES = [
    {"tag": "single_object", "include": [BENCH]},
    {"tag": "two_object", "include": [BENCH, COW]},
    {"tag": "counting", "include": [{**COW, "count": 2}], "exclude": [{**COW, "count": 3}]},
    {"tag": "colors", "include": [{**BENCH, "color": "red"}]},
    {"tag": "position", "include": [BENCH, {**COW, "position": ["left of", 0]}]},
    {"tag": "color_attr", "include": [{**BENCH, "color": "red"}, {**COW, "color": "blue"}]},
]
LINES = [{**line, "prompt": f"prompt {number}"} for number, line in enumerate(LINES)]
FOUND = {
    "bench": {"class": "bench", "score": 0.95, "box": [4, 0, 8, 8]},
    "cow": {"class": "cow", "score": 0.95, "box": [0, 0, 2, 8]},
}
SEEN = ["bench", "", "bench cow", "bench", "cow cow", "cow", "", "", "bench cow", "cow bench", "", ""]
"""What is detected in the twelve images, two for each prompt."""
RIGHT = {"single-object": 0.5, "two-object": 0.5, "counting": 0.5, "position": 1.0}


@pytest.fixture
def given(tmp_path: Path, tiny_clip: Path) -> list[Any]:  # noqa: F811
    """Write images, prompts, detections and a protocol of their size; return the command."""
    prompts = [Prompt(str(line["prompt"]), str(line["tag"]), line) for line in LINES]
    numbers = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=numbers)
    twice = [prompt for prompt in prompts for _ in range(2)]
    write_layout(tmp_path / "images", [ImageBatch(ids=range(12), images=images, prompts=twice)])
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    detections = [
        {"id": number, "size": [8, 8], "objects": [FOUND[name] for name in seen.split()]}
        for number, seen in enumerate(SEEN)
    ]
    (tmp_path / "found.jsonl").write_text("".join(json.dumps(line) + "\n" for line in detections))
    card = Registry.default().locations["protocols"]["geneval-saved"].path.read_text(encoding="utf-8")
    small = card.replace("image_size = 512", "image_size = 8").replace("samples = 2212", "samples = 12")
    small = small.replace("images_per_prompt = 4", "images_per_prompt = 2")
    (tmp_path / "cards" / "protocols").mkdir(parents=True)
    (tmp_path / "cards" / "protocols" / "geneval-small.toml").write_text(small, encoding="utf-8")
    files = {
        "geneval-prompts": tmp_path / "prompts.jsonl",
        "geneval-detections": tmp_path / "found.jsonl",
        "clip-vit-l-14-openai": tiny_clip,
    }
    assets = [part for name, path in files.items() for part in ("--set", f"assets.{name}={path}")]
    return [
        *("evaluate", "--samples", tmp_path / "images", "--protocol", "geneval-small"),
        *("--plugin", tmp_path / "cards", *assets),
    ]


def test_a_folder_is_scored(given: list[Any], tmp_path: Path) -> None:
    done = alignbench(*given, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (result,) = record["results"]
    metrics = {name: values[0] for name, values in result["metrics"].items()}
    for task, share in RIGHT.items():
        assert metrics[f"geneval-saved-{task}"] == share
    # Which colours a random network sees is its own business; the pairs lack an object.
    assert metrics["geneval-saved-colors"] in (0.0, 0.5)
    assert metrics["geneval-saved-color-attr"] == 0
    six = [value for name, value in metrics.items() if not name.endswith(("overall", "images"))]
    assert metrics["geneval-saved-overall"] == pytest.approx(sum(six) / 6)


def test_detections_of_other_images_are_refused(given: list[Any], tmp_path: Path) -> None:
    lines = (tmp_path / "found.jsonl").read_text().splitlines()
    (tmp_path / "found.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert "no line with id 11" in alignbench(*given, "--out", tmp_path / "run").stderr
