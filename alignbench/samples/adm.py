"""The arrays of an ADM sample or reference file: pixels in `arr_0`, perhaps class ids in `arr_1`."""

from __future__ import annotations

import numpy as np

from alignbench.errors import UserError
from alignbench.samples.npz import Archive, NpzArray


def pixels(archive: Archive, *, image_size: int) -> NpzArray:
    """Return a reader of `arr_0`, [N, H, W, 3] uint8.

    Raises:
        UserError: it is missing, not uint8 [N, H, W, 3], empty, or of another size.
    """
    header = archive.headers.get("arr_0")
    if header is None:
        names = ", ".join(archive.headers) or "nothing"
        raise UserError(f"{archive.path}: no images: it has no array arr_0, but {names}")
    if header.dtype != np.uint8 or len(header.shape) != 4 or header.shape[3] != 3:
        raise UserError(
            f"{archive.path}: arr_0 is {header}, not uint8 N×H×W×3",
            fix="save the images as bytes, channels last",
        )
    if header.shape[0] == 0:
        raise UserError(f"{archive.path}: arr_0 holds no images")
    if header.shape[1:3] != (image_size, image_size):
        raise UserError(
            f"{archive.path}: its images are {header.shape[2]}×{header.shape[1]}, "
            f"the protocol scores {image_size}×{image_size}",
            fix="generate at that size; images are never resized here",
        )
    return archive.rows("arr_0")


def class_ids(archive: Archive, count: int) -> np.ndarray | None:
    """Return `arr_1`, [N] int64; None if there is none.

    Raises:
        UserError: it holds something else than a whole number for each image.
    """
    header = archive.headers.get("arr_1")
    if header is None:
        return None
    if header.shape != (count,) or header.dtype.kind not in "iu":
        raise UserError(f"{archive.path}: arr_1 is {header}, not {count} whole class ids")
    return archive.array("arr_1").astype(np.int64)
