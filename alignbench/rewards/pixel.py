"""Distances between pixels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from alignbench.rewards.requests import FromReference

PixelLoss = Literal["mse", "l1"]


def pixel_distance(images: Tensor, reference: Tensor, loss: PixelLoss, *, repeats: int = 1) -> Tensor:
    """Mean over channels and pixels of the squared or absolute difference, in the dtype of the images.

    [B·repeats, C, H, W] float images, image-major and not clamped, and [B, C, H, W] references →
    [B·repeats].
    """
    difference = images.unflatten(0, (-1, repeats)) - reference.unsqueeze(1)
    size = difference.square() if loss == "mse" else difference.abs()
    result: Tensor = size.mean(dim=(2, 3, 4)).flatten()
    return result


class PixelDistance(FromReference):
    """`pixel_distance` as a reward; smaller is better."""

    def __init__(self, loss: PixelLoss) -> None:
        self.loss: PixelLoss = loss

    def prepare(self, reference: Tensor) -> Tensor:
        return reference

    def distance(self, images: Tensor, prepared: Tensor, *, repeats: int) -> Tensor:
        """[B·repeats, 3, H, W] images, image-major, against [B, 3, H, W] references → [B·repeats]."""
        return pixel_distance(images, prepared, self.loss, repeats=repeats)


def build_mse(device: torch.device) -> PixelDistance:
    return PixelDistance("mse")


def build_l1(device: torch.device) -> PixelDistance:
    return PixelDistance("l1")
