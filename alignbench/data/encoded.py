"""Images that lie encoded (PNG, JPEG, …) in files or table cells: checking, hashing, decoding.

Every image is decoded once when a data set is opened, exactly as training will decode it. What fails
is listed by name and left out, so that training never meets an unreadable image. The outcome is kept
in a cache, because decoding everything takes minutes for a large folder.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from alignbench.data.decode import (
    ProgressCallback,
    Skipped,
    UnreadableImage,
    decode_cropped,
    ordered_map,
    reason_of,
)
from alignbench.data.numbered import NumberedImages
from alignbench.data.walk import printable
from alignbench.errors import RunFailed, UserError
from alignbench.files import read_json, write_json

CACHE_VERSION = 2


@dataclass(frozen=True)
class Source:
    """Encoded images before they are checked; all sequences are row-aligned."""

    title: str
    """How messages name it."""
    names: Sequence[str]
    """Unique; how the list of what was left out calls each image."""
    labels: Sequence[int]
    class_names: tuple[str, ...]
    read: Callable[[int], bytes]
    """Position → encoded picture; called from several threads. `UnreadableImage` leaves a picture out."""
    identity: str
    """Changes whenever a picture may have changed; key of the cache."""
    captions: Sequence[str] | None = None
    """Of captioned images; those of pictures that `read` refuses do not matter."""


class EncodedImages(NumberedImages):
    """The readable images of a source; see `ImageDataset`, of one with captions also `Captioned`."""

    def __init__(
        self,
        source: Source,
        content: Sequence[str],
        reasons: dict[int, str],
        size: int,
        ignored: Mapping[str, int],
    ) -> None:
        self.notes = [f"{count} of {len(source.names)} images are {what}" for what, count in ignored.items()]
        self._source, self._content = source, content
        self._good = [position for position, digest in enumerate(content) if digest]
        self._size = size
        names, captions = source.names, source.captions
        super().__init__(
            [source.labels[position] for position in self._good],
            source.class_names,
            _digest(source, content, self._good),
            captions=captions and tuple(captions[position] for position in self._good),
            skipped=[Skipped(printable(names[at]), reason) for at, reason in sorted(reasons.items())],
        )

    def load(self, index: int) -> tuple[np.ndarray, int]:
        position = self._good[index]
        try:
            data = self._source.read(position)
            if _hash(data) != self._content[position]:
                raise UnreadableImage("it has other content")
            pixels = decode_cropped(data, self._size)
        except Exception as error:
            name = printable(self._source.names[position])
            raise RunFailed(
                f"{name} in {self._source.title} is not what it was when the run started: {reason_of(error)}",
                fix="put the file back and run the same command again",
            ) from error
        return pixels, int(self.labels[index])


def open_encoded(
    source: Source, *, image_size: int, workers: int, cache_dir: Path, progress: ProgressCallback | None
) -> EncodedImages:
    """Check every image and open the readable ones; raises UserError: none is, or no cache can be written."""
    if not source.names:
        raise UserError(f"{source.title}: no images in it")

    def check(position: int) -> tuple[str, str, list[str]]:
        """Return (hash of the encoded picture, "", what of it is ignored) or ("", reason, [])."""
        ignored: list[str] = []
        try:
            data = source.read(position)
            decode_cropped(data, image_size, ignored)
        except Exception as error:  # damaged files make decoders raise nearly anything
            return "", reason_of(error), []
        return _hash(data), "", ignored

    key = json.dumps([CACHE_VERSION, PIL.__version__, image_size, source.identity])
    path = cache_dir / f"images-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    content: list[str]
    content, counts = read_cache(path) or ([], {})
    if len(content) != len(source.names):
        content, counts = [""] * len(source.names), {}
    ignored: Counter[str] = Counter(counts)
    # Images that failed before are tried again: a file's permissions can be mended without a trace.
    pending = [position for position, digest in enumerate(content) if not digest]
    reasons: dict[int, str] = {}
    outcomes = zip(pending, ordered_map(check, pending, workers=workers), strict=True)
    for done, (position, (digest, reason, unheeded)) in enumerate(outcomes, start=1):
        content[position] = digest
        ignored.update(unheeded)
        if reason:
            reasons[position] = reason
        if progress is not None:
            progress(done, len(pending))
    if len(pending) > len(reasons):
        write_cache(path, [content, ignored], "the list of checked images")
    if len(reasons) == len(source.names):
        what = "images" if source.captions is None else "images with captions"
        first = min(reasons)
        raise UserError(
            f"{source.title}: none of {len(reasons)} images can be read; "
            f"{printable(source.names[first])}: {reasons[first]}",
            fix=f"give PNG, JPEG, WebP or BMP {what}",
        )
    return EncodedImages(source, content, reasons, image_size, ignored)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _digest(source: Source, content: Sequence[str], good: Sequence[int]) -> str:
    """Hash class names and, for every readable image, its name, class id, content and caption."""
    state = hashlib.sha256(json.dumps(source.class_names).encode())
    for position in good:
        row = [source.names[position], int(source.labels[position]), content[position]]
        row += [] if source.captions is None else [source.captions[position]]
        state.update(json.dumps(row).encode())
    return state.hexdigest()


def read_cache(path: Path) -> Any:
    """Return what `write_cache` kept; None if it is absent or damaged."""
    try:
        return read_json(path)["content"]
    except (OSError, ValueError, LookupError):
        return None


def write_cache(path: Path, content: Any, what: str) -> None:
    """Keep plain data, which messages call `what`; raises UserError if it cannot be written."""
    try:
        write_json(path, {"content": content})
    except OSError as error:
        raise UserError(
            f"{path}: {what} cannot be written: {error.strerror}",
            fix="set ALIGNBENCH_CACHE to a folder you can write to",
        ) from error
