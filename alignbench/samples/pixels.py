"""Between 8-bit pixels and the floats of a tokenizer, as released programs prepare samples for evaluation."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alignbench.errors import RunFailed


def channels_first(pixels: np.ndarray) -> Tensor:
    """[n, H, W, 3] array → contiguous [n, 3, H, W] tensor."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def channels_last(images: Tensor) -> np.ndarray:
    """[n, 3, H, W] tensor → contiguous [n, H, W, 3] array."""
    pixels: np.ndarray = images.permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


def resize_bicubic(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resize [N, C, H, W] floats to a square or to (height, width), without antialiasing, corners not
    aligned; do it before clamping."""
    return F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=False)


Rounding = Literal["truncate-128", "truncate-255"]
"""Rules from floats in [-1, 1] to bytes; see `to_uint8`."""


def to_uint8(images: Tensor, rounding: Rounding = "truncate-128") -> Tensor:
    """Map [-1, 1] floats of any shape to uint8: scaled, clamped, fraction cut.

    Args:
        images: values outside [-1, 1] become black or white.
        rounding: `truncate-128`, LlamaGen's and ADM's 127.5·x + 128, which sends 0 to 128 and gives back
            every byte that `from_uint8` made a float of; `truncate-255`, AR-GRPO's and Janus' 255·(x + 1)/2,
            which is darker by half a level on average and white only from x = 1 on.

    Raises:
        RunFailed: values that are not finite.
    """
    if not images.isfinite().all():  # they would become black or white like any others
        raise RunFailed(
            "the decoded images hold values that are not numbers",
            fix="the weights are broken or overflow: train again with a lower train.lr, or check the files",
        )
    scaled = 127.5 * images + 128.0 if rounding == "truncate-128" else (images + 1) / 2 * 255
    return scaled.clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Map bytes of any shape to float32 in [-1, 1], as the training stream does."""
    return images.to(torch.float32) / 127.5 - 1
