"""Open data sets by their cards, and catch what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignbench.data.dataset import open_dataset
from alignbench.data.decode import ProgressCallback
from alignbench.errors import UserError
from alignbench.registry.lookup import Registry


def opened(
    card: str,
    split: str = "train",
    /,
    *,
    image_size: int = 8,
    num_classes: int | None = None,
    workers: int = 0,
    cache: Path = Path("unused"),
    progress: ProgressCallback | None = None,
    **options: Any,
) -> Any:
    """Open a data set of the registry; other keywords are options of its card."""
    return open_dataset(
        Registry.default().dataset(card),
        split=split,
        image_size=image_size,
        num_classes=num_classes,
        options=options,
        workers=workers,
        cache_dir=cache,
        progress=progress,
    )


def refused(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> str:
    """The message of the UserError that a call raises."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **keywords)
    return str(caught.value)


def content(dataset: Any) -> list[tuple[bytes, Any]]:
    """(pixels, caption or class id) of every image."""
    loaded = [dataset.load(index) for index in range(len(dataset))]
    labels = getattr(dataset, "captions", None) or [label for _, label in loaded]
    return [(pixels.tobytes(), label) for (pixels, _), label in zip(loaded, labels, strict=True)]


def reasons(dataset: Any) -> dict[str, str]:
    """{name: why it was left out}."""
    return {skipped.path: skipped.reason for skipped in dataset.skipped}
