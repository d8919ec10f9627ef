"""The first rows of a data set that is streamed: taken once, kept on disk, and hardly anything beyond them.

Shards are read in an order that the seed fixes, each from its beginning, until there are enough rows. The
rows of a shard become one file of the cache, whole or absent, so that an interrupted run goes on with the
shard that it was in. What the data set consists of (its commit, its number of shards) is noted at the first
use; once all rows are kept, nothing is asked of any server.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from alignbench.data.decode import ProgressCallback
from alignbench.data.encoded import read_cache, write_cache
from alignbench.errors import RunFailed, UserError
from alignbench.files import digest_of, in_turn, make_folder, remove_leftovers
from alignbench.randomness import permutation

BATCH = 64
"""Rows that are in memory together, beside what the package itself reads ahead."""

Load = Callable[[str], tuple[Any, str]]
"""Commit, empty: of the options → (stream of the columns, a `datasets.IterableDataset`, and its commit)."""


def take_rows(
    load: Load,
    identity: Mapping[str, Any],
    *,
    limit: int,
    seed: int,
    cache_dir: Path,
    progress: ProgressCallback | None = None,
) -> tuple[Any, list[str]]:
    """Return the first `limit` rows, or all if there are fewer, and what each is called: `shard 3 row 17`.

    A smaller subset is the beginning of a larger one, and what is kept serves both.

    Args:
        load: opens the stream; not called while everything needed is kept.
        identity: names the data set and the wanted columns; plain data, key of the cache.
        progress: called with (rows, limit).

    Returns:
        A `datasets.Dataset` with encoded pictures, and the names, row-aligned.

    Raises:
        UserError: `load` does, or the cache cannot be written.
        RunFailed: the stream breaks off; shards that are whole are kept.
    """
    import datasets

    folder = cache_dir / f"streamed-{digest_of(identity)[:24]}"
    with in_turn(folder):  # one process fetches, and its leftovers are nobody else's
        remove_leftovers(folder)
        stream, facts = None, read_cache(folder / "source.json")
        if facts is None:
            stream, commit = load("")
            facts = {"commit": commit, "shards": stream.num_shards}
            write_cache(folder / "source.json", facts, "the note of what is streamed")
        tables: list[Any] = []
        names: list[str] = []
        for shard in permutation(seed, "shards", 0, facts["shards"]).tolist():
            missing = limit - len(names)
            if not missing:
                break
            path = _kept(folder, shard, missing)
            if path is None:
                stream = stream or load(facts["commit"])[0]
                path = _keep(stream, folder, shard, missing, partial(_tell, progress, limit, len(names)))
            table = datasets.Dataset.from_file(str(path))
            tables.append(table.select(range(min(missing, len(table)))))
            names += [f"shard {shard} row {row}" for row in range(len(tables[-1]))]
    return datasets.concatenate_datasets(tables), names


def first_line(error: Exception) -> str:
    """What an error of the package says first, or its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _tell(progress: ProgressCallback | None, total: int, before: int, taken: int) -> None:
    if progress is not None:
        progress(before + taken, total)


def _whole(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.arrow"


def _first(folder: Path, shard: int, rows: int) -> Path:
    return folder / f"{shard:05d}-first-{rows}.arrow"


def _kept(folder: Path, shard: int, rows: int) -> Path | None:
    """Return the file of the cache that holds so many rows of a shard, or all it has."""
    if (path := _whole(folder, shard)).is_file():
        return path
    found = [int(path.stem.rpartition("-")[2]) for path in folder.glob(f"{shard:05d}-first-*.arrow")]
    enough = [count for count in found if count >= rows]
    return _first(folder, shard, min(enough)) if enough else None


def _keep(stream: Any, folder: Path, shard: int, rows: int, tell: Callable[[int], None]) -> Path:
    """Write so many rows of a shard, or all it has, to a file of the cache, and return its path."""
    import pyarrow
    from datasets.table import embed_table_storage

    make_folder(folder)
    temporary = folder / f".{shard:05d}.{os.getpid()}.tmp"
    schema = stream.features.arrow_schema  # with the package's notes on which columns are pictures
    batches = stream.shard(stream.num_shards, shard).with_format("arrow").iter(batch_size=min(BATCH, rows))
    taken = 0
    try:
        with temporary.open("wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
            for batch in batches:
                batch = batch.select(schema.names).cast(schema)
                # Of data sets that are files, a cell is only their address until here.
                writer.write_table(embed_table_storage(batch.slice(0, rows - taken)))
                taken += min(len(batch), rows - taken)
                tell(taken)
                if taken == rows:
                    break
            file.flush()
            os.fsync(file.fileno())
        return temporary.replace(_first(folder, shard, rows) if taken == rows else _whole(folder, shard))
    except UserError:
        raise
    except Exception as error:  # the package raises its own, the hub's, pyarrow's and built-in errors
        raise RunFailed(
            f"the stream broke off at row {taken} of shard {shard}: {first_line(error)}",
            fix="run the same command again: shards that are whole are kept",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
