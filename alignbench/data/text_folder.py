"""Captioned images in files: each image beside its caption, or listed with it in a JSONL manifest."""

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
    read_captions,
)
from alignbench.data.images import identity_of, read_picture, walk_images
from alignbench.errors import UserError

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
