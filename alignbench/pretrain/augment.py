"""Small random changes of training images, so that about a thousand digits are not learnt by heart.

Without them the policy's cross-entropy on training images is half of that on validation images, and
post-training on the same images has nothing left to explore. LlamaGen's recipe varies images too, by
crops.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

ROTATION = math.radians(6)
SCALE = 0.05
SHIFT = 0.25
"""Pixels."""
GREY_STEP = 2 / 16
"""Distance of two grey levels of the digits in [-1, 1]."""


def augment(images: Tensor) -> Tensor:
    """Rotate, scale and shift each image a little and spread its grey levels.

    Draws from torch's global generator.

    Args:
        images: [N, 3, S, S] float in [-1, 1], three equal channels, black (-1) beyond the border.

    Returns:
        The same shape; up to half a grey level outside [-1, 1].
    """
    count, _, _, side = images.shape
    angle, size, right, down = (torch.rand(4, count) * 2 - 1).unbind()
    cos, sin = torch.cos(ROTATION * angle), torch.sin(ROTATION * angle)
    zoom = 1 + SCALE * size
    step = SHIFT * 2 / side  # the grid's coordinates span [-1, 1]
    rows = [cos / zoom, -sin / zoom, step * right, sin / zoom, cos / zoom, step * down]
    matrices = torch.stack(rows, dim=1).unflatten(1, (2, 3))  # [N, 2, 3]
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    # Shifted by 1 so that the zeros beyond the border are black.
    moved = F.grid_sample(images + 1, grid, mode="bicubic", padding_mode="zeros", align_corners=False) - 1
    noise = (torch.rand(count, 1, side, side) - 0.5) * GREY_STEP
    return moved.clamp(-1, 1) + noise
