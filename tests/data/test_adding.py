"""The code and the commands of docs/adding/data-set.md, word for word."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignbench.data.dataset import open_dataset
from alignbench.registry.plugins import load_registry
from alignbench.registry.schema import DatasetCard
from tests.e2e.test_docs import ADDING, blocks
from tests.helpers.command import alignbench

PAGE = ADDING / "data-set.md"


def test_the_example_is_a_data_set_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,), (commands,) = blocks(PAGE, "python"), blocks(PAGE, "bash")
    monkeypatch.chdir(tmp_path)
    Path("pets.py").write_text(code)
    Path("images").mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"images/{'abcdefghij'[number % 10]}_cat_{number // 10}.png")
    Path("images/j_cat_9.png").write_text("no image")
    card = load_registry([Path("pets.py")]).dataset("pets")
    assert isinstance(card, DatasetCard)
    options = {"options": {"root": "images"}, "workers": 0, "cache_dir": tmp_path / "cache"}
    dataset = open_dataset(card, split="all", image_size=8, num_classes=10, **options)  # type: ignore[arg-type]
    assert len(dataset) == 20 and dataset.labels.tolist() == sorted([*range(10)] * 2)
    assert dataset.class_names[0] == "a_cat"
    assert [skipped.path for skipped in dataset.skipped] == ["j_cat_9.png"]
    for program, *arguments in map(shlex.split, commands.splitlines()):
        assert program == "alignbench" and alignbench(*arguments).returncode == 0
    assert list(tmp_path.glob("runs/*/run.json"))
