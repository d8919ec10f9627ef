"""Bring an image to the model's resolution the way ADM (arXiv:2105.05233) and LlamaGen do.

Both crops first halve the image with a box filter while it is at least twice as large as wanted, then
resize with a bicubic filter so that the shorter side fits. Small images are enlarged.
"""

from __future__ import annotations

import math
from typing import Protocol

from PIL import Image

MIN_CROP_FRACTION = 0.8
MAX_CROP_FRACTION = 1.0


class RandomIntegers(Protocol):
    """What `random_crop_adm` needs of `random.Random`."""

    def randrange(self, start: int, stop: int, /) -> int: ...


def center_crop_adm(image: Image.Image, size: int) -> Image.Image:
    """Crop the centre square.

    Args:
        image: any size and mode; convert it to RGB first to average colours rather than palette entries.
        size: side of the result in pixels, at least 1.

    Returns:
        [size, size] image of the same mode. An odd margin leaves the extra row or column at the end.
    """
    image = _resize_shorter_side(image, size)
    return _crop(image, left=(image.width - size) // 2, top=(image.height - size) // 2, size=size)


def random_crop_adm(image: Image.Image, size: int, rng: RandomIntegers) -> Image.Image:
    """Crop a random square that spans 0.8 to 1.0 of the shorter side.

    Three numbers are drawn: the resized shorter side, then the top and the left edge.

    Args:
        image: any size and mode, as in `center_crop_adm`.
        size: side of the result in pixels, at least 1.
        rng: source of the three numbers.

    Returns:
        [size, size] image of the same mode.
    """
    smallest = math.ceil(size / MAX_CROP_FRACTION)
    largest = math.ceil(size / MIN_CROP_FRACTION)
    image = _resize_shorter_side(image, rng.randrange(smallest, largest + 1))
    top = rng.randrange(0, image.height - size + 1)
    left = rng.randrange(0, image.width - size + 1)
    return _crop(image, left=left, top=top, size=size)


def _resize_shorter_side(image: Image.Image, target: int) -> Image.Image:
    while min(image.size) >= 2 * target:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = target / min(image.size)
    resized = (round(image.width * scale), round(image.height * scale))
    return image.resize(resized, resample=Image.Resampling.BICUBIC)


def _crop(image: Image.Image, *, left: int, top: int, size: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))
