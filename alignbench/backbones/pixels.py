"""From decoded floats to 8-bit pixels, as LlamaGen prepares samples for evaluation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_bicubic(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resize [N, C, H, W] floats without antialiasing, corners not aligned; do it before clamping.

    Args:
        images: decoded images.
        size: side of the square result, or (height, width).
    """
    target = (size, size) if isinstance(size, int) else size
    return F.interpolate(images, size=target, mode="bicubic", align_corners=False, antialias=False)


def to_uint8(images: Tensor) -> Tensor:
    """Map [-1, 1] floats of any shape to uint8: 127.5·x + 128, clamped, fraction cut (0 gives 128)."""
    return (127.5 * images + 128.0).clamp(0, 255).to(torch.uint8)
