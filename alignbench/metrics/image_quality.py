"""Peak signal-to-noise ratio and structural similarity of 8-bit images, one number an image.

The conventions are those of scikit-image's `peak_signal_noise_ratio` and of its `structural_similarity` by
default: 7×7 windows of equal weight wholly inside the image, (n−1) covariances, K1 = 0.01, K2 = 0.03, each
channel by itself, mean over windows and channels (Wang et al. 2004, but for the window).
Window sums of bytes are whole numbers, so that nothing is lost before the last division.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 255.0
"""Data range of bytes."""
WINDOW = 7
K1, K2 = 0.01, 0.03
CHUNK_VALUES = 1 << 23
"""Bytes that `ssim` works on at once: about 1 GB of float64 temporaries."""


def mean_squared_error(images: Tensor, originals: Tensor) -> Tensor:
    """[n, 3, H, W] uint8 images and originals → [n] float64 mean of squared grey levels, in [0, 255²]."""
    _check(images, originals)
    # Differences of bytes fit 16 bits, their squares 32, and their sum over an image 64.
    difference = images.to(torch.int32) - originals.to(torch.int32)
    return difference.square().flatten(start_dim=1).sum(dim=1).double() / images[0].numel()


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, 10·log10(255²/MSE), of [n, 3, H, W] uint8: [n] float64 in decibels, finite.

    Deviation: an image equal to its original has no noise, and scikit-image returns infinity, which would be
    the mean of any set with one such image. Here it counts as if one channel of one pixel were off by one
    level, the best that an image with any difference can reach: 10·log10(255²·3·H·W), 101 dB at 256 px.
    """
    error = mean_squared_error(images, originals).clamp(min=1.0 / images[0].numel())
    return 10 * torch.log10(LEVELS**2 / error)


def ssim(images: Tensor, originals: Tensor, *, data_range: float = LEVELS) -> Tensor:
    """Mean structural similarity of [n, 3, H, W] uint8, H, W ≥ 7: [n] float64 in [-1, 1].

    Args:
        data_range: what the stabilising constants refer to, in grey levels. 510 gives the number of
            LlamaGen's released program, which declares a range of 2 for images in [0, 1] and reads higher.

    Raises:
        ValueError: images of another form, or smaller than the window.
    """
    _check(images, originals)
    if min(images.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW}×{WINDOW} pixels, not {list(images.shape)}")
    size = max(1, CHUNK_VALUES // images[0].numel())
    pairs = zip(images.split(size), originals.split(size), strict=True)
    return torch.cat([_ssim(piece.double(), other.double(), data_range) for piece, other in pairs])


def _ssim(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    count = WINDOW * WINDOW
    sum_x, sum_y = _window_sums(x), _window_sums(y)
    scale = 1.0 / (count * (count - 1))
    variances = (count * _window_sums(x * x + y * y) - sum_x.square() - sum_y.square()) * scale
    covariance = (count * _window_sums(x * y) - sum_x * sum_y) * scale
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    means = sum_x.square() + sum_y.square()
    luminance = (2 * sum_x * sum_y + c1 * count**2) / (means + c1 * count**2)
    structure = (2 * covariance + c2) / (variances + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _window_sums(values: Tensor) -> Tensor:
    """[n, C, H, W] → [n, C, H−6, W−6], the sum over every whole window."""
    rows = F.avg_pool2d(values, (1, WINDOW), stride=1, divisor_override=1)
    return F.avg_pool2d(rows, (WINDOW, 1), stride=1, divisor_override=1)


def _check(images: Tensor, originals: Tensor) -> None:
    if images.dim() != 4 or images.dtype != torch.uint8 or not len(images):
        raise ValueError(f"images must be [n, 3, H, W] uint8, not {list(images.shape)} {images.dtype}")
    if originals.shape != images.shape or originals.dtype != torch.uint8:
        raise ValueError(
            f"originals are {list(originals.shape)} {originals.dtype}, the images {list(images.shape)}"
        )
