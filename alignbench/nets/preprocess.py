"""From pictures in [0, 1] to what CLIP-like networks take. Differentiable, on the device, without PIL.

Deviation: official scorers go through 8-bit PIL images. Here pixels are not rounded, and resizing is torch's
antialiased bicubic; on pictures that are 8-bit already the two differ by less than one grey level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """How a network wants its pictures."""

    side: int
    mean: Sequence[float] = OPENAI_MEAN
    std: Sequence[float] = OPENAI_STD
    fit: Literal["crop", "pad"] = "crop"
    """`crop`: the shortest side becomes `side`, then the centre is cut out, as CLIP does. `pad`: the longest
    side becomes `side`, then black is added around, as HPSv2 does."""

    def __call__(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] float32, about [0, 1] → [N, 3, side, side], normalised."""
        images = images.clamp(0, 1)
        height, width = images.shape[-2:]
        if self.fit == "crop":
            short = min(height, width)
            size = (int(self.side * height / short), int(self.side * width / short))
            images = centre_crop(resize(images, size).clamp(0, 1), self.side)
        else:  # Not clamped again: the official program resizes a float tensor and leaves the overshoot.
            ratio = self.side / max(height, width)
            images = pad_to_square(resize(images, (round(height * ratio), round(width * ratio))), self.side)
        mean, std = images.new_tensor(self.mean), images.new_tensor(self.std)
        return (images - mean[:, None, None]) / std[:, None, None]


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bicubic to (height, width)."""
    if size == tuple(images.shape[-2:]):
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)


def centre_crop(images: Tensor, side: int) -> Tensor:
    """Cut [..., side, side] out of the middle."""
    top, left = ((length - side) // 2 for length in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


def pad_to_square(images: Tensor, side: int) -> Tensor:
    """Add zeros on both sides until the picture is [..., side, side]."""
    down, right = (side - length for length in images.shape[-2:])
    return F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))
