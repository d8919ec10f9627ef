"""scikit-learn's handwritten digits: 1797 real grey 8×8 images of ten classes, nothing to download.

The split is our own and fixed for ever: 40 test and 30 validation images of each digit, the rest is
for training.
"""

from __future__ import annotations

import functools

import numpy as np

from alignbench.data.numbered import ImagesInMemory
from alignbench.errors import UserError
from alignbench.randomness import permutation

SIZE = 8
CLASSES = 10
SPLIT_SEED = 0
TEST_PER_CLASS = 40
VALIDATION_PER_CLASS = 30


class Digits(ImagesInMemory):
    """One split; see `ImageDataset`."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        super().__init__(pixels, labels, tuple(map(str, range(CLASSES))), labels.astype("<i8").tobytes())


def open_digits(*, split: str, image_size: int, num_classes: int | None, **_: object) -> Digits:
    """Open `train` (1097 images), `validation` (300) or `test` (400); arguments as in `open_dataset`.

    Grey levels 0 … 16 become round(level·255/16), repeated to three channels.

    Raises:
        UserError: the model does not work on 8×8 images of ten classes.
    """
    if image_size != SIZE:
        raise UserError(
            f"the digits are {SIZE}×{SIZE} images, the model works at {image_size}×{image_size}",
            fix="--model llamagen-tiny, or other images: --data folder --set data.root=PATH",
        )
    if num_classes not in (None, CLASSES):
        raise UserError(f"the digits have {CLASSES} classes, the model has {num_classes}")
    levels, labels = _read()
    rows = split_rows(labels)[split]
    grey = np.rint(levels[rows] * 255 / 16).astype(np.uint8)
    return Digits(np.repeat(grey[..., None], 3, axis=-1), labels[rows])


@functools.cache
def _read() -> tuple[np.ndarray, np.ndarray]:
    """Grey levels, [1797, 8, 8] 0 … 16, and labels, [1797] int64; a job opens several splits."""
    from sklearn.datasets import load_digits  # heavy: about half a second

    bunch = load_digits()
    return np.asarray(bunch.images), np.asarray(bunch.target, dtype=np.int64)


def split_rows(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return {split: ascending row numbers} of the fixed stratified split of labels, [1797] int64."""
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for digit in range(CLASSES):
        rows = np.flatnonzero(labels == digit)
        rows = rows[permutation(SPLIT_SEED, "digits-split", digit, len(rows))]
        held_out = TEST_PER_CLASS + VALIDATION_PER_CLASS
        parts["test"].append(rows[:TEST_PER_CLASS])
        parts["validation"].append(rows[TEST_PER_CLASS:held_out])
        parts["train"].append(rows[held_out:])
    return {split: np.sort(np.concatenate(rows)) for split, rows in parts.items()}
