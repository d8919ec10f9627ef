"""A data set as an image set: what samples are scored against. Also how any image set is cut into shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignbench.api import ImageBatch
from alignbench.data.dataset import ImageDataset
from alignbench.data.decode import ordered_map
from alignbench.samples.pixels import channels_first

SHARD = 256
"""Images per shard, or somewhat more where a shard is a whole number of batches."""


def shards(count: int, size: int) -> list[range]:
    """Return the image ids of every shard; the last one may be smaller."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def whole_batches(batch: int) -> int:
    """Return the smallest multiple of a batch that has at least SHARD images."""
    return -(-SHARD // batch) * batch


@dataclass(eq=False)
class DatasetImages:
    """All images of a data set in order of their number; an `api.ImageSet`."""

    dataset: ImageDataset
    batch: int = SHARD
    """Images per shard; the last one may be smaller."""
    workers: int = 0
    """Threads that decode; 0 decodes in the calling thread."""

    def __post_init__(self) -> None:
        self.identity = self.dataset.digest

    def __len__(self) -> int:
        return len(self.dataset)

    def shards(self) -> list[range]:
        return shards(len(self), self.batch)

    def load(self, number: int) -> ImageBatch:
        """Return one shard with class ids."""
        ids = self.shards()[number]
        rows = [pixels for pixels, _ in ordered_map(self.dataset.load, ids, workers=self.workers)]
        return ImageBatch(
            ids=ids, images=channels_first(np.stack(rows)), labels=self.labels()[ids.start : ids.stop]
        )

    def images(self) -> Iterator[Tensor]:
        """Yield uint8 batches [b, 3, H, W]."""
        for number in range(len(self.shards())):
            yield self.load(number).images

    def labels(self) -> Tensor:
        """Return the class ids, [N] int64."""
        return torch.tensor(self.dataset.labels, dtype=torch.int64)
