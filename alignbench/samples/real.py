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
"""Images per shard of a large set, or somewhat more where a shard is a whole number of batches."""
SHARDS = 512
"""How many a smaller set is cut into, if it has so many batches: shards are what processes share."""


def shards(count: int, batch: int = SHARD) -> list[range]:
    """Cut a set into shards of whole batches; return the image ids of each, the last one's may be fewer.

    Nothing but the set and its protocol's batch decides: results are those of any number of processes.
    """
    batches = min(-(-SHARD // batch), -(-count // batch) // SHARDS)
    size = batch * max(1, batches)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


@dataclass(eq=False)
class DatasetImages:
    """All images of a data set in order of their number; an `api.ImageSet`."""

    dataset: ImageDataset
    batch: int = SHARD
    """Images that are worked on together; shards are whole numbers of it."""
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
