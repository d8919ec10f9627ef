"""Image folders: order, subsets, what is skipped, what is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alignbench.data.crops import center_crop_adm
from alignbench.data.dataset import ImageDataset, open_dataset
from alignbench.data.decode import Skipped, UnreadableImage, decode_cropped
from alignbench.data.encoded import choose
from alignbench.errors import RunFailed, UserError
from alignbench.registry.lookup import Registry

CARDS = Registry.default()


def picture(seed: int, width: int = 12, height: int = 10) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes; the second has nested files, the third upper-case and foreign names."""
    root = tmp_path / "pictures"
    files = ["ant/b.png", "ant/a.bmp", "bee/deep/er/x.png", "bee/y.webp", "cat/0.PNG", "cat/1.jpeg"]
    for seed, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(path, lossless=True)
    (root / "cat" / "readme.txt").write_text("not an image by name")
    (root / "cat" / ".hidden.png").write_text("nor is this")
    (root / ".git").mkdir()
    (root / "notes.txt").write_text("nor a class")
    return root


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Callable[..., ImageDataset]:
    def call(*, split: str = "all", card: str = "folder", **changes: Any) -> ImageDataset:
        options = changes.pop("options", {})
        keywords: dict[str, Any] = {"image_size": 8, "num_classes": 3, "workers": 2} | changes
        return open_dataset(
            CARDS.dataset(card),
            split=split,
            options={"root": str(root)} | options,
            cache_dir=tmp_path / "cache",
            **keywords,
        )

    return call


def refused(call: Callable[..., ImageDataset], **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(**changes)
    return str(caught.value)


def everything(dataset: ImageDataset) -> list[tuple[bytes, int]]:
    return [(dataset.load(i)[0].tobytes(), dataset.load(i)[1]) for i in range(len(dataset))]


# --- what is read ---------------------------------------------------------------------------------


def test_images_come_sorted_cropped_and_labelled(folder: Callable[..., ImageDataset], root: Path) -> None:
    dataset = folder()
    assert dataset.class_names == ("ant", "bee", "cat") and dataset.num_classes == 3
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2, 2] and dataset.skipped == ()
    pixels, label = dataset.load(1)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8 and label == 0
    np.testing.assert_array_equal(pixels, np.asarray(center_crop_adm(picture(0), 8)))  # ant/b.png
    np.testing.assert_array_equal(dataset.load(2)[0], np.asarray(center_crop_adm(picture(2), 8)))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_change_nothing(folder: Callable[..., ImageDataset], workers: int) -> None:
    dataset = folder(workers=workers)
    assert everything(dataset) == everything(folder()) and dataset.digest == folder().digest


def test_other_splits_are_sub_folders(
    folder: Callable[..., ImageDataset], root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root, tmp_path / "whole" / "train")
    whole = {"root": str(tmp_path / "whole")}
    assert folder(card="imagenet", split="train", options=whole).digest == folder().digest
    assert "has no sub-folder 'val'" in refused(folder, card="imagenet", split="val", options=whole)
    assert "has no split 'tset'. Did you mean test" in refused(folder, split="tset")


def test_links_are_followed_once(folder: Callable[..., ImageDataset], root: Path) -> None:
    (root / "bee" / "deep" / "loop").symlink_to(root / "bee", target_is_directory=True)
    (root / "dog").symlink_to(root / "ant", target_is_directory=True)
    dataset = folder(num_classes=4)
    assert dataset.class_names[-1] == "dog" and dataset.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


# --- digest and subset ----------------------------------------------------------------------------


def test_digest_ignores_place_and_time_but_not_content(
    folder: Callable[..., ImageDataset], root: Path, tmp_path: Path
) -> None:
    first = folder()
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    os.utime(moved / "ant" / "b.png", (1, 1))
    options = {"root": str(moved)}
    assert folder(options=options).digest == first.digest
    (moved / "cat").rename(moved / "cow")
    renamed = folder(options=options).digest
    picture(99).save(moved / "ant" / "a.bmp")  # as many bytes as before
    assert len({first.digest, renamed, folder(options=options).digest}) == 3


def test_subset_is_fixed_nested_and_in_order() -> None:
    names = [f"{number:03}" for number in range(100)]
    kept = choose(names, limit=30, seed=0)
    assert len(kept) == 30 and kept == sorted(kept)
    assert kept[:8] == [3, 6, 8, 9, 13, 16, 24, 36]  # must never change: recorded runs rest on it
    assert set(choose(names, limit=10, seed=0)) < set(kept)
    assert choose(names, limit=30, seed=1) != kept
    assert choose(names, limit=0, seed=0) == choose(names, limit=200, seed=0) == list(range(100))
    shuffled = names[::-1]
    assert {shuffled[at] for at in choose(shuffled, limit=30, seed=0)} == {names[at] for at in kept}


def test_limit_keeps_the_chosen_files(folder: Callable[..., ImageDataset]) -> None:
    whole, part = folder(), folder(options={"limit": 3})
    assert len(part) == 3 and part.num_classes == 3
    assert set(everything(part)) < set(everything(whole)) and part.digest != whole.digest


# --- unreadable files -----------------------------------------------------------------------------


def test_bad_files_are_listed_and_not_replaced(folder: Callable[..., ImageDataset], root: Path) -> None:
    (root / "ant" / "text.png").write_text("a text file renamed .png")
    (root / "ant" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "bee" / "empty.jpg").touch()
    os.mkfifo(root / "bee" / "pipe.png")
    Image.fromarray(np.zeros((9, 9), dtype=np.uint16)).save(root / "cat" / "deep.png")
    picture(7, width=4000, height=1).save(root / "cat" / "thread.png")
    picture(8, 300, 300).save(root / "cat" / "whole.jpg")
    data = (root / "cat" / "whole.jpg").read_bytes()
    (root / "cat" / "cut.jpg").write_bytes(data[: len(data) // 2])
    dataset = folder(image_size=256)
    reasons = {skipped.path: skipped.reason for skipped in dataset.skipped}
    cut = reasons.pop("cat/cut.jpg")
    assert "truncated" in cut and str(root) not in cut
    assert reasons == {
        "ant/text.png": "not a PNG, JPEG, WebP or BMP image",
        "ant/gone.png": "no such file or directory",
        "bee/empty.jpg": "not a PNG, JPEG, WebP or BMP image",
        "bee/pipe.png": "not a regular file",
        "cat/deep.png": "I;16 pixels have no faithful 8-bit form; save it with 8 bits",
        "cat/thread.png": "4000×1 is too narrow to be scaled to 256 px",
    }
    assert len(dataset) == 7 and dataset.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]
    for index in range(len(dataset)):
        dataset.load(index)


def test_a_picture_that_claims_to_be_enormous_is_skipped(
    folder: Callable[..., ImageDataset], root: Path
) -> None:
    header = bytearray((root / "ant" / "a.bmp").read_bytes())
    header[18:26] = (60000).to_bytes(4, "little") * 2
    (root / "ant" / "bomb.bmp").write_bytes(header)
    assert [skipped.path for skipped in folder().skipped] == ["ant/bomb.bmp"]


def test_file_names_that_are_not_utf8(folder: Callable[..., ImageDataset], root: Path) -> None:
    for name, data in ((b"\xff.png", b"broken"), (b"\xfe.png", (root / "ant" / "b.png").read_bytes())):
        (root / "ant" / os.fsdecode(name)).write_bytes(data)
    dataset = folder(options={"limit": 7})
    assert len(dataset) + len(dataset.skipped) == 7
    assert Skipped("ant/\ufffd.png", "not a PNG, JPEG, WebP or BMP image") in folder().skipped


def test_only_unreadable_images_is_an_error(folder: Callable[..., ImageDataset], root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            path.write_text("no image")
    assert "none of 6 images can be read; ant/a.bmp: not a PNG" in refused(folder)


def test_a_file_that_vanishes_later_fails_the_run(folder: Callable[..., ImageDataset], root: Path) -> None:
    dataset = folder()
    (root / "ant" / "a.bmp").unlink()
    with pytest.raises(RunFailed, match=r"ant/a\.bmp .* no longer is: no such file"):
        dataset.load(0)


# --- the cache of checked files -------------------------------------------------------------------


def test_checked_files_are_not_checked_again(folder: Callable[..., ImageDataset], root: Path) -> None:
    seen: list[tuple[int, int]] = []
    (root / "ant" / "z.png").write_text("broken")
    first = folder(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 7) for done in range(1, 8)]
    seen.clear()
    again = folder(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 1)], "only what failed is tried again"
    assert (again.digest, again.skipped) == (first.digest, first.skipped)


def test_a_changed_file_is_checked_again(folder: Callable[..., ImageDataset], root: Path) -> None:
    before = folder().digest
    (root / "ant" / "b.png").write_text("broken now")
    after = folder()
    assert after.skipped == (Skipped("ant/b.png", "not a PNG, JPEG, WebP or BMP image"),)
    assert after.digest != before


def test_a_damaged_cache_is_made_anew(folder: Callable[..., ImageDataset], tmp_path: Path) -> None:
    digest = folder().digest
    for path in (tmp_path / "cache").iterdir():
        path.write_text("[1, 2")
    assert folder().digest == digest


# --- refused folders ------------------------------------------------------------------------------


def test_roots_that_are_not_there(folder: Callable[..., ImageDataset], tmp_path: Path) -> None:
    assert "--set data.root=PATH" in refused(folder, options={"root": ""})
    assert "is not a folder" in refused(folder, options={"root": str(tmp_path / "none")})
    assert "no option 'rot'. Did you mean root" in refused(folder, options={"rot": "x"})
    assert "data.limit: -1 is below 0" in refused(folder, options={"limit": -1})


def test_roots_of_the_wrong_form(folder: Callable[..., ImageDataset], root: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    options = {"root": str(bare)}
    assert "no class folders" in refused(folder, options=options)
    shutil.copytree(root / "ant", bare / "ant")
    assert "only one class folder, 'ant'" in refused(folder, options=options)
    (bare / "bee").mkdir()
    assert f"{bare / 'bee'}: no images" in refused(folder, num_classes=2, options=options)
    (bare / "bee").rmdir()
    (bare / "ant").rename(bare / "train")
    assert f"--set data.root={bare / 'train'}" in refused(folder, options=options)
    assert "2 images lie outside any class folder, e.g. a.bmp" in refused(
        folder, options={"root": str(bare / "train")}
    )


def test_class_counts_must_fit(folder: Callable[..., ImageDataset], root: Path, tmp_path: Path) -> None:
    assert "3 class folders, but the model knows 2" in refused(folder, num_classes=2)
    assert "data.class_index=FILE" in refused(folder, num_classes=5)
    assert folder(num_classes=None).num_classes == 3
    listing = tmp_path / "classes.txt"
    options = {"class_index": str(listing)}
    assert "cannot be read" in refused(folder, num_classes=5, options=options)
    listing.write_text("dog\ncat\nbee\nant\nelk\n")
    dataset = folder(num_classes=5, options=options)
    assert dataset.class_names == ("dog", "cat", "bee", "ant", "elk")
    assert dataset.labels.tolist() == [3, 3, 2, 2, 1, 1]
    assert "lists 5 classes, the model has 6" in refused(folder, num_classes=6, options=options)
    listing.write_text("dog\ncat\nbees\nant\nelk\n")
    assert "'bee' is not in" in refused(folder, num_classes=5, options=options)
    listing.write_text("dog\ndog\n")
    assert "lists 'dog' twice" in refused(folder, num_classes=2, options=options)


# --- pixel forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("1", "png"), ("L", "png"), ("LA", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "jpeg")],
)
def test_pixel_forms_become_rgb_as_pillow_converts_them(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    image = picture(3).convert(mode)
    if mode == "P":
        image.info["transparency"] = bytes(range(256))
    image.save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
        stored.info.pop("transparency", None)
        expected = np.asarray(center_crop_adm(stored.convert("RGB"), 8))
    np.testing.assert_array_equal(decode_cropped(path.read_bytes(), 8), expected)


def test_transparency_is_dropped_not_composited(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 4), (200, 100, 50, 0), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    assert (decode_cropped((tmp_path / "clear.png").read_bytes(), 8) == (200, 100, 50)).all()


def test_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    picture(5, 8, 8).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(
        decode_cropped((tmp_path / "turned.png").read_bytes(), 8), np.asarray(picture(5, 8, 8))
    )


def test_other_formats_do_not_pass_under_a_false_name(tmp_path: Path) -> None:
    path = tmp_path / "image.gif"
    picture(1).save(path)
    with pytest.raises(OSError, match="cannot identify"):
        decode_cropped(path.read_bytes(), 8)


def test_float_pixels_are_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UnreadableImage, match="I;16 pixels"):
        decode_cropped((tmp_path / "deep.png").read_bytes(), 8)
