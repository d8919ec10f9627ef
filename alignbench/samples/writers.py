"""Write image sets for others: ADM's sample file, and PNG files."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from alignbench.api import ImageBatch, ImageSet
from alignbench.data.decode import ordered_map
from alignbench.progress import Stage
from alignbench.samples.npz import NpzColumn, write_archive
from alignbench.samples.pixels import channels_last


def load_all(images: ImageSet, stage: Stage) -> Iterator[ImageBatch]:
    """Yield every shard, one in memory at a time; the stage advances when the next one is asked for."""
    for number, _ in enumerate(images.shards()):
        yield images.load(number)
        stage.advance()


def write_npz(path: Path, images: ImageSet, stage: Stage) -> None:
    """Write the sample file that ADM's evaluator reads.

    `arr_0` is uint8 [N, H, W, 3]; `arr_1`, int64 [N] class ids, is there if the images carry them. The file
    is whole or absent.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    batches = load_all(images, stage)
    first = next(batches)
    labels: list[np.ndarray] = []

    def pieces() -> Iterator[np.ndarray]:
        for batch in itertools.chain([first], batches):
            if batch.labels is not None:
                labels.append(batch.labels.numpy())
            yield channels_last(batch.images)

    height, width = first.images.shape[2:]
    pixels = NpzColumn((len(images), height, width, 3), np.dtype(np.uint8), pieces())
    write_archive(path, {"arr_0": pixels}, lambda: {"arr_1": np.concatenate(labels)} if labels else {})


def write_png(folder: Path, images: ImageSet, stage: Stage) -> None:
    """Write `000000.png` and so on, named by image id, into a new folder, which is whole or absent.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """

    def save(picture: tuple[int, np.ndarray]) -> None:
        Image.fromarray(picture[1]).save(unfinished / f"{picture[0]:06d}.png", format="PNG")

    with whole_folder(folder) as unfinished:
        for batch in load_all(images, stage):
            pictures = zip(batch.ids, channels_last(batch.images), strict=True)
            for _ in ordered_map(save, pictures, workers=2):
                pass


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder that gets the wanted name when the block ends well."""
    unfinished = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)  # of an earlier attempt
    unfinished.mkdir(parents=True)
    yield unfinished
    unfinished.rename(folder)
