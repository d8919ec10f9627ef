"""A contact sheet: the same image numbers from several models, one under the other."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignbench.figures.picture import Picture, Value, grid
from alignbench.figures.source import at_most
from alignbench.leaderboard.cells import MOST

SMALL = 32
"""Images up to this side are shown as their pixels, in smaller tiles."""
LINES = 6
"""Of a column's title; the whole text is among the numbers."""


@dataclass(frozen=True)
class Sheet:
    """Images side by side."""

    columns: Sequence[str]
    """Names of classes, or prompts."""
    rows: Mapping[str, np.ndarray]
    """{label: uint8 [columns, H, W, 3]}."""
    numbers: Mapping[str, Sequence[int]]
    """{label: number of each image in the set it is of}."""
    caption: str


def samples(sheet: Sheet, name: str = "samples") -> Picture:
    """Draw images with the name of their class, or their prompt, above each column.

    Raises:
        NotDrawnError: more columns or rows than a page shows.
    """
    at_most(MOST, len(sheet.columns), "columns of images")
    at_most(MOST, len(sheet.rows), "rows of images")
    small = next(iter(sheet.rows.values())).shape[1] <= SMALL
    tile, letters = (0.9, 11) if small else (1.6, 22)
    figure, axes = grid(
        len(sheet.columns) * len(sheet.rows), columns=len(sheet.columns), size=(tile, tile), frame=False
    )
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + 1.7, height)  # for the labels of the rows
    rows: list[tuple[Value, ...]] = []
    places = iter(axes)
    for label, images in sheet.rows.items():
        for column, number, image in zip(sheet.columns, sheet.numbers[label], images, strict=True):
            axis = next(places)
            axis.imshow(image, interpolation="nearest" if small else "antialiased")
            if len(rows) < len(sheet.columns):
                axis.set_title(_wrapped(column, letters), fontsize=7)
            if column == sheet.columns[0]:
                axis.set_ylabel(_wrapped(label, 24), fontsize=8, rotation=0, ha="right", va="center")
            rows.append((label, column, number, hashlib.sha256(image.tobytes()).hexdigest()))
    return Picture(name, sheet.caption, figure, ("row", "column", "image", "sha256"), rows)


def _wrapped(text: str, width: int) -> str:
    lines = textwrap.wrap(text, width)
    return "\n".join([*lines[: LINES - 1], f"{lines[LINES - 1]} …"] if len(lines) > LINES else lines)
