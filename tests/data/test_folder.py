"""Image folders: order, subsets, what is skipped, what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alignbench.data.decode import CLEAR, TURNED, Skipped, center_crop_adm
from alignbench.errors import RunFailed
from tests.helpers.data_sets import content, opened, reasons, refused

Folder = Callable[..., Any]


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
def folder(root: Path, tmp_path: Path) -> Folder:
    """Open the root; keywords as for `opened`."""

    def call(card: str = "folder", split: str = "all", **changes: Any) -> Any:
        defaults: dict[str, Any] = {"num_classes": 3, "workers": 2, "root": str(root)}
        return opened(card, split, cache=tmp_path / "cache", **defaults | changes)

    return call


# --- what is read ---------------------------------------------------------------------------------


def test_images_come_sorted_cropped_and_labelled(folder: Folder, root: Path) -> None:
    dataset = folder()
    assert dataset.class_names == ("ant", "bee", "cat") and dataset.num_classes == 3
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2, 2] and dataset.skipped == ()
    pixels, label = dataset.load(1)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8 and label == 0
    np.testing.assert_array_equal(pixels, np.asarray(center_crop_adm(picture(0), 8)))  # ant/b.png
    np.testing.assert_array_equal(dataset.load(2)[0], np.asarray(center_crop_adm(picture(2), 8)))
    plain = folder(workers=0)
    assert content(plain) == content(dataset) and plain.digest == dataset.digest


def test_folders_named_by_numbers_are_the_class_ids(folder: Folder, tmp_path: Path) -> None:
    """Sorted as texts, `10` would come before `2`, and nearly every label would be wrong."""
    root = tmp_path / "numbered"
    for number in range(12):
        (root / str(number)).mkdir(parents=True)
        picture(number).save(root / str(number) / "image.png")
    dataset = folder(root=str(root), num_classes=12)
    assert dataset.class_names == tuple(map(str, range(12)))
    shown = {
        label: pixels.tobytes() for pixels, label in (dataset.load(index) for index in range(len(dataset)))
    }
    for number in range(12):
        assert shown[number] == np.asarray(center_crop_adm(picture(number), 8)).tobytes()
    (root / "0").rename(root / "12")
    for num_classes in (12, None):
        told = refused(folder, root=str(root), num_classes=num_classes)
        assert "must be the class ids 0 … 11, but 0 is missing and 12 is too much" in told
        assert "data.class_index" in told
    (root / "12").rename(root / "01")
    assert "1 is there twice" in refused(folder, root=str(root), num_classes=12)


@pytest.mark.parametrize("form", ["lines", "synsets", "json"])
def test_lists_of_classes_come_in_the_forms_of_imagenet(folder: Folder, tmp_path: Path, form: str) -> None:
    root, ids = tmp_path / "imagenet", ["n01443537", "n01440764", "n02084071"]
    for number, name in enumerate(ids):
        (root / name).mkdir(parents=True)
        picture(number).save(root / name / "a.png")
    if form == "json":
        listed = tmp_path / "imagenet_class_index.json"
        listed.write_text(json.dumps({str(n): [name, "word"] for n, name in reversed([*enumerate(ids)])}))
    else:
        more = " a word, another" if form == "synsets" else ""
        listed = tmp_path / "list.txt"
        listed.write_text("".join(f"{name}{more}\n" for name in ids), encoding="utf-8-sig")
    assert folder(root=str(root), class_index=str(listed)).class_names == tuple(ids)


def test_other_splits_are_sub_folders(folder: Folder, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "whole" / "train")
    whole = str(tmp_path / "whole")
    assert folder("imagenet", "train", root=whole).digest == folder().digest
    assert "has no sub-folder 'val'" in refused(folder, "imagenet", "val", root=whole)
    assert "has no split 'tset'. Did you mean test" in refused(folder, "folder", "tset")


def test_links_are_followed_once(folder: Folder, root: Path) -> None:
    (root / "bee" / "deep" / "loop").symlink_to(root / "bee", target_is_directory=True)
    (root / "dog").symlink_to(root / "ant", target_is_directory=True)
    dataset = folder(num_classes=4)
    assert dataset.class_names[-1] == "dog" and dataset.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_digest_ignores_place_and_time_but_not_content(folder: Folder, root: Path, tmp_path: Path) -> None:
    first = folder()
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    os.utime(moved / "ant" / "b.png", (1, 1))
    assert folder(root=str(moved)).digest == first.digest
    (moved / "cat").rename(moved / "cow")
    renamed = folder(root=str(moved)).digest
    picture(99).save(moved / "ant" / "a.bmp")  # as many bytes as before
    assert len({first.digest, renamed, folder(root=str(moved)).digest}) == 3


def test_limit_keeps_the_chosen_files(folder: Folder) -> None:
    whole, part = folder(), folder(limit=3)
    assert len(part) == 3 and part.num_classes == 3
    assert set(content(part)) < set(content(whole)) and part.digest != whole.digest


# --- unreadable files -----------------------------------------------------------------------------


def test_bad_files_are_listed_and_not_replaced(folder: Folder, root: Path) -> None:
    (root / "ant" / "text.png").write_text("a text file renamed .png")
    (root / "ant" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "bee" / "empty.jpg").touch()
    os.mkfifo(root / "bee" / "pipe.png")
    header = bytearray((root / "ant" / "a.bmp").read_bytes())
    header[18:26] = (60000).to_bytes(4, "little") * 2
    (root / "bee" / "bomb.bmp").write_bytes(header)
    Image.fromarray(np.zeros((9, 9), dtype=np.uint16)).save(root / "cat" / "deep.png")
    picture(7, width=4000, height=1).save(root / "cat" / "thread.png")
    picture(8, 300, 300).save(root / "cat" / "whole.jpg")
    data = (root / "cat" / "whole.jpg").read_bytes()
    (root / "cat" / "cut.jpg").write_bytes(data[: len(data) // 2])
    dataset = folder(image_size=256)
    found = reasons(dataset)
    cut, bomb = found.pop("cat/cut.jpg"), found.pop("bee/bomb.bmp")
    assert "truncated" in cut and str(root) not in cut
    assert "exceeds limit" in bomb
    assert found == {
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


def test_what_pictures_say_of_themselves_and_is_not_applied_is_counted(folder: Folder, root: Path) -> None:
    assert not folder().notes
    exif = Image.Exif()
    exif[0x0112] = 3
    picture(7).save(root / "ant" / "turned.png", exif=exif)
    for name, clear in (("half", 128), ("whole", 255)):
        image = picture(8).convert("RGBA")
        image.putalpha(clear)
        image.save(root / "bee" / f"{name}.png")
    for _ in range(2):  # looked at, and remembered
        assert folder().notes == [f"1 of 9 images are {what}" for what in (TURNED, CLEAR)]


def test_file_names_that_are_not_utf8(folder: Folder, root: Path) -> None:
    for name, data in ((b"\xff.png", b"broken"), (b"\xfe.png", (root / "ant" / "b.png").read_bytes())):
        (root / "ant" / os.fsdecode(name)).write_bytes(data)
    dataset = folder(limit=7)
    assert len(dataset) + len(dataset.skipped) == 7
    assert Skipped("ant/\ufffd.png", "not a PNG, JPEG, WebP or BMP image") in folder().skipped


def test_images_that_change_or_vanish_later_or_are_all_unreadable_are_an_error(
    folder: Folder, root: Path
) -> None:
    dataset = folder()
    shutil.copyfile(root / "ant" / "b.png", root / "ant" / "a.bmp")
    with pytest.raises(RunFailed, match=r"ant/a\.bmp .* is not what it was .*: it has other content"):
        dataset.load(0)
    (root / "ant" / "a.bmp").unlink()
    with pytest.raises(RunFailed, match=r"ant/a\.bmp .* is not what it was .*: no such file"):
        dataset.load(0)
    for path in root.rglob("*"):
        if path.is_file():
            path.write_text("no image")
    assert "none of 5 images can be read; ant/b.png: not a PNG" in refused(folder)


def test_other_pixels_with_the_time_of_the_old_are_noticed(folder: Folder, root: Path) -> None:
    """`cp -p`, rsync and archives keep the time of modification."""
    before, path = folder().digest, root / "ant" / "b.png"
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert folder().digest != before


def test_checked_files_are_not_checked_again(folder: Folder, root: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    (root / "ant" / "z.png").write_text("broken")
    first = folder(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 7) for done in range(1, 8)]
    seen.clear()
    again = folder(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 1)], "only what failed is tried again"
    assert (again.digest, again.skipped) == (first.digest, first.skipped)
    for path in (tmp_path / "cache").iterdir():
        path.write_text("[1, 2")
    assert folder().digest == first.digest, "a damaged cache is made anew"
    (root / "ant" / "b.png").write_text("broken now")
    changed = folder()
    assert changed.skipped[0] == Skipped("ant/b.png", "not a PNG, JPEG, WebP or BMP image")
    assert changed.digest != first.digest


# --- refused folders ------------------------------------------------------------------------------


def test_roots_that_are_not_there_and_options_that_do_not_fit(folder: Folder, tmp_path: Path) -> None:
    assert "--set data.root=PATH" in refused(folder, root="")
    assert "is not a folder" in refused(folder, root=str(tmp_path / "none"))
    assert "no option 'rot'. Did you mean root" in refused(folder, rot="x")
    assert "data.limit: -1 is below 0" in refused(folder, limit=-1)


def test_roots_of_the_wrong_form(folder: Folder, root: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    assert "no class folders" in refused(folder, root=str(bare))
    shutil.copytree(root / "ant", bare / "ant")
    assert "only one class folder, 'ant'" in refused(folder, root=str(bare))
    (bare / "bee").mkdir()
    assert f"{bare / 'bee'}: no images" in refused(folder, num_classes=2, root=str(bare))
    (bare / "bee").rmdir()
    (bare / "ant").rename(bare / "train")
    assert f"--set data.root={bare / 'train'}" in refused(folder, root=str(bare))
    message = refused(folder, root=str(bare / "train"))
    assert "2 images lie outside any class folder, e.g. a.bmp" in message


def test_class_counts_must_fit(folder: Folder, tmp_path: Path) -> None:
    assert "3 class folders, but the model knows 2" in refused(folder, num_classes=2)
    assert "data.class_index=FILE" in refused(folder, num_classes=5)
    assert folder(num_classes=None).num_classes == 3
    listing = tmp_path / "classes.txt"
    index = str(listing)
    assert "cannot be read" in refused(folder, num_classes=5, class_index=index)
    listing.write_text("dog\ncat\nbee\nant\nelk\n")
    dataset = folder(num_classes=5, class_index=index)
    assert dataset.class_names == ("dog", "cat", "bee", "ant", "elk")
    assert dataset.labels.tolist() == [3, 3, 2, 2, 1, 1]
    assert "lists 5 classes, the model has 6" in refused(folder, num_classes=6, class_index=index)
    listing.write_text("dog\ncat\nbees\nant\nelk\n")
    assert "'bee' is not in" in refused(folder, num_classes=5, class_index=index)
    listing.write_text("dog\ndog\n")
    assert "lists 'dog' twice" in refused(folder, num_classes=2, class_index=index)
