"""Random pixels of any size with classes or captions, for checks of the engine; never for a leaderboard."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from alignbench.data.numbered import NumberedImages
from alignbench.randomness import generator
from alignbench.registry.schema import Scalar


class Synthetic(NumberedImages):
    """Images that are a function of (seed, split, number); see `ImageDataset`."""

    def __init__(self, *, split: str, image_size: int, num_classes: int, count: int, seed: int) -> None:
        facts = f"synthetic/{split}/{image_size}/{num_classes}/{count}/{seed}"
        names = [f"class {number}" for number in range(num_classes)]
        super().__init__(np.arange(count) % num_classes, names, hashlib.sha256(facts.encode()).hexdigest())
        self._purpose = f"synthetic/{split}"
        self._shape = (image_size, image_size, 3)
        self._seed = seed

    def load(self, index: int) -> tuple[np.ndarray, int]:
        numbers = generator(self._seed, self._purpose, index)
        return numbers.integers(0, 256, self._shape, dtype=np.uint8), int(self.labels[index])


def open_synthetic(
    *, split: str, image_size: int, num_classes: int | None, options: Mapping[str, Scalar], **_: object
) -> Synthetic:
    """Open random images; arguments as in `open_dataset`, options as on the card."""
    return Synthetic(
        split=split,
        image_size=image_size,
        num_classes=int(options["classes"]) if num_classes is None else num_classes,
        count=int(options["count"]),
        seed=int(options["seed"]),
    )


WORDS = ("a", "red", "blue", "small", "large", "photo", "of", "two", "cube", "dog", "beside", "under", "tree")
CAPTION_WORDS = (3, 24)
"""Fewest and most words of a caption."""


class SyntheticText(Synthetic):
    """The same with captions of random words; see `Captioned`."""

    def __init__(self, *, split: str, image_size: int, count: int, seed: int) -> None:
        super().__init__(split=split, image_size=image_size, num_classes=1, count=count, seed=seed)
        self.captions = tuple(self._caption(number) for number in range(count))
        self.digest = f"sha256:{hashlib.sha256(f'{self.digest}/captions'.encode()).hexdigest()}"

    def _caption(self, number: int) -> str:
        numbers = generator(self._seed, f"{self._purpose}/caption", number)
        fewest, most = CAPTION_WORDS
        return " ".join(numbers.choice(WORDS, numbers.integers(fewest, most + 1)))


def open_synthetic_text(
    *, split: str, image_size: int, options: Mapping[str, Scalar], **_: object
) -> SyntheticText:
    """Open random images with captions; arguments as in `open_dataset`, options as on the card."""
    return SyntheticText(
        split=split, image_size=image_size, count=int(options["count"]), seed=int(options["seed"])
    )
