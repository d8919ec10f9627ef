"""Decode a picture to RGB bytes without changing a value, or say why that cannot be done."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from alignbench.data.encoded import FORMATS, UnreadableImage

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
"""Pixel forms that become RGB without a choice being made; CMYK and wide channels do not."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = 24
"""Offset of the byte in a PNG file that says how many bits a channel has."""


def check_header(path: Path, size: int) -> None:
    """Look at the beginning of a file.

    Raises:
        UnreadableImage: another size, or pixels that have no faithful RGB bytes.
        Exception: whatever Pillow raises on what is no picture.
    """
    if not path.is_file():  # a broken link, or a pipe that would never end
        raise UnreadableImage("not a regular file")
    with path.open("rb") as file:
        _check(file, size)


def decode_exact(data: bytes, size: int) -> np.ndarray:
    """Decode a picture of a given size.

    Grey and palette pictures become RGB. Transparency is accepted only where every pixel is opaque, since any
    background would be a choice. The EXIF orientation and colour profiles are ignored, as ADM's and
    torch-fidelity's readers do; the first frame of an animation counts.

    Args:
        data: the encoded picture.
        size: side it must have.

    Returns:
        [size, size, 3] uint8.

    Raises:
        UnreadableImage: as in `check_header`, or a pixel that is not opaque.
        Exception: whatever Pillow raises on a damaged picture.
    """
    with _check(io.BytesIO(data), size) as image:
        if "A" in image.mode or "transparency" in image.info:
            image = image.convert("RGBA")
            alpha = np.asarray(image.getchannel("A"))
            if alpha.min() < 255:
                raise UnreadableImage("transparent pixels: what lies behind them is not known")
        return np.array(image.convert("RGB"))


def _check(file: IO[bytes], size: int) -> Image.Image:
    start = file.read(_PNG_DEPTH + 1)
    file.seek(0)
    if not start:
        raise UnreadableImage("an empty file")
    image = Image.open(file, formats=FORMATS)
    # Pillow reads 16-bit colour as 8-bit colour without a word, so the file itself is asked.
    if start.startswith(_PNG) and start[_PNG_DEPTH:] == b"\x10":
        raise UnreadableImage("16 bits per channel; save it with 8")
    if image.mode not in MODES:
        raise UnreadableImage(f"{image.mode} pixels have no faithful RGB bytes; save it as 8-bit RGB")
    if image.size != (size, size):
        raise UnreadableImage(f"{image.width}×{image.height} where {size}×{size} is scored")
    return image
