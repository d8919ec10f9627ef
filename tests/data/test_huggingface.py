"""Hugging Face data sets saved to disk; nothing is downloaded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alignbench.data.crops import center_crop_adm
from alignbench.data.dataset import ImageDataset, Skipped, open_dataset
from alignbench.errors import UserError
from alignbench.registry.lookup import Registry


def pixels_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)


def encoded(tmp_path: Path, seed: int) -> bytes:
    path = tmp_path / "one.png"
    Image.fromarray(pixels_of(seed)).save(path)
    return path.read_bytes()


@pytest.fixture
def table(tmp_path: Path) -> Any:
    """Six rows; row 4 holds no image."""
    import datasets

    cells = [{"bytes": encoded(tmp_path, row), "path": None} for row in range(6)]
    cells[4]["bytes"] = b"text"
    columns = {
        "img": cells,
        "label": [0, 1, 2, 0, 1, 2],
        "number": [5, 0, 1, 1, 0, 2],
        "name": list("abcdef"),
    }
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "label": datasets.ClassLabel(names=["ant", "bee", "cat"]),
            "number": datasets.Value("int16"),
            "name": datasets.Value("string"),
        }
    )
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture
def hub(table: Any, tmp_path: Path) -> Callable[..., ImageDataset]:
    import datasets

    saved = tmp_path / "saved"
    datasets.DatasetDict({"train": table, "test": table.select([1, 0])}).save_to_disk(str(saved))

    def call(*, part: str = "train", num_classes: int | None = 3, **options: Any) -> ImageDataset:
        return open_dataset(
            Registry.default().dataset("hub"),
            split=part,
            image_size=8,
            num_classes=num_classes,
            options={"path": str(saved), "image_column": "img"} | options,
            workers=2,
            cache_dir=tmp_path / "cache",
        )

    return call


def refused(call: Callable[..., ImageDataset], **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(**changes)
    return str(caught.value)


def test_rows_are_decoded_as_files_are(hub: Callable[..., ImageDataset]) -> None:
    dataset = hub()
    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.skipped == (Skipped("row 4", "not a PNG, JPEG, WebP or BMP image"),)
    assert dataset.labels.tolist() == [0, 1, 2, 0, 2]
    for index, row in enumerate((0, 1, 2, 3, 5)):
        pixels, label = dataset.load(index)
        expected = np.asarray(center_crop_adm(Image.fromarray(pixels_of(row)), 8))
        np.testing.assert_array_equal(pixels, expected)
        assert label == row % 3
    assert hub().digest == dataset.digest, "the second time from the cache"


def test_digest_is_that_of_the_content(hub: Callable[..., ImageDataset], table: Any, tmp_path: Path) -> None:
    table.save_to_disk(str(tmp_path / "alone"))
    assert hub(path=str(tmp_path / "alone")).digest == hub().digest
    assert hub(limit=4).digest != hub().digest


def test_splits_and_subsets(hub: Callable[..., ImageDataset]) -> None:
    assert hub(part="test").labels.tolist() == [1, 0]
    assert hub(split="test").labels.tolist() == [1, 0], "the option names the split to train on"
    assert hub(part="test", split="train").labels.tolist() == [1, 0], "and no other"
    assert len(hub(limit=3)) + len(hub(limit=3).skipped) == 3
    assert "no split 'validation', only train, test" in refused(hub, part="validation")


def test_whole_numbers_are_the_models_ids(hub: Callable[..., ImageDataset]) -> None:
    dataset = hub(label_column="number", num_classes=100)
    assert dataset.num_classes == 100 and dataset.labels.tolist() == [5, 0, 1, 1, 2]
    assert "6 classes, but the model knows 5" in refused(hub, label_column="number", num_classes=5)


def test_columns_and_classes_that_do_not_fit(hub: Callable[..., ImageDataset]) -> None:
    message = refused(hub, image_column="image")
    assert "column 'image'" in message and "does not exist" in message
    assert "--set data.image_column=img" in message
    assert "does not hold images" in refused(hub, image_column="name")
    message = refused(hub, label_column="name")
    assert "does not hold class ids" in message and "--set data.label_column=label" in message
    assert "3 named classes for a model of 1000" in refused(hub, num_classes=1000)
    assert "3 classes, but the model knows 2" in refused(hub, num_classes=2)


def test_rows_without_a_class_are_refused(
    hub: Callable[..., ImageDataset], table: Any, tmp_path: Path
) -> None:
    import datasets

    labels = datasets.Value("int64")
    bare = (
        table.remove_columns("label").add_column("label", [0, 1, -1, 2, -1, 0]).cast_column("label", labels)
    )
    bare.save_to_disk(str(tmp_path / "bare"))
    assert "2 rows of" in refused(hub, path=str(tmp_path / "bare"))


def test_what_cannot_be_loaded(
    hub: Callable[..., ImageDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--set data.path=" in refused(hub, path="")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    message = refused(hub, path="nobody/nothing")
    assert "nobody/nothing (split 'train') cannot be loaded" in message and "save_to_disk" in message
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'alignbench[data]'" in refused(hub)
