"""Training batches in an order that is arithmetic on (seed, step): there is no iterator to save.

The stream is the endless row of epochs, each a permutation of the data set. Sample number p of a run
is the image at position p of the stream; step s holds the positions s·B … (s+1)·B − 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial

import numpy as np
import torch

from alignbench.api import Batch, ClassLabels, Condition, Prompt
from alignbench.data.dataset import ImageDataset, captions_of
from alignbench.randomness import permutation

STEPS_AHEAD = 2
"""Steps whose images are decoded in advance; bounds the memory."""

Loaded = tuple[np.ndarray, int]


class Stream:
    """Deals a data set out to steps and ranks, decoding in background threads.

    What `batch` returns depends on nothing but the constructor's data set, seed and images per step,
    and on its own arguments: not on `workers`, and not on what was asked before.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        *,
        seed: int,
        images_per_step: int,
        workers: int,
        text_condition: Callable[[Sequence[str]], Condition] | None = None,
        images: bool = True,
        mismatched: bool = False,
    ) -> None:
        """Prepare the stream; nothing is read yet.

        Args:
            dataset: any size from 1 on; it repeats with a new order every epoch.
            images_per_step: over all ranks, B.
            workers: threads that decode; 0 decodes in the calling thread.
            text_condition: turns captions into the batch's condition, in the thread that asks for the batch;
                None: the condition is the class.
            images: False: none is loaded, and those of a batch are [B, 3, 0, 0].
            mismatched: True: a batch also has each next image's condition, the step's first for its last.

        Raises:
            UserError: captions are wanted of a data set without any.
        """
        assert len(dataset) > 0 and images_per_step > 0 and workers >= 0
        self.dataset = dataset
        self.seed = seed
        self.images_per_step = images_per_step
        self._text_condition, self._images, self._mismatched = text_condition, images, mismatched
        self._prompts: Sequence[Prompt] = getattr(dataset, "prompts", ())
        self._captions = captions_of(dataset) if text_condition else ()
        self._epoch_order = lru_cache(maxsize=2)(partial(permutation, seed, "data"))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode") if workers else None
        self._ahead: dict[int, Future[Loaded]] = {}

    def indices(self, step: int) -> np.ndarray:
        """Return the data set's image numbers of one step, [B] int64; a step may span epochs."""
        return self._lookup(np.arange(step * self.images_per_step, (step + 1) * self.images_per_step))

    def batch(self, step: int, rank: int, world_size: int) -> Batch:
        """Return one rank's share of a step: the rank-th of `world_size` equal, contiguous blocks.

        Returns:
            Batch of B / world_size images on the CPU; `index` holds the sample numbers. A condition made of
            captions is where `text_condition` puts it.
        """
        numbers = self._numbers(step, rank, world_size)
        indices = self._lookup(numbers)
        if not self._images:
            pixels = torch.empty(len(numbers), 0, 0, 3, dtype=torch.uint8)
        elif self._pool is None:
            pixels = _stacked([self.dataset.load(int(index)) for index in indices])
        else:
            pixels = _stacked(self._decoded(step, rank, world_size))
        images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        condition, mismatched = self._conditions(numbers, indices)
        return Batch(
            index=torch.from_numpy(numbers),
            condition=condition,
            images=images.div_(127.5).sub_(1.0),
            prompts=tuple(self._prompts[index] for index in indices) if self._prompts else (),
            mismatched=mismatched,
        )

    def _conditions(self, numbers: np.ndarray, indices: np.ndarray) -> tuple[Condition, Condition | None]:
        """Of these images and, if wanted, of the next ones; made together, so that they are padded alike."""
        if not self._mismatched:
            return self._condition(indices), None
        first = numbers // self.images_per_step * self.images_per_step
        following = self._lookup(first + (numbers - first + 1) % self.images_per_step)
        both = self._condition(np.concatenate([indices, following]))
        return both.select(slice(len(indices))), both.select(slice(len(indices), None))

    def _condition(self, indices: np.ndarray) -> Condition:
        if self._text_condition is None:
            return ClassLabels(torch.from_numpy(np.asarray(self.dataset.labels, np.int64)[indices]))
        return self._text_condition([self._captions[index] for index in indices])

    def close(self) -> None:
        """Stop the background threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decoded(self, step: int, rank: int, world_size: int) -> list[Loaded]:
        """Collect a share from the threads and set them to the shares of the next steps."""
        assert self._pool is not None
        wanted: list[int] = []
        for later in range(step, step + 1 + STEPS_AHEAD):
            wanted += self._numbers(later, rank, world_size).tolist()
        for number in self._ahead.keys() - set(wanted):  # left over when the caller jumps
            self._ahead.pop(number).cancel()
        new = [number for number in wanted if number not in self._ahead]
        for number, index in zip(new, self._lookup(np.asarray(new, dtype=np.int64)), strict=True):
            self._ahead[number] = self._pool.submit(self.dataset.load, int(index))
        return [self._ahead.pop(number).result() for number in wanted[: self.images_per_step // world_size]]

    def _numbers(self, step: int, rank: int, world_size: int) -> np.ndarray:
        """Return the sample numbers of one share, [B / world_size] int64."""
        assert self.images_per_step % world_size == 0 and 0 <= rank < world_size
        share = self.images_per_step // world_size
        start = step * self.images_per_step + rank * share
        return np.arange(start, start + share, dtype=np.int64)

    def _lookup(self, numbers: np.ndarray) -> np.ndarray:
        """Return the image numbers of sample numbers, [n] int64."""
        epochs, positions = np.divmod(numbers, len(self.dataset))
        images = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            images[rows] = self._epoch_order(int(epoch), len(self.dataset))[positions[rows]]
        return images


def _stacked(loaded: Sequence[Loaded]) -> torch.Tensor:
    """[B, H, W, 3] uint8."""
    return torch.from_numpy(np.stack([image for image, _ in loaded]))
