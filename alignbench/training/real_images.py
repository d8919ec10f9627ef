"""The training images as rewards of scope `set` compare with them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignbench.data.dataset import ImageDataset
from alignbench.data.decode import ProgressCallback

PIECE = 256
"""Images looked at together."""


@dataclass(frozen=True)
class TrainingImages:
    """All images of a data set, in order; see `rewards.sets.built.RealImages`."""

    dataset: ImageDataset
    workers: int
    """Threads that decode; 0: none."""
    progress: ProgressCallback | None = None

    @property
    def digest(self) -> str:
        return self.dataset.digest

    def __iter__(self) -> Iterator[Tensor]:
        """Yield pieces [n, 3, H, W] float32, 0 black and 1 white."""
        with ThreadPoolExecutor(max(1, self.workers)) as threads:
            for start in range(0, len(self.dataset), PIECE):
                numbers = range(start, min(start + PIECE, len(self.dataset)))
                pixels = np.stack([image for image, _ in threads.map(self.dataset.load, numbers)])
                yield torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
                if self.progress:
                    self.progress(numbers.stop, len(self.dataset))
