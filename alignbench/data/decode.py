"""One encoded picture to pixels: cropped as training does it, or exactly as it is where it is scored.

Either way only the decoders of FORMATS run, the first frame of an animation counts, and EXIF orientation and
colour profiles are ignored, as ADM's and torch-fidelity's readers do.
"""

from __future__ import annotations

import contextlib
import io
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Decoders that may run, whatever a file calls itself."""
EXACT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
"""Pixel forms that become RGB without a choice being made; CMYK and wide channels do not."""
CROPPED_MODES = (*EXACT_MODES, "CMYK", "YCbCr")
"""Pixel forms with 8 bits or fewer per channel; 16-bit grey and float pixels are refused by name."""
MAX_PIXELS = 89_478_485
"""Largest picture that is cropped, Pillow's own warning limit (256 MiB as RGB)."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = 24
"""Offset of the byte in a PNG file that says how many bits a channel has."""


class UnreadableImage(Exception):
    """An image that is left out or refused deliberately; the text is the reason."""


@dataclass(frozen=True)
class Skipped:
    """An image that was left out because it cannot be read."""

    path: str
    """Relative to the data set's root; `row 17` for tables."""
    reason: str


def reason_of(error: Exception) -> str:
    """Say in one line, without machine paths, why an image cannot be read.

    Raises:
        MemoryError: the error is one, which says something about the machine and not about the image.
    """
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, UnreadableImage):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not a PNG, JPEG, WebP or BMP image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    lines = str(error).splitlines()
    return f"damaged image: {lines[0] if lines else type(error).__name__}"


TURNED = "turned by EXIF, and taken as stored"
CLEAR = "transparent in part, and taken without that"


def ignored_in(image: Image.Image) -> list[str]:
    """What a picture says of itself and `decode_cropped` does not apply: `TURNED`, `CLEAR`."""
    turned = 1
    with contextlib.suppress(Exception):  # a damaged note is none
        turned = image.getexif().get(ExifTags.Base.Orientation, 1)
    clear = "A" in image.mode or "transparency" in image.info
    clear = clear and image.convert("RGBA").getchannel("A").getextrema() != (255, 255)
    return [TURNED] * (turned in range(2, 9)) + [CLEAR] * clear


def decode_cropped(data: bytes, size: int, ignored: list[str] | None = None) -> np.ndarray:
    """Decode, convert to RGB and crop as ADM does, to [size, size, 3] uint8.

    As in ADM, transparency is dropped (not composited on a colour) and CMYK is converted by Pillow's plain
    formula. Colour with 16 bits per channel loses its lower 8.

    Args:
        ignored: gets what `ignored_in` says of the picture; None: it is not asked.

    Raises:
        UnreadableImage: too large, too narrow, or pixels that have no faithful 8-bit form.
        Exception: whatever Pillow raises on a damaged picture.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise UnreadableImage(f"{width}×{height} is more than {MAX_PIXELS} pixels")
        if size * size * max(width, height) > MAX_PIXELS * min(width, height):
            raise UnreadableImage(f"{width}×{height} is too narrow to be scaled to {size} px")
        # Deviation: ADM would clip 16-bit grey at 255, which turns it almost white.
        _check_mode(image, CROPPED_MODES, "8-bit form; save it with 8 bits")
        if ignored is not None:
            ignored += ignored_in(image)
        image.info.pop("transparency", None)  # dropped by the conversion anyway, but with a warning
        return np.asarray(center_crop_adm(image.convert("RGB"), size))


def decode_exact(data: bytes, size: int) -> np.ndarray:
    """Decode a picture of [size, size, 3] uint8 as it is.

    Grey and palette pictures become RGB. Transparency is accepted only where every pixel is opaque, since any
    background would be a choice.

    Raises:
        UnreadableImage: as in `open_exact`, or a pixel that is not opaque.
        Exception: whatever Pillow raises on a damaged picture.
    """
    with open_exact(io.BytesIO(data), size) as image:
        if image.mode in ("1", "L") and "transparency" in image.info and data[_PNG_DEPTH] < 8:
            # Pillow widens the grey to 8 bits but not the value that is transparent.
            raise UnreadableImage("transparent pixels in less than 8 bits; save it with 8")
        if "A" in image.mode or "transparency" in image.info:
            image = image.convert("RGBA")
            if np.asarray(image.getchannel("A")).min() < 255:
                raise UnreadableImage("transparent pixels: what lies behind them is not known")
        return np.array(image.convert("RGB"))


def open_exact(file: IO[bytes], size: int) -> Image.Image:
    """Read the beginning of a picture; its pixels are not decoded yet.

    Raises:
        UnreadableImage: nothing in it, another size, or pixels that have no faithful RGB bytes.
        Exception: whatever Pillow raises on what is no picture.
    """
    start = file.read(_PNG_DEPTH + 1)
    file.seek(0)
    if not start:
        raise UnreadableImage("an empty file")
    image = Image.open(file, formats=FORMATS)
    # Pillow reads 16-bit colour as 8-bit colour without a word, so the file itself is asked.
    if start.startswith(_PNG) and start[_PNG_DEPTH:] == b"\x10":
        raise UnreadableImage("16 bits per channel; save it with 8")
    _check_mode(image, EXACT_MODES, "RGB bytes; save it as 8-bit RGB")
    if image.size != (size, size):
        raise UnreadableImage(f"{image.width}×{image.height} where {size}×{size} is scored")
    return image


def _check_mode(image: Image.Image, modes: Sequence[str], wanted: str) -> None:
    if image.mode not in modes:
        raise UnreadableImage(f"{image.mode} pixels have no faithful {wanted}")


MIN_CROP_FRACTION = 0.8
MAX_CROP_FRACTION = 1.0


def center_crop_adm(image: Image.Image, size: int) -> Image.Image:
    """Crop the centre square, [size, size] of the same mode; an odd margin is larger at the end.

    Convert it to RGB first to average colours rather than palette entries.
    """
    image = _resize_shorter_side(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_crop_adm(image: Image.Image, size: int, rng: random.Random) -> Image.Image:
    """Crop a random square that spans 0.8 to 1.0 of the shorter side; otherwise as `center_crop_adm`.

    Three numbers are drawn: the resized shorter side, then the top and the left edge.
    """
    smallest = math.ceil(size / MAX_CROP_FRACTION)
    largest = math.ceil(size / MIN_CROP_FRACTION)
    image = _resize_shorter_side(image, rng.randrange(smallest, largest + 1))
    top = rng.randrange(0, image.height - size + 1)
    left = rng.randrange(0, image.width - size + 1)
    return image.crop((left, top, left + size, top + size))


def _resize_shorter_side(image: Image.Image, target: int) -> Image.Image:
    while min(image.size) >= 2 * target:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = target / min(image.size)
    resized = (round(image.width * scale), round(image.height * scale))
    return image.resize(resized, resample=Image.Resampling.BICUBIC)


ProgressCallback = Callable[[int, int], None]
"""Called with (done, total), always from the thread that asked for the work."""

Item = TypeVar("Item")
Output = TypeVar("Output")

AHEAD = 4
"""Items in flight per thread."""


def ordered_map(
    function: Callable[[Item], Output], items: Iterable[Item], *, workers: int
) -> Iterator[Output]:
    """Yield `function(item)` in the order of the items.

    Args:
        function: called from several threads at once unless `workers` is 0.
        items: read only as far as the threads need.
        workers: threads; 0 calls the function in the calling thread.
    """
    if workers == 0:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    window: deque[Future[Output]] = deque()
    try:
        for item in items:
            window.append(pool.submit(function, item))
            if len(window) > AHEAD * workers:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
    finally:  # also when the reader stops early or is interrupted
        pool.shutdown(wait=True, cancel_futures=True)
