"""Finding the shapes of procedural scenes again: exact on the scenes themselves, tolerant of blur.

A pixel belongs to the colour it lies nearest to, black being the background. The foreground around every
possible position is compared with every shape, and of all overlapping answers the best one stands. No
network, no randomness: the same image has the same answer anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from alignbench.data.shapes_scenes import COLOURS, SHAPES, SIDE, mask

VERSION = 1
"""Changes whenever an image may get another answer."""
SMALLEST_MATCH = 0.8
"""Agreement below which foreground is taken for no shape; two different shapes agree by 0.76 at most."""
CLEAR_COLOUR = 2 / 3
"""Share of a thing's pixels that must agree on its colour."""
NO_COLOUR = "mixed"
"""Colour of a thing whose pixels do not agree."""
MARGIN = 1
"""Pixels around a shape that must be background; things of a scene keep that distance."""


@dataclass(frozen=True, eq=False)
class Match:
    """One thing in an image."""

    shape: int
    """Number of it in SHAPES."""
    match: float
    """Intersection over union of the shape and the foreground there with the margin, 0 to 1."""
    box: tuple[int, int, int, int]
    """Left, top, right, bottom in pixels; right and bottom are one past the last pixel."""
    mask: np.ndarray
    """[H, W] bool, its foreground pixels."""


def find(images: np.ndarray) -> list[list[Match]]:
    """Return the things of each image, [N, H, W, 3] uint8 RGB with sides of at least 7, best match first."""
    foreground = nearest_colour(images) > 0
    matches = match_maps(foreground)
    things: list[list[Match]] = [[] for _ in images]
    rows = np.arange(len(images))
    while len(rows):
        best = matches[rows].reshape(len(rows), -1).argmax(axis=1)
        shape, top, left = np.unravel_index(best, matches.shape[1:])
        value = matches[rows, shape, top, left]
        kept = np.flatnonzero(value >= SMALLEST_MATCH)
        for k in kept:
            row, y, x = rows[k], int(top[k]), int(left[k])
            own = np.zeros_like(foreground[row])
            own[y : y + SIDE, x : x + SIDE] = foreground[row, y : y + SIDE, x : x + SIDE]
            things[row].append(Match(int(shape[k]), float(value[k]), (x, y, x + SIDE, y + SIDE), own))
            matches[row, :, max(y - SIDE + 1, 0) : y + SIDE, max(x - SIDE + 1, 0) : x + SIDE] = 0
        rows = rows[kept]
    return things


def nearest_colour(images: np.ndarray) -> np.ndarray:
    """Return the nearest colour of each pixel, [..., 3] uint8 RGB; of equally near ones the first.

    [...] int64: 0 is the background, otherwise 1 + the number of the colour in COLOURS.
    """
    palette = np.array([(0, 0, 0), *COLOURS.values()], dtype=np.int64)
    # ‖p − c‖² without its ‖p‖², which is the same for every colour; whole numbers, so ties are ties.
    distance = (palette**2).sum(axis=1) - 2 * images.astype(np.int64) @ palette.T
    result: np.ndarray = distance.argmin(axis=-1)
    return result


def match_maps(foreground: np.ndarray) -> np.ndarray:
    """Compare every shape with every position in the foreground, [N, H, W] bool; around it is background.

    [N, shapes, H − 6, W − 6] float64, intersection over union by upper left corner.
    """
    side = SIDE + 2 * MARGIN
    padded = np.pad(foreground, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
    flat = windows.reshape(*windows.shape[:3], side * side).astype(np.float32)  # small whole numbers: exact
    both = flat @ _templates().T
    either = flat.sum(axis=-1, keepdims=True) + _templates().sum(axis=1) - both
    return np.moveaxis(both.astype(np.float64) / either, -1, 1)


def colour_of(image: np.ndarray, thing: np.ndarray) -> str:
    """Return the colour nearest to most pixels of a thing, [H, W] bool, in an image, [H, W, 3] uint8.

    NO_COLOUR if fewer than two thirds of the pixels agree, or there are none.
    """
    counts = np.bincount(nearest_colour(image[thing]), minlength=1 + len(COLOURS))[1:]
    winner = int(counts.argmax())
    clear = counts[winner] > 0 and counts[winner] >= CLEAR_COLOUR * thing.sum()
    return list(COLOURS)[winner] if clear else NO_COLOUR


@cache
def _templates() -> np.ndarray:
    """[shapes, 81] float32: each shape with its margin."""
    return np.stack([np.pad(mask(name), MARGIN).ravel() for name in SHAPES]).astype(np.float32)
