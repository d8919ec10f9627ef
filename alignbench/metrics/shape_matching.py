"""Finding the shapes of procedural scenes again: exact on the scenes themselves, tolerant of blur.

A pixel belongs to the colour it lies nearest to, black being the background. The foreground around every possible
place is compared with every shape, and of all overlapping answers the best one stands. No network, no
randomness: the same image has the same answer anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from alignbench.data.shapes_scenes import COLOURS, SHAPES, SIDE, mask

VERSION = 1
"""Changes whenever an image may get another answer."""
SMALLEST_MATCH = 0.7
"""Overlap below which foreground is not taken for a shape: 0.76 is the largest of two different shapes."""
CLEAR_COLOUR = 2 / 3
"""Share of a thing's pixels that must agree on its colour."""
NO_COLOUR = "mixed"
"""Colour of a thing whose pixels do not agree."""
MARGIN = 1
"""Pixels around a shape that must be background; things keep that distance."""


@dataclass(frozen=True, eq=False)
class Found:
    """One thing in an image."""

    shape: int
    """Number of it in SHAPES."""
    match: float
    """Intersection over union of the shape and the foreground in its place with the margin, 0 to 1."""
    top: int
    left: int
    colour: str
    mask: np.ndarray
    """[H, W] bool, its foreground pixels."""


def find(images: np.ndarray) -> list[list[Found]]:
    """Return the things of each image, best match first.

    Args:
        images: [N, H, W, 3] uint8 RGB, sides of at least 7.
    """
    nearest = nearest_colour(images)
    matches = match_maps(nearest > 0)
    found: list[list[Found]] = [[] for _ in images]
    rows = np.arange(len(images))
    while len(rows):
        _, shapes, height, width = matches.shape
        best = matches[rows].reshape(len(rows), -1).argmax(axis=1)
        shape, top, left = np.unravel_index(best, (shapes, height, width))
        value = matches[rows, shape, top, left]
        enough = value >= SMALLEST_MATCH
        for row, *place in zip(
            rows[enough], shape[enough], top[enough], left[enough], value[enough], strict=True
        ):
            found[row].append(_found(nearest[row], *place))
            _, y, x, _ = place
            matches[row, :, max(y - SIDE + 1, 0) : y + SIDE, max(x - SIDE + 1, 0) : x + SIDE] = 0
        rows = rows[enough]
    return found


def nearest_colour(images: np.ndarray) -> np.ndarray:
    """[N, H, W, 3] uint8 → [N, H, W] int: 0 background, otherwise 1 + the number of the colour; ties go to the
    first."""
    palette = np.array([(0, 0, 0), *COLOURS.values()], dtype=np.int32)
    pixels = images.astype(np.int32)
    # ‖p − c‖² without its ‖p‖², which is the same for every colour.
    distance = (palette**2).sum(axis=1) - 2 * pixels @ palette.T
    return np.asarray(distance.argmin(axis=-1))


def match_maps(foreground: np.ndarray) -> np.ndarray:
    """Compare every shape with every place.

    Args:
        foreground: [N, H, W] bool.

    Returns:
        [N, shapes, H − 6, W − 6] float64, intersection over union by upper left corner. Beyond the image is
        background.
    """
    side = SIDE + 2 * MARGIN
    padded = np.pad(foreground, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
    flat = windows.reshape(*windows.shape[:3], side * side).astype(np.float32)  # sums of 0 and 1 are exact
    both = flat @ _templates().T
    either = flat.sum(axis=-1, keepdims=True) + _templates().sum(axis=1) - both
    return np.moveaxis(both.astype(np.float64) / either, -1, 1)


@cache
def _templates() -> np.ndarray:
    """[shapes, 81] float32."""
    masks = [np.pad(mask(name), MARGIN).ravel() for name in SHAPES]
    return np.stack(masks).astype(np.float32)


def _found(nearest: np.ndarray, shape: int, top: int, left: int, match: float) -> Found:
    """Describe one thing of an image whose nearest colours are [H, W]."""
    own = np.zeros(nearest.shape, dtype=bool)
    own[top : top + SIDE, left : left + SIDE] = nearest[top : top + SIDE, left : left + SIDE] > 0
    counts = np.bincount(nearest[own], minlength=1 + len(COLOURS))
    winner = int(counts.argmax())
    clear = counts[winner] >= CLEAR_COLOUR * counts.sum()
    colour = list(COLOURS)[winner - 1] if clear else NO_COLOUR
    return Found(int(shape), float(match), int(top), int(left), colour, own)
