"""Hugging Face data sets saved to disk; nothing is downloaded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alignbench.data.decode import Skipped, center_crop_adm
from tests.helpers.captioned_images import encoded
from tests.helpers.data_sets import opened, refused

datasets = pytest.importorskip("datasets")
Hub = Callable[..., Any]
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)


@pytest.fixture
def table() -> Any:
    """Six rows; row 4 holds no image."""
    cells = [{"bytes": encoded(image), "path": None} for image in PIXELS]
    cells[4]["bytes"] = b"text"
    columns = {"img": cells, "label": [0, 1, 2] * 2, "number": [5, 0, 1, 1, 0, 2], "name": list("abcdef")}
    table = datasets.Dataset.from_dict(columns).cast_column("img", datasets.Image())
    table = table.cast_column("label", datasets.ClassLabel(names=["ant", "bee", "cat"]))
    return table.cast_column("number", datasets.Value("int16"))


@pytest.fixture
def hub(table: Any, tmp_path: Path) -> Hub:
    saved = tmp_path / "saved"
    datasets.DatasetDict({"train": table, "test": table.select([1, 0])}).save_to_disk(str(saved))

    def call(part: str = "train", **changes: Any) -> Any:
        defaults: dict[str, Any] = {"num_classes": 3, "path": str(saved), "image_column": "img"}
        return opened("hub", part, cache=tmp_path / "cache", **defaults | changes)

    return call


def test_rows_are_decoded_as_files_are(hub: Hub, table: Any, tmp_path: Path) -> None:
    dataset = hub()
    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.skipped == (Skipped("row 4", "not a PNG, JPEG, WebP or BMP image"),)
    assert dataset.labels.tolist() == [0, 1, 2, 0, 2]
    for index, row in enumerate((0, 1, 2, 3, 5)):
        pixels, label = dataset.load(index)
        np.testing.assert_array_equal(pixels, np.asarray(center_crop_adm(Image.fromarray(PIXELS[row]), 8)))
        assert label == row % 3
    assert hub().digest == dataset.digest, "the second time from the cache"
    table.save_to_disk(str(tmp_path / "alone"))
    assert hub(path=str(tmp_path / "alone")).digest == dataset.digest, "the content counts, not the place"
    assert hub(limit=4).digest != dataset.digest


def test_splits_and_subsets(hub: Hub) -> None:
    assert hub("test").labels.tolist() == [1, 0]
    assert hub(split="test").labels.tolist() == [1, 0], "the option names the split to train on"
    assert hub("test", split="train").labels.tolist() == [1, 0], "and no other"
    assert len(hub(limit=3)) + len(hub(limit=3).skipped) == 3
    assert "no split 'validation', only train, test" in refused(hub, "validation")


def test_whole_numbers_are_the_models_ids(hub: Hub) -> None:
    dataset = hub(label_column="number", num_classes=100)
    assert dataset.num_classes == 100 and dataset.labels.tolist() == [5, 0, 1, 1, 2]
    assert "6 classes, but the model knows 5" in refused(hub, label_column="number", num_classes=5)


def test_columns_and_classes_that_do_not_fit(hub: Hub, table: Any, tmp_path: Path) -> None:
    message = refused(hub, image_column="image")
    assert "column 'image'" in message and "does not exist" in message
    assert "--set data.image_column=img" in message
    assert "does not hold images" in refused(hub, image_column="name")
    message = refused(hub, label_column="name")
    assert "does not hold class ids" in message and "--set data.label_column=label" in message
    assert "3 named classes for a model of 1000" in refused(hub, num_classes=1000)
    assert "3 classes, but the model knows 2" in refused(hub, num_classes=2)
    bare = table.remove_columns("label").add_column("label", [0, 1, -1, 2, -1, 0])
    bare.cast_column("label", datasets.Value("int64")).save_to_disk(str(tmp_path / "bare"))
    assert "2 rows of" in refused(hub, path=str(tmp_path / "bare"))


def test_captions_alone_make_prompts(table: Any, tmp_path: Path) -> None:
    captions = ["a fox", "", "a dog", "a fox", "a cat", "an ant"]
    table.add_column("caption", captions).save_to_disk(str(tmp_path / "words"))
    dataset = opened("prompts-hub", path=str(tmp_path / "words"))
    assert list(dataset.captions) == ["a fox", "a dog", "a fox", "a cat", "an ant"]
    assert dataset.skipped == (Skipped("row 1", "no caption"),) and "no images" in refused(dataset.load, 0)
    assert len(opened("prompts-hub", path=str(tmp_path / "words"), limit=2)) == 2
    message = refused(opened, "prompts-hub", path=str(tmp_path / "words"), caption_column="label")
    assert "does not hold texts" in message and "caption_column=name" in message


def test_what_cannot_be_loaded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--set data.path=" in refused(hub, path="")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    message = refused(hub, path="nobody/nothing")
    assert "nobody/nothing (split 'train') cannot be loaded" in message and "save_to_disk" in message
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'alignbench[data]'" in refused(hub)
