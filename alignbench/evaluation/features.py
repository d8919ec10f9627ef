"""Measure image sets shard by shard: what an evaluator has to remember of each image, kept on disk.

A shard that is measured is not measured again, whichever process did it and however the run ended. Each file
carries the key of what it was made from, so rows of other images or of another network are never taken for
these.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignbench.api import PROMPT, Evaluator, ImageSet, Prompt, Rows
from alignbench.dealing.pool import Pool, work
from alignbench.errors import RunFailed, failure_of, out_of_memory_as
from alignbench.files import write_atomic
from alignbench.progress import Stage
from alignbench.samples.npz import UNREADABLE

FORM = 2
"""Of the files; counts up when rows of an older alignbench can no longer be read."""
META = "_meta"
"""Array in each file with JSON text: key, seconds."""
PIXELS = "_pixels"
"""Column in each file: SHA-256 of each image's bytes, [n, 32]."""


@dataclass(frozen=True)
class FeatureStore:
    """One evaluator's rows of one image set in a folder."""

    folder: Path
    key: str
    """Identity of images and evaluator; files with another key count as absent."""
    reduced: bool = False
    """Columns that were kept are enough: what `reduce` left of such files counts as there."""

    def path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.npz"

    def has(self, number: int) -> bool:
        """Whether a shard was measured, of these images and by this evaluator."""
        return self._meta(number) is not None

    def write(
        self, number: int, rows: Rows, *, pixels: np.ndarray, load_seconds: float, seconds: float
    ) -> None:
        """Keep the rows of one shard; the file is whole or absent."""
        meta = {"key": self.key, "load_seconds": load_seconds, "seconds": seconds}
        self._save(number, meta, {PIXELS: pixels, **rows})

    def rows(self, shards: int) -> StoredFeatures:
        """Return all rows; raises RunFailed if a shard is missing or damaged."""
        paths = [self.path(number) for number in range(shards)]
        metas = [self._meta(number) for number in range(shards)]
        if None in metas:
            raise _missing(paths[metas.index(None)])
        return StoredFeatures(paths, list(filter(None, metas)))

    def reduce(self, shards: int, columns: Sequence[str]) -> None:
        """Keep a few columns, to be compared image by image later; without any, nothing stays."""
        if not columns:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for number in range(shards):
            with np.load(self.path(number)) as file:
                kept = {name: file[name] for name in (*columns, PROMPT) if name in file.files}
                meta = json.loads(str(file[META]))
            # Another key: what is left is not enough to score again.
            self._save(number, {**meta, "key": self._left_key}, kept)

    def columns(self, number: int) -> dict[str, np.ndarray]:
        """Return what there is of one shard; raises RunFailed if it is missing or damaged."""
        if not self.has(number):
            raise _missing(self.path(number))
        with np.load(self.path(number)) as file:
            return {name: file[name] for name in file.files if name != META}

    @property
    def _left_key(self) -> str:
        return f"reduced from {self.key}"

    def _save(self, number: int, meta: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> None:
        buffer = io.BytesIO()
        content: dict[str, Any] = {META: np.array(json.dumps(meta)), **columns}
        np.savez(buffer, **content)
        write_atomic(self.path(number), buffer.getvalue())

    def _meta(self, number: int) -> dict[str, str] | None:
        """What a whole file says of itself; None if it is absent, damaged or of something else."""
        try:
            with zipfile.ZipFile(self.path(number)) as archive:
                if archive.testzip() is not None:
                    return None
            with np.load(self.path(number)) as file:
                meta: dict[str, str] = json.loads(str(file[META]))
        except UNREADABLE:
            return None
        fitting = {self.key, self._left_key} if self.reduced else {self.key}
        return meta if meta.get("key") in fitting else None


def _missing(path: Path) -> RunFailed:
    return RunFailed(f"{path} is missing or damaged", fix="run the same command again")


class StoredFeatures:
    """The rows of a whole image set, read from their files as they are asked for (an `api.Measured`)."""

    def __init__(self, paths: Sequence[Path], metas: Sequence[Mapping[str, str]]) -> None:
        self._paths = paths
        # Over images, not over shards: the same images have the same digest however they are cut.
        self.digest = f"sha256:{hashlib.sha256(self.column(PIXELS).tobytes()).hexdigest()}"
        self.load_seconds = sum(float(meta["load_seconds"]) for meta in metas)
        self.seconds = sum(float(meta["seconds"]) for meta in metas)
        self._length = len(self.column(PIXELS))

    def __len__(self) -> int:
        return self._length

    def column(self, name: str) -> np.ndarray:
        return np.concatenate(list(self.shards(name)))

    def shards(self, name: str) -> Iterator[np.ndarray]:
        for path in self._paths:
            try:
                with np.load(path) as file:
                    yield file[name]
            except UNREADABLE as error:
                raise RunFailed(
                    f"{path} has no column {name!r} that can be read",
                    fix="remove it and run the same command again",
                ) from error


@dataclass(frozen=True)
class Unit:
    """One shard of an image set, to be looked at by some evaluators: decoded once for all of them."""

    images: ImageSet
    number: int
    """Of the shard."""
    evaluators: Mapping[str, Evaluator]
    stores: Mapping[str, FeatureStore]

    def absent(self) -> list[str]:
        """Return the evaluators that have not seen the shard."""
        return [name for name in self.evaluators if not self.stores[name].has(self.number)]


def units_of(
    images: ImageSet, evaluators: Mapping[str, Evaluator], stores: Mapping[str, FeatureStore]
) -> list[Unit]:
    """Return a unit for each shard of an image set."""
    return [Unit(images, number, evaluators, stores) for number, _ in enumerate(images.shards())]


def measure(units: Sequence[Unit], pool: Pool, stage: Stage) -> None:
    """Fill the stores together with the other processes of the pool; returns when all shards are there.

    Raises:
        RunFailed: an evaluator returns other than one row per image, or needs more memory than there is.
    """
    seen = 0

    def look(number: int) -> bool:
        nonlocal seen
        absent = units[number].absent()
        if absent:
            _measure(units[number], absent, lambda: not pool.is_done(number))
        if number >= seen:
            stage.advance(number + 1 - seen)  # the units before it are others'
            seen = number + 1
        return bool(absent)

    work(pool, look)
    if pool.rank == 0:  # what was lost with a process between two messages
        for unit in units:
            if lost := unit.absent():
                _measure(unit, lost, lambda: True)
    if seen < len(units):
        stage.advance(len(units) - seen)


def _measure(unit: Unit, names: Sequence[str], wanted: Callable[[], bool]) -> None:
    """Look at a shard with some evaluators; rows that are no longer wanted are not kept."""
    started = time.monotonic()
    batch = unit.images.load(unit.number)
    digests = [hashlib.sha256(image.tobytes()).digest() for image in batch.images.numpy()]
    pixels = np.stack([np.frombuffer(digest, dtype=np.uint8) for digest in digests])
    load_seconds = time.monotonic() - started
    for name in names:
        started = time.monotonic()
        what = f"evaluator {name!r}: out of memory with shards of {len(batch)} images"
        with out_of_memory_as(what, "a device with more memory"), failure_of(f"evaluator {name!r}"):
            rows = _checked(unit.evaluators[name].measure(batch), len(batch))
        if batch.prompts:
            rows[PROMPT] = np.array([prompt_key(prompt) for prompt in batch.prompts])
        seconds = time.monotonic() - started
        if not wanted():  # scored, and cut down, while this process was slow
            return
        unit.stores[name].write(unit.number, rows, pixels=pixels, load_seconds=load_seconds, seconds=seconds)
        load_seconds = 0.0  # counted once, however many evaluators look


def _checked(rows: Rows, count: int) -> dict[str, np.ndarray]:
    """Return columns as arrays; raises TypeError or ValueError unless they have a row for each image."""
    arrays = {column: np.asarray(values) for column, values in rows.items()}
    if not arrays:
        raise ValueError("measure remembers nothing of an image")
    for column, values in arrays.items():
        if values.shape[:1] != (count,):
            raise ValueError(f"column {column} is {list(values.shape)} for {count} images")
        if values.dtype.kind not in "biufU":
            raise TypeError(f"column {column} holds {values.dtype}, not numbers, booleans or text")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"column {column} holds values that are not numbers")
    return arrays


def prompt_key(prompt: Prompt) -> int:
    """Return a number that is equal for equal prompts: images that share it are not independent."""
    text = json.dumps([prompt.text, prompt.tag], ensure_ascii=False)
    content = text.encode(errors="surrogatepass")  # a JSON file may hold half a character
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)
