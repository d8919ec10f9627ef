"""Captioned images in whatever form they lie: files side by side, JSONL manifests, tar shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alignbench.data.captioned import (
    CAPTION_FILES,
    NO_CAPTION,
    Listing,
    Sample,
    captioned_source,
    captions_of_object,
    read_captions,
)
from alignbench.data.encoded import Source
from alignbench.data.walk import identity_of, image_names, read_file
from alignbench.data.webdataset import find_shards, list_shards
from alignbench.errors import UserError
from alignbench.registry.schema import Scalar

IMAGE_KEYS = ("image", "file_name", "image_path", "path")
"""Where a line of a manifest may name its image."""
_SET_ROOT = "--set data.root=PATH"


def open_text_images(*, options: Mapping[str, Scalar], workers: int, cache_dir: Path, **_: object) -> Source:
    """List captioned images; arguments as in `open_dataset`.

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
    if form == "folder":
        listing = list_folder(root, key)
    elif form == "jsonl":
        listing = list_manifests(root, key)
    else:
        listing = list_shards(root, key, workers=workers, cache_dir=cache_dir)
    return captioned_source(listing, title=str(root), options=options, workers=workers)


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


def list_folder(root: Path, key: str) -> Listing:
    """List all images at any depth with the captions beside them, sorted by path.

    Args:
        root: the folder.
        key: of the caption in JSON files; empty: the usual ones.

    Raises:
        UserError: it is no folder, or cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder", fix=_SET_ROOT)
    names = image_names(root)

    def sample(position: int) -> Sample:
        beside = {ending: (root / names[position]).with_suffix(ending) for ending in CAPTION_FILES}
        files = {ending: _reader(path) for ending, path in beside.items() if path.is_file()}
        return Sample(names[position], *read_captions(files, key, "beside it"))

    return Listing(
        names, sample, lambda position: read_file(root / names[position]), identity_of(root, names)
    )


def _reader(path: Path) -> Callable[[int], bytes]:
    def read(size: int) -> bytes:
        with path.open("rb") as file:
            return file.read(size)

    return read


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
    # Named as written: the same manifest elsewhere is the same data set.
    paths = [path for path, _ in lines]
    return Listing.of(
        [sample for _, sample in lines],
        lambda position: read_file(folder / paths[position]),
        identity_of(folder, paths),
    )


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
