"""How sharp images are: the power of their detail by spatial frequency, and the energy of their Laplacian."""

from __future__ import annotations

import numpy as np

LUMA = (0.299, 0.587, 0.114)
"""Of R, G, B (ITU-R BT.601)."""


def luminance(images: np.ndarray) -> np.ndarray:
    """uint8 RGB [n, 3, H, W] → float64 [n, H, W] in [0, 1]."""
    return np.tensordot(images.astype(np.float64) / 255, np.array(LUMA), axes=(1, 0))


def power_spectrum(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average the periodogram of each image over the directions of a frequency.

    The mean is taken off, a periodic Hann window put on in both directions, and |FFT|² divided by the sum of
    the squared window, so that white noise of variance s² has power s² at every frequency; at the lowest the
    mean takes 5/72 of it along.

    Args:
        grey: float64 [n, H, W].

    Returns:
        frequencies [b] in cycles a pixel, 1/side to 1/2 for the shorter side; power [n, b], of all points of
        the transform that are nearest to the frequency.
    """
    height, width = grey.shape[1:]
    window = np.outer(_hann(height), _hann(width))
    centred = (grey - grey.mean(axis=(1, 2), keepdims=True)) * window
    power = np.abs(np.fft.fft2(centred)) ** 2 / (window**2).sum()
    side = min(height, width)
    distance = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
    ring = np.rint(distance * side).astype(int)
    bins = range(1, side // 2 + 1)
    return np.array(bins) / side, np.stack([power[:, ring == b].mean(axis=1) for b in bins], axis=1)


def laplacian_energy(grey: np.ndarray) -> np.ndarray:
    """Return the mean square of 4·centre - its four neighbours, over the inner pixels; [n, H, W] → [n].

    White noise of variance s² has 20 s². A blurred image has less, a noisy one more: it is no quality.
    """
    centre = grey[:, 1:-1, 1:-1]
    neighbours = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return np.asarray(((4 * centre - neighbours) ** 2).mean(axis=(1, 2)))


def _hann(length: int) -> np.ndarray:
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length))
