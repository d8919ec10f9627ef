"""Write image sets for others: ADM's sample file, and PNG files."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from alignbench.api import ImageBatch, ImageSet
from alignbench.progress import Stage
from alignbench.samples.npz import NpzColumn, write_archive
from alignbench.samples.pixels import channels_last

AHEAD = 64
"""Images that wait for a writing thread, per thread."""


def write_npz(path: Path, images: ImageSet, stage: Stage) -> None:
    """Write the sample file that ADM's evaluator reads, one shard in memory at a time.

    `arr_0` is uint8 [N, H, W, 3]; `arr_1`, int64 [N] class ids, is there if the images carry them. The file
    is whole or absent.

    Args:
        path: `.npz` file to write.
        images: what to write, N ≥ 1, all of one size.
        stage: advanced once a shard.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    first = images.load(0)
    labels: list[np.ndarray] = []

    def pieces() -> Iterator[np.ndarray]:
        for number, _ in enumerate(images.shards()):
            batch = first if number == 0 else images.load(number)
            if batch.labels is not None:
                labels.append(batch.labels.numpy())
            yield channels_last(batch.images)
            stage.advance()

    height, width = first.images.shape[2:]
    pixels = NpzColumn((len(images), height, width, 3), np.dtype(np.uint8), pieces())
    write_archive(path, {"arr_0": pixels}, lambda: {"arr_1": np.concatenate(labels)} if labels else {})


def write_png(folder: Path, images: ImageSet, stage: Stage) -> None:
    """Write `000000.png` and so on into a new folder, which is whole or absent.

    Args:
        folder: must not exist.
        images: what to write.
        stage: advanced once a shard.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    unfinished = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)  # of an earlier attempt
    with PngWriter(unfinished) as writer:
        for number, _ in enumerate(images.shards()):
            writer.write(images.load(number))
            stage.advance()
    unfinished.rename(folder)


class PngWriter:
    """Writes images as `000000.png` and so on in background threads; use it in a `with` block.

    What goes wrong in a thread is raised by the next call, or at the end of the block at the latest.

    Args:
        folder: made if it is not there.
        workers: threads; memory is bounded whatever their speed.
    """

    def __init__(self, folder: Path, *, workers: int = 2) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._limit = AHEAD * workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="png")
        self._pending: deque[Future[None]] = deque()

    def write(self, batch: ImageBatch) -> None:
        """Hand images over; each is named by its id.

        Raises:
            OSError: an earlier image could not be written.
        """
        for image_id, pixels in zip(batch.ids, channels_last(batch.images), strict=True):
            while len(self._pending) >= self._limit:
                self._pending.popleft().result()
            path = self._folder / f"{image_id:06d}.png"
            self._pending.append(self._pool.submit(_save, path, pixels))

    def __enter__(self) -> PngWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._pending and error is None:
                self._pending.popleft().result()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _save(path: Path, pixels: np.ndarray) -> None:
    """Write one file; it is whole or absent."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        Image.fromarray(pixels).save(temporary, format="PNG")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
