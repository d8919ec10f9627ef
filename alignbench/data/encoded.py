"""Images that lie encoded (PNG, JPEG, …) in files or table cells: checking, hashing, decoding.

Every image is decoded once when a data set is opened, exactly as training will decode it. What fails
is listed by name and left out, so that training never meets an unreadable image. The outcome is kept
in a cache, because decoding everything takes minutes for a large folder.
"""

from __future__ import annotations

import hashlib
import heapq
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from alignbench.data.crops import center_crop_adm
from alignbench.data.dataset import ProgressCallback, Skipped, ordered_map
from alignbench.errors import RunFailed, UserError
from alignbench.files import write_atomic

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Decoders that may run, whatever a file calls itself."""

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pixel forms with 8 bits or fewer per channel; 16-bit grey and float pixels are refused by name."""

MAX_PIXELS = 89_478_485
"""Largest picture that is decoded, Pillow's own warning limit (256 MiB as RGB)."""

CACHE_VERSION = 1


class UnreadableImage(Exception):
    """An image that is left out deliberately; the text is the reason."""


# --- one image ------------------------------------------------------------------------------------


def decode_image(data: bytes, size: int) -> np.ndarray:
    """Decode, convert to RGB and crop as ADM does.

    As in ADM, transparency is dropped (not composited on a colour), CMYK is converted by Pillow's
    plain formula and the EXIF orientation is ignored. The first frame of an animation counts. Colour
    with 16 bits per channel loses its lower 8.

    Args:
        data: the encoded picture.
        size: side of the result.

    Returns:
        [size, size, 3] uint8.

    Raises:
        UnreadableImage: too large, too narrow, or pixels that have no faithful 8-bit form.
        Exception: whatever Pillow raises on a damaged picture.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_extent(image.width, image.height, size)
        if image.mode not in MODES:
            # Deviation: ADM would clip 16-bit grey at 255, which turns it almost white.
            raise UnreadableImage(f"{image.mode} pixels have no faithful 8-bit form; save it with 8 bits")
        image.info.pop("transparency", None)  # dropped by the conversion anyway, but with a warning
        return np.asarray(center_crop_adm(image.convert("RGB"), size))


def _check_extent(width: int, height: int, size: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width}×{height} is more than {MAX_PIXELS} pixels")
    if size * size * max(width, height) > MAX_PIXELS * min(width, height):
        raise UnreadableImage(f"{width}×{height} is too narrow to be scaled to {size} px")


def reason_of(error: Exception) -> str:
    """Say in one line, without machine paths, why an image cannot be read."""
    if isinstance(error, UnreadableImage):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not a PNG, JPEG, WebP or BMP image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    lines = str(error).splitlines()
    return f"damaged image: {lines[0] if lines else type(error).__name__}"


# --- a list of images -----------------------------------------------------------------------------


def choose(names: Sequence[str], *, limit: int, seed: int) -> list[int]:
    """Return the positions of a fixed subset, ascending.

    The `limit` names with the smallest hash are kept, so the choice depends on the names alone, and a
    smaller subset lies inside a larger one.

    Args:
        names: unique; their order decides nothing but the positions.
        limit: how many to keep at most; 0 keeps all.
        seed: another seed, another subset.
    """
    if limit == 0 or limit >= len(names):
        return list(range(len(names)))

    def rank(position: int) -> bytes:
        text = f"{seed}/{names[position]}"
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()

    return sorted(heapq.nsmallest(limit, range(len(names)), key=rank))


@dataclass(frozen=True)
class Source:
    """Encoded images before they are checked; all sequences are row-aligned."""

    title: str
    """How messages name it."""
    names: Sequence[str]
    labels: Sequence[int]
    class_names: tuple[str, ...]
    read: Callable[[int], bytes]
    """Position → encoded picture; called from several threads."""
    identity: str
    """Changes whenever a picture may have changed; key of the cache."""
    captions: Sequence[str] | None = None
    """Of captioned images; those of pictures that `read` refuses do not matter."""


class EncodedImages:
    """The readable images of a source; see `ImageDataset`."""

    def __init__(self, source: Source, content: Sequence[str], reasons: dict[int, str], size: int) -> None:
        good = [position for position, found in enumerate(content) if found]
        self.class_names = source.class_names
        self.num_classes = len(source.class_names)
        self.labels = np.asarray([source.labels[position] for position in good], dtype=np.int64)
        self.labels.flags.writeable = False
        self.skipped = tuple(
            Skipped(_printable(source.names[at]), reason) for at, reason in sorted(reasons.items())
        )
        self.digest = _digest(source, content, good)
        self._source = source
        self._good = good
        self._size = size

    def __len__(self) -> int:
        return len(self._good)

    def load(self, index: int) -> tuple[np.ndarray, int]:
        position = self._good[index]
        try:
            pixels = decode_image(self._source.read(position), self._size)
        except MemoryError:
            raise
        except Exception as error:
            name = _printable(self._source.names[position])
            raise RunFailed(
                f"{name} in {self._source.title} was readable when the run started "
                f"and no longer is: {reason_of(error)}",
                fix="put the file back and run the same command again",
            ) from error
        return pixels, int(self.labels[index])


class CaptionedImages(EncodedImages):
    """The readable images of a source with captions; see `Captioned`."""

    def __init__(self, source: Source, content: Sequence[str], reasons: dict[int, str], size: int) -> None:
        assert source.captions is not None
        super().__init__(source, content, reasons, size)
        self.captions = tuple(source.captions[position] for position in self._good)


def open_encoded(
    source: Source,
    *,
    image_size: int,
    workers: int,
    cache_dir: Path,
    progress: ProgressCallback | None,
) -> EncodedImages:
    """Check every image of a source and open the readable ones.

    Args:
        source: what to open.
        image_size: side of the loaded images.
        workers: threads that decode.
        cache_dir: the outcome is kept here as `images-<key>.json`.
        progress: told how many images are checked.

    Raises:
        UserError: no image can be read, or the cache cannot be written.
    """
    if not source.names:
        raise UserError(f"{source.title}: no images in it")
    path = cache_dir / f"images-{_cache_key(source.identity, image_size)}.json"
    content = _read_cache(path, len(source.names))
    # Images that failed before are tried again: a file's permissions can be mended without a trace.
    pending = [position for position, found in enumerate(content) if not found]
    reasons: dict[int, str] = {}

    def check(position: int) -> tuple[str, str]:
        return _check(source, position, image_size)

    for done, (position, (found, reason)) in enumerate(
        zip(pending, ordered_map(check, pending, workers=workers), strict=True), start=1
    ):
        content[position] = found
        if reason:
            reasons[position] = reason
        if progress is not None:
            progress(done, len(pending))
    if len(pending) > len(reasons):
        _write_cache(path, content)
    if len(reasons) == len(source.names):
        what = "images" if source.captions is None else "images with captions"
        first = min(reasons)
        raise UserError(
            f"{source.title}: none of {len(reasons)} images can be read; "
            f"{_printable(source.names[first])}: {reasons[first]}",
            fix=f"give PNG, JPEG, WebP or BMP {what}",
        )
    kind = EncodedImages if source.captions is None else CaptionedImages
    return kind(source, content, reasons, image_size)


def _check(source: Source, position: int, size: int) -> tuple[str, str]:
    """Return (hash of the encoded picture, "") or ("", reason)."""
    try:
        data = source.read(position)
        decode_image(data, size)
    except MemoryError:  # says something about the machine, not about the image
        raise
    except Exception as error:  # damaged files make decoders raise nearly anything
        return "", reason_of(error)
    return hashlib.blake2b(data, digest_size=16).hexdigest(), ""


def _digest(source: Source, content: Sequence[str], good: Sequence[int]) -> str:
    """Hash class names and, for every readable image, its name, class id, content and caption."""
    state = hashlib.sha256(json.dumps(source.class_names).encode())
    for position in good:
        facts = [source.names[position], int(source.labels[position]), content[position]]
        facts += [] if source.captions is None else [source.captions[position]]
        state.update(json.dumps(facts).encode())
    return f"sha256:{state.hexdigest()}"


def _printable(name: str) -> str:
    """Replace bytes of a file name that are not UTF-8, which could be neither printed nor recorded."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# --- cache ----------------------------------------------------------------------------------------


def _cache_key(identity: str, image_size: int) -> str:
    text = json.dumps([CACHE_VERSION, PIL.__version__, image_size, identity])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _read_cache(path: Path, count: int) -> list[str]:
    """Return the hashes of an earlier check, "" where an image has to be checked."""
    unknown = [""] * count
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent or damaged: everything is checked again
        return unknown
    return content if isinstance(content, list) and len(content) == count else unknown


def _write_cache(path: Path, content: list[str]) -> None:
    try:
        write_atomic(path, json.dumps(content))
    except OSError as error:
        raise UserError(
            f"{path}: the list of checked images cannot be written: {error.strerror}",
            fix="set ALIGNBENCH_CACHE to a folder you can write to",
        ) from error
