"""Sample grids: the same image ids from several models, one under the other."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from alignbench.files import write_atomic
from alignbench.samples.pixels import channels_last

TILE = 40
"""Smallest side of a tile in pixels; small images are enlarged by whole factors."""
MARGIN, CAPTION = 2, 14
COLUMNS, ROWS = 10, 3
MOST = COLUMNS * ROWS
"""Images of one block."""


def choose(labels: Sequence[int]) -> list[int]:
    """Choose image ids for a grid: a few of each class in a column, for the first classes in order."""
    by_class: dict[int, list[int]] = {}
    for image_id, label in enumerate(labels):
        by_class.setdefault(label, []).append(image_id)
    classes = sorted(by_class)[:COLUMNS]
    return [by_class[label][row] for row in range(ROWS) for label in classes if row < len(by_class[label])]


def write_grid(path: Path, blocks: Sequence[tuple[str, Tensor]]) -> None:
    """Write blocks of images below each other as PNG: (caption, uint8 [n, 3, H, W]), all of one size."""
    side = blocks[0][1].shape[-1]
    factor = max(1, -(-TILE // side))
    step = side * factor + MARGIN
    heights = [CAPTION + -(-len(images) // COLUMNS) * step for _, images in blocks]
    sheet = Image.new("RGB", (COLUMNS * step + MARGIN, sum(heights) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for (caption, images), height in zip(blocks, heights, strict=True):
        draw.text((MARGIN, top), caption, fill="black")
        for number, pixels in enumerate(channels_last(images)):
            tile = Image.fromarray(pixels).resize((side * factor, side * factor), Image.Resampling.NEAREST)
            row, column = divmod(number, COLUMNS)
            sheet.paste(tile, (MARGIN + column * step, top + CAPTION + row * step))
        top += height
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())
