"""What a data set is and how a card becomes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from alignbench.data.decode import ProgressCallback, Skipped
from alignbench.data.encoded import Source, open_encoded
from alignbench.errors import UserError, suggest
from alignbench.registry.interfaces import OBJECT_MEMBERS, require
from alignbench.registry.lookup import import_target
from alignbench.registry.schema import DatasetCard, Scalar


class ImageDataset(Protocol):
    """A numbered list of images with class ids; it does not change once it is open.

    Data sets of captioned images are `Captioned` as well; they have no classes, and their class ids are 0.
    """

    num_classes: int
    class_names: tuple[str, ...]
    """One per class id, [num_classes]."""
    labels: np.ndarray
    """[N] int64 class ids, known without decoding anything."""
    digest: str
    """`sha256:…` of the content, the same on any machine and at any path."""
    skipped: tuple[Skipped, ...]
    """Unreadable images, in order; they have no number here and nothing stands in for them."""

    def __len__(self) -> int:
        """Return the number of images, N."""
        ...

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Return one image as [H, W, 3] uint8 at the size the data set was opened with, and its class id.

        Safe to call from many threads; the array may be read-only.
        """
        ...


@runtime_checkable
class Captioned(ImageDataset, Protocol):
    """A data set with condition `text`: images with captions."""

    captions: Sequence[str]
    """[N] one caption an image, not empty."""


def captions_of(dataset: ImageDataset) -> Sequence[str]:
    """Return the captions of a data set; raises UserError if it has none."""
    if not isinstance(dataset, Captioned):
        raise UserError(
            "this data set has no captions",
            fix="choose one with condition text: alignbench list datasets",
        )
    return dataset.captions


def open_dataset(
    card: DatasetCard,
    *,
    split: str,
    image_size: int,
    num_classes: int | None,
    options: Mapping[str, Scalar],
    workers: int,
    cache_dir: Path,
    progress: ProgressCallback | None = None,
) -> ImageDataset:
    """Open the data set of a card.

    The card's target is a function that is called with these keyword arguments (all but the card), so a
    data set of another package plugs in with one function and one card. It returns an `ImageDataset`, or a
    `Source` of encoded images: these are checked, hashed, decoded and cropped here.

    Args:
        image_size: side of the loaded images.
        num_classes: classes of the model that will see them; None where any number will do.
        options: values for the card's options; missing ones take their defaults.
        workers: threads that decode; 0 decodes in the calling thread.
        cache_dir: where the result of checking the images may be kept.

    Raises:
        UserError: an unknown split or option, or whatever the data set finds wrong.
    """
    if split not in card.splits:
        raise UserError(
            f"{card.title} has no split {split!r}.{suggest(split, card.splits)}",
            fix=f"choose one of: {', '.join(card.splits)}",
        )
    how: dict[str, Any] = {
        "image_size": image_size, "workers": workers, "cache_dir": cache_dir, "progress": progress,
    }  # fmt: skip
    values: dict[str, Any] = {key: option.default for key, option in card.options.items()}
    for key, value in options.items():
        if key not in card.options:
            raise UserError(f"{card.title} has no option {key!r}.{suggest(key, card.options)}")
        try:
            values[key] = card.options[key].check(value)
        except ValueError as error:
            raise UserError(f"data.{key}: {error}") from error
    opened = import_target(card.target)(split=split, num_classes=num_classes, options=values, **how)
    if isinstance(opened, Source):
        return open_encoded(opened, **how)
    require(f"dataset {card.title!r} ({card.target})", opened, OBJECT_MEMBERS["datasets"])
    return cast(ImageDataset, opened)
