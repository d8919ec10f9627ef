"""Captioned images: every form gives the same data, and what is broken is named and left out."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignbench.api import Condition, TextFeatures
from alignbench.data.captioned_files import form_of
from alignbench.data.dataset import Captioned, captions_of
from alignbench.data.decode import Skipped
from alignbench.data.stream import Stream
from alignbench.errors import UserError
from tests.helpers.captioned_images import encoded, scenes, shard_files, write_folder, write_tar
from tests.helpers.data_sets import content, opened, reasons, refused

Opener = Callable[..., Any]


@pytest.fixture
def images(tmp_path: Path) -> Opener:
    """Open captioned images; keywords as for `opened`."""

    def call(root: Path | str, **keywords: Any) -> Any:
        defaults: dict[str, Any] = {"image_size": 16, "workers": 2, "root": str(root)}
        return opened("text-images", "all", cache=tmp_path / "cache", **defaults | keywords)

    return call


EXPECTED = [(image.tobytes(), caption) for image, caption in scenes(7)]


# --- the forms ------------------------------------------------------------------------------------


def test_folder(images: Opener, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pictures", 7)
    (root / "deep").mkdir()
    for suffix in (".png", ".txt"):
        (root / f"006{suffix}").rename(root / "deep" / f"x{suffix}")
    (root / "readme.md").write_text("no image")
    dataset = images(root)
    assert content(dataset) == EXPECTED and dataset.skipped == () and isinstance(dataset, Captioned)
    assert dataset.num_classes == 0 and dataset.class_names == () and dataset.labels.tolist() == [0] * 7
    assert dataset.load(3)[1] == 0


def test_json_beside_the_image(images: Opener, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pictures", 3)
    (root / "000.txt").unlink()
    (root / "000.json").write_text(json.dumps({"text": "from json", "other": "another key"}))
    (root / "001.json").write_text(json.dumps({"other": "txt goes first"}))
    assert list(images(root).captions)[:2] == ["from json", EXPECTED[1][1]]
    chosen = images(root, caption_key="other")
    assert chosen.captions == ("another key", "txt goes first")
    assert reasons(chosen) == {"002.png": "no caption: no .json file beside it"}


def test_manifest(images: Opener, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data" / "pictures", 7)
    rows = [(f"pictures/{number:03}.png", caption) for number, (_, caption) in enumerate(EXPECTED)]
    rows[2] = (str(root / "002.png"), rows[2][1])  # absolute
    keys = [("image", "caption"), ("file_name", "text"), ("image_path", "prompt"), ("path", "captions")]
    lines = [json.dumps(dict(zip(keys[at % 4], row, strict=True))) for at, row in enumerate(rows)]
    manifest = tmp_path / "data" / "list.jsonl"
    manifest.write_text("\n".join(lines[:4]) + "\n\n" + "\n".join(lines[4:]) + "\n")
    assert content(images(manifest)) == content(images(tmp_path / "data")) == EXPECTED


def test_tar_shards(images: Opener, tmp_path: Path) -> None:
    root = tmp_path / "shards"
    write_tar(root / "00000.tar", shard_files(4))
    write_tar(root / "00001.tar", shard_files(3, start=4))
    (root / "00000_stats.json").write_text("{}")
    dataset = images(root)
    assert [caption for _, caption in content(dataset)] == [caption for _, caption in EXPECTED]
    for index, (pixels, _) in enumerate(content(dataset)):  # JPEG: near, not equal
        original = np.frombuffer(EXPECTED[index][0], np.uint8).astype(float)
        assert abs(np.frombuffer(pixels, np.uint8) - original).mean() < 12
    assert content(images(root, workers=0)) == content(dataset)
    assert content(images(root / "00000.tar")) == content(dataset)[:4]


def test_what_a_tar_shard_loses_is_listed(images: Opener, tmp_path: Path) -> None:
    """Names with dots and second files of a kind used to vanish without a word."""
    files = shard_files(2)
    picture = files["000000000.jpg"]
    dotted = {"22.00.png": picture, "22.00.txt": b"words"}
    others = {"23.01.png": picture, "README": b"", "000000000.png": picture}
    dataset = images(write_tar(tmp_path / "x.tar", files | dotted | others))
    assert len(dataset) == 2
    told = reasons(dataset)
    kinds = {"x.tar/*.00.png": "1 files end so", "x.tar/*.00.txt": "1 files end so"}
    kinds |= {"x.tar/*.01.png": "1 files end so", "x.tar/*no ending": "1 files end so"}
    assert len(told) == 5
    for name, reason in kinds.items():
        assert told.pop(name).startswith(reason)
    (second,) = told.items()
    assert ".png at byte" in second[0] and second[1].startswith("a second image of ")
    only = write_tar(tmp_path / "dotted.tar", dotted)
    assert "none of 2 images can be read" in refused(images, only)


def test_tar_groups_by_the_first_dot_and_reads_any_order(images: Opener, tmp_path: Path) -> None:
    pictures = [encoded(image) for image, _ in scenes(3)]
    files = {
        "a/one.txt": b"one",
        "b/one.png": pictures[1],
        "a/one.png": pictures[0],
        "b/one.seg.png": b"not the picture",
        "b/one.json": json.dumps({"caption": "two", "key": "second"}).encode(),
        "readme": b"",
        ".hidden.png": b"",
    }
    shard = write_tar(tmp_path / "x.tar", files)
    dataset = images(shard)
    assert content(dataset) == [(EXPECTED[0][0], "one"), (EXPECTED[1][0], "two")]
    assert list(reasons(dataset)) == ["x.tar/*.seg.png", "x.tar/*no ending"]
    keyed = images(shard, caption_key="key")
    assert keyed.captions == ("second",)
    assert reasons(keyed)["x.tar/a/one"] == "no caption: no .json file with it"


def test_forms_are_recognised_or_named(images: Opener, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "both", 2)
    write_tar(root / "a.tar", shard_files(1))
    assert form_of(root) == "tar"
    (root / "list.jsonl").write_text("")
    assert form_of(root) == "jsonl"
    assert len(images(root, form="folder")) == 2 and len(images(root, form="tar")) == 1
    assert "neither a folder nor a .jsonl or .tar file" in refused(images, root / "000.png")
    assert "is not a folder" in refused(images, root / "a.tar", form="folder")
    assert "does not exist" in refused(images, tmp_path / "nowhere")
    assert "no captioned images were given" in refused(images, "")
    assert "no images in it" in refused(images, root, form="jsonl")


# --- the hub's tables -----------------------------------------------------------------------------


def test_hub_table(images: Opener, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    cells = [{"bytes": encoded(image), "path": None} for image, _ in scenes(7)]
    captions: list[Any] = [caption for _, caption in EXPECTED]
    lists = [[caption, f"second {row}"] for row, caption in enumerate(captions)]
    lists[3], captions[2], cells[5]["bytes"] = [], None, b"text"
    columns = {"image": cells, "caption": captions, "all": lists, "number": list(range(7))}
    saved = tmp_path / "saved"
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    table.save_to_disk(str(saved))
    hub = partial(opened, "text-hub", image_size=16, path=str(saved), cache=tmp_path / "cache")
    dataset = hub()
    assert content(dataset) == [row for number, row in enumerate(EXPECTED) if number not in (2, 5)]
    assert reasons(dataset) == {"row 2": "no caption", "row 5": "not a PNG, JPEG, WebP or BMP image"}
    several = hub(caption_column="all", choice="hashed", subset_seed=1)
    assert reasons(several).keys() == {"row 3", "row 5"}
    assert 0 < sum(caption.startswith("second") for caption in several.captions) < 5
    message = refused(hub, caption_column="number")
    assert "does not hold texts or lists of texts" in message
    assert "--set data.caption_column=caption" in message


# --- what is broken -------------------------------------------------------------------------------


def test_broken_samples_of_a_folder(images: Opener, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pictures", 7)
    (root / "000.png").write_bytes(b"no picture")
    (root / "001.txt").write_text(" \n")
    (root / "002.txt").unlink()
    (root / "003.txt").write_bytes(b"\xff\xfe")
    (root / "004.txt").unlink()
    (root / "004.json").write_text('{"title": "x"}')
    (root / "005.txt").write_text("half a \ufeff caption")
    dataset = images(root)
    assert dataset.captions == ("half a \ufeff caption", EXPECTED[6][1])
    assert reasons(dataset) == {
        "000.png": "not a PNG, JPEG, WebP or BMP image",
        "001.png": "the caption is empty",
        "002.png": "no caption: no .txt or .json file beside it",
        "003.png": "the caption is not UTF-8 text",
        "004.png": "no caption under caption, text, prompt, captions",
    }
    for name in ("005", "006"):
        (root / f"{name}.txt").unlink()
    assert "none of 7 images can be read" in refused(images, root)


def test_a_caption_lost_or_mended_is_noticed(images: Opener, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pictures", 4)
    first = images(root)
    shutil.copytree(root, tmp_path / "copy")
    assert images(tmp_path / "copy").digest == first.digest
    (root / "001.txt").unlink()
    lost = images(root)
    assert len(lost) == 3 and lost.digest != first.digest
    assert lost.skipped == (Skipped("001.png", "no caption: no .txt or .json file beside it"),)
    (root / "001.txt").write_text(EXPECTED[1][1])
    assert images(root).digest == first.digest and content(images(root)) == EXPECTED[:4]
    (root / "001.txt").write_text("something else")
    changed = images(root)
    assert changed.captions[1] == "something else" and changed.digest != first.digest


def test_broken_lines_of_a_manifest(images: Opener, tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", 2)
    lines = [
        '{"image": "pictures/000.png", "caption": "good"}',
        '{"image": "pictures/000.png", "caption": "good"',
        '["pictures/000.png"]',
        '{"caption": "which image?"}',
        '{"image": "pictures/000.png"}',
        '{"image": "pictures/none.png", "caption": "gone"}',
        '{"image": "pictures/000.png", "caption": "\\ud800"}',
        '{"image": "pictures/000.png", "caption": 3}',
        '{"image": "pictures/000.png", "caption": {"a": 1}}',
        '{"image": "pictures/001.png", "caption": ["", "the same image twice is fine"]}',
    ]
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("\n".join(lines))
    dataset = images(manifest)
    assert dataset.captions == ("good", "the same image twice is fine")
    assert reasons(dataset) == {
        "list.jsonl:2": "not a JSON object",
        "list.jsonl:3": "not a JSON object",
        "list.jsonl:4": "no image under image, file_name, image_path, path",
        "list.jsonl:5 pictures/000.png": "no caption",
        "list.jsonl:6 pictures/none.png": "no such file or directory",
        **{f"list.jsonl:{number} pictures/000.png": "no caption" for number in (7, 8, 9)},
    }


def test_broken_shards(images: Opener, tmp_path: Path) -> None:
    root = tmp_path / "shards"
    files = shard_files(4)
    files["000000001.jpg"] = b"no picture"
    del files["000000002.jpg"], files["000000003.txt"], files["000000003.json"]
    write_tar(root / "0.tar", files)
    (root / "1.tar").write_bytes(gzip.compress((root / "0.tar").read_bytes()))
    whole = write_tar(root / "2.tar", shard_files(3)).read_bytes()
    cut = whole.index(b"000000002.txt") + 100
    (root / "2.tar").write_bytes(whole[:cut])
    (root / "3.tar").write_bytes(b"")
    overwritten = bytearray(whole)
    overwritten[whole.index(b"000000001.jpg")] ^= 255
    (root / "4.tar").write_bytes(overwritten)
    files = {"a.txt": b"one", "a.png": encoded(scenes(1)[0][0]), "b.txt": b"two", "b.png": bytes(5000)}
    whole = write_tar(root / "5.tar", files).read_bytes()
    (root / "5.tar").write_bytes(whole[: whole.index(b"b.png") + 1500])
    dataset = images(root)
    assert dataset.captions == (*(EXPECTED[number][1] for number in (0, 0, 1, 2, 0)), "one")
    found = reasons(dataset)
    for number in (1, 3):
        assert found.pop(f"{number}.tar").startswith("not an uncompressed tar file")
    for number in (2, 4):
        assert found.pop(f"{number}.tar").startswith("damaged: it breaks off")
    assert found.pop("5.tar") == "damaged: unexpected end of data"
    assert found == {
        "0.tar/000000001": "not a PNG, JPEG, WebP or BMP image",
        "0.tar/000000002": "no image",
        "0.tar/000000003": "no caption: no .txt or .json file with it",
        "5.tar/b": "the shard ends before the image does",
    }


# --- the index, choices, digests ------------------------------------------------------------------


def test_shards_are_read_through_once(
    images: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "shards"
    write_tar(root / "0.tar", shard_files(2))
    first = images(root)
    with monkeypatch.context() as patch:
        patch.setattr("alignbench.data.captioned_files._index", None)
        assert content(images(root)) == content(first) and images(root).digest == first.digest
    index = next((tmp_path / "cache").glob("shard-*.json"))
    index.write_text('[["a", 1]]')
    assert images(root).digest == first.digest, "a damaged index is made again"
    write_tar(root / "0.tar", shard_files(2, start=1))
    os.utime(root / "0.tar", ns=(1, 1))
    assert images(root).captions == tuple(caption for _, caption in EXPECTED[1:3])


def test_one_of_several_captions(images: Opener, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pictures", 30)
    for path in root.glob("*.txt"):
        path.unlink()
        path.with_suffix(".json").write_text(json.dumps({"captions": ["first", "", "second", "third"]}))
    assert set(images(root).captions) == {"first"}
    hashed = images(root, choice="hashed")
    counts = {caption: hashed.captions.count(caption) for caption in ("first", "second", "third")}
    assert min(counts.values()) >= 3 and sum(counts.values()) == 30
    assert images(root, choice="hashed", workers=0).captions == hashed.captions
    assert images(root, choice="hashed", subset_seed=1).captions != hashed.captions
    few = images(root, choice="hashed", limit=5)
    assert len(few) == 5 and all(row in content(hashed) for row in content(few))


# --- batches --------------------------------------------------------------------------------------


def lengths(texts: Sequence[str]) -> Condition:
    values = torch.tensor([float(len(text)) for text in texts])
    return TextFeatures(values[:, None, None], torch.ones(len(texts), 1, dtype=torch.bool), tuple(texts))


def test_batches_carry_the_captions_of_their_images(images: Opener, tmp_path: Path) -> None:
    dataset = images(write_folder(tmp_path / "pictures", 7))
    with Stream(dataset, seed=0, images_per_step=4, workers=2, text_condition=lengths) as stream:
        for step in range(3):
            batch = stream.batch(step, 0, 1)
            assert isinstance(batch.condition, TextFeatures)
            for row, index in enumerate(stream.indices(step)):
                expected = torch.tensor(dataset.load(int(index))[0]).permute(2, 0, 1) / 127.5 - 1
                torch.testing.assert_close(batch.images[row], expected)
                assert batch.condition.texts[row] == dataset.captions[index]
                assert float(batch.condition.features[row]) == len(dataset.captions[index])
            halves = [stream.batch(step, rank, 2).condition.texts for rank in range(2)]
            assert halves[0] + halves[1] == batch.condition.texts


def test_classes_are_no_captions() -> None:
    synthetic = opened("synthetic", image_size=4, num_classes=3)
    with pytest.raises(UserError, match="has no captions"):
        captions_of(synthetic)
    with pytest.raises(UserError, match="has no captions"):
        Stream(synthetic, seed=0, images_per_step=2, workers=0, text_condition=lengths)
