"""Write scored images for other programs: ADM sample files, PNG files, GenEval's folder layout."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from alignbench.api import ImageBatch, ImageSet
from alignbench.data.decode import ordered_map
from alignbench.evaluation.evaluate import Evaluation
from alignbench.progress import Progress, Stage
from alignbench.run_folder import row_files
from alignbench.samples import geneval_layout
from alignbench.samples.npz import NpzColumn, write_archive
from alignbench.samples.pixels import channels_last


def export_images(evaluation: Evaluation, forms: Sequence[str], progress: Progress) -> None:
    """Write every scored image set of a subject under `images/` in its folder; what is there already stays.

    Args:
        forms: `npz` for `<setting>-seed-<seed>.npz`; `png` for a folder of the same name, which has GenEval's
            layout where images have prompts.
    """
    for form in forms:
        for setting in evaluation.protocol.settings:
            for seed in evaluation.protocol.seeds:
                images = evaluation.sets(setting, seed)
                name = f"{setting}-seed-{seed}{'.npz' if form == 'npz' else ''}"
                path = evaluation.folder / "images" / evaluation.subject / name
                if path.exists():
                    continue
                with progress.stage(f"write {path.name}", len(images.shards())) as stage:
                    if form == "npz":
                        write_npz(path, images, stage)
                    elif evaluation.protocol.prompts:
                        with whole_folder(path) as unfinished:
                            geneval_layout.write_layout(unfinished, load_all(images, stage))
                        _write_verdicts(path, evaluation, setting, seed)
                    else:
                        write_png(path, images, stage)


def _write_verdicts(path: Path, evaluation: Evaluation, setting: str, seed: int) -> None:
    """Write `results-<evaluator>.jsonl`, in the official form, for evaluators that scored each image."""
    for name in evaluation.evaluators:
        rows = []
        for file in row_files(evaluation.folder, evaluation.subject, setting, seed, name):
            with np.load(file) as columns:
                if {"correct", "reason"} <= set(columns.files):
                    rows.append((columns["correct"], columns["reason"]))
        if rows:
            correct, reasons = (np.concatenate(parts) for parts in zip(*rows, strict=True))
            layout = geneval_layout.read_layout(path)
            target = path / f"results-{name}.jsonl"
            geneval_layout.write_results(target, layout, correct.tolist(), reasons.tolist())


def load_all(images: ImageSet, stage: Stage) -> Iterator[ImageBatch]:
    """Yield every shard, one in memory at a time; the stage advances when the next one is asked for."""
    for number, _ in enumerate(images.shards()):
        yield images.load(number)
        stage.advance()


def write_npz(path: Path, images: ImageSet, stage: Stage) -> None:
    """Write the sample file that ADM's evaluator reads.

    `arr_0` is uint8 [N, H, W, 3]; `arr_1`, int64 [N] class ids, is there if the images carry them. The file
    is whole or absent; raises OSError where it cannot be written.
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
    """Write PNG files named by image id into a new folder, whole or absent; raises OSError if that fails."""

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
