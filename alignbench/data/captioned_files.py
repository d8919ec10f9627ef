"""Captioned images in whatever form they lie: files side by side, JSONL manifests, tar shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignbench.data.captioned import (
    IMAGE_KEYS,
    MAX_CAPTION_BYTES,
    NO_CAPTION,
    Listing,
    Sample,
    captions_of_object,
    open_samples,
    read_captions,
)
from alignbench.data.dataset import ProgressCallback
from alignbench.data.encoded import EncodedImages
from alignbench.data.folder import identity_of, read_picture, walk_images
from alignbench.data.webdataset import find_shards, list_shards
from alignbench.errors import UserError
from alignbench.registry.schema import Scalar

_SET_ROOT = "--set data.root=PATH"


def open_text_images(
    *,
    split: str,
    image_size: int,
    num_classes: int | None,
    options: Mapping[str, Scalar],
    workers: int,
    cache_dir: Path,
    progress: ProgressCallback | None = None,
) -> EncodedImages:
    """Open captioned images; arguments as in `open_dataset`.

    Options: `root`, a folder or a file; `form` of what is there; `caption_key` in JSON; `choice` among
    several captions of an image; `limit` images at most (0: all) chosen by `subset_seed`.

    Raises:
        UserError: nothing there can be used, with the remedy.
    """
    if not options["root"]:
        raise UserError("no captioned images were given", fix=_SET_ROOT)
    root = Path(str(options["root"])).expanduser()
    if not root.exists():
        raise UserError(f"data.root: {root} does not exist", fix=_SET_ROOT)
    form, key = str(options["form"]), str(options["caption_key"])
    form = form_of(root) if form == "auto" else form
    if form == "folder" and not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder", fix=_SET_ROOT)
    if form == "folder":
        listing = list_folder(root, key)
    elif form == "jsonl":
        listing = list_manifests(root, key)
    else:
        listing = list_shards(root, key, workers=workers, cache_dir=cache_dir)
    return open_samples(
        listing,
        title=str(root),
        options=options,
        image_size=image_size,
        workers=workers,
        cache_dir=cache_dir,
        progress=progress,
    )


def form_of(root: Path) -> str:
    """Say in which form captioned images lie: `folder`, `jsonl` or `tar`.

    Raises:
        UserError: a file that is neither a manifest nor a shard.
    """
    if root.is_dir():
        if any(root.glob("*.jsonl")):
            return "jsonl"
        return "tar" if find_shards(root) else "folder"
    kind = root.suffix.lower().removeprefix(".")
    if kind not in ("jsonl", "tar"):
        raise UserError(f"data.root: {root} is neither a folder nor a .jsonl or .tar file", fix=_SET_ROOT)
    return kind


CAPTION_FILES = (".txt", ".json")
"""Beside the image and of the same name; the first that exists counts. With a caption key only JSON does."""


def list_folder(root: Path, key: str) -> Listing:
    """List all images at any depth with the captions beside them, sorted by path.

    Args:
        root: the folder.
        key: of the caption in JSON files; empty: the usual ones.
    """
    names = sorted(path.relative_to(root).as_posix() for path in walk_images(root))
    return Listing(
        names,
        lambda position: _beside(root, names[position], key),
        lambda position: read_picture(root / names[position]),
        identity_of(root, names),
    )


def list_manifests(root: Path, key: str) -> Listing:
    """List the images named by a JSONL file, or by all JSONL files of a folder.

    A line is an object with the image's path, absolute or from the manifest's folder, and its caption.

    Args:
        root: the file or the folder.
        key: of the caption; empty: the usual ones.

    Raises:
        UserError: a manifest cannot be read.
    """
    folder = root if root.is_dir() else root.parent
    manifests = sorted(root.glob("*.jsonl")) if root.is_dir() else [root]
    lines = [line for manifest in manifests for line in _lines(manifest, key)]
    paths = [folder / path for path, _ in lines]
    # Named as written: the same manifest elsewhere is the same data set.
    identity = identity_of(folder, [str(path) for path, _ in lines])
    samples = [sample for _, sample in lines]
    return Listing.of(samples, lambda position: read_picture(paths[position]), identity)


def _beside(root: Path, name: str, key: str) -> Sample:
    """Read the caption file beside an image."""
    image = root / name
    for suffix in CAPTION_FILES:
        path = image.with_suffix(suffix)
        is_json = suffix == ".json"
        if (key and not is_json) or not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                data = file.read(MAX_CAPTION_BYTES + 1)
        except OSError as error:
            return Sample(name, problem=f"the caption file: {(error.strerror or 'unreadable').lower()}")
        if len(data) > MAX_CAPTION_BYTES:
            return Sample(name, problem=f"the caption file is larger than {MAX_CAPTION_BYTES >> 20} MiB")
        return Sample(name, *read_captions(data, is_json=is_json, key=key))
    wanted = CAPTION_FILES[1] if key else " or ".join(CAPTION_FILES)
    return Sample(name, problem=f"{NO_CAPTION}: no {wanted} file beside it")


def _lines(manifest: Path, key: str) -> Iterator[tuple[str, Sample]]:
    """Yield (image path as written, sample) of every line that is not blank."""
    try:
        text = manifest.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.root: {manifest} cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _line(line, f"{manifest.name}:{number}", key)


def _line(line: str, where: str, key: str) -> tuple[str, Sample]:
    try:
        content: Any = json.loads(line)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, Mapping):
        return "", Sample(where, problem="not a JSON object")
    path = next((value for name in IMAGE_KEYS if isinstance(value := content.get(name), str) and value), "")
    if not path or "\0" in path:
        return "", Sample(where, problem=f"no image under {', '.join(IMAGE_KEYS)}")
    captions = captions_of_object(content, key)
    return path, Sample(f"{where} {path}", captions, "" if captions else NO_CAPTION)
