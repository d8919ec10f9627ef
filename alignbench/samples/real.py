"""A data set as the image set that samples are scored against."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from alignbench.api import ImageBatch
from alignbench.data.dataset import ImageDataset, ordered_map


class DatasetImages:
    """All images of a data set in order of their number; an `api.ImageSet`."""

    def __init__(self, dataset: ImageDataset, *, batch: int = 256, workers: int = 0) -> None:
        """Wrap a data set.

        Args:
            dataset: what to show.
            batch: images per shard; the last one may be smaller.
            workers: threads that decode; 0 decodes in the calling thread.
        """
        self.dataset = dataset
        self.identity = dataset.digest
        self.batch = batch
        self.workers = workers

    def __len__(self) -> int:
        return len(self.dataset)

    def shards(self) -> list[range]:
        return [range(start, min(start + self.batch, len(self))) for start in range(0, len(self), self.batch)]

    def load(self, number: int) -> ImageBatch:
        """Return one shard with class ids."""
        ids = self.shards()[number]
        rows = [pixels for pixels, _ in ordered_map(self.dataset.load, ids, workers=self.workers)]
        return ImageBatch(ids=ids, images=_stack(rows), labels=self.labels()[ids.start : ids.stop])

    def images(self) -> Iterator[Tensor]:
        """Yield uint8 batches [b, 3, H, W]."""
        for number in range(len(self.shards())):
            yield self.load(number).images

    def labels(self) -> Tensor:
        """Return the class ids, [N] int64."""
        return torch.tensor(self.dataset.labels, dtype=torch.int64)


def _stack(rows: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()
