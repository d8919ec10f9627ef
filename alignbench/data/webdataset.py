"""Captioned images in tar shards, in the form of LAION-COCO and other web data sets.

Files whose names agree up to the first dot of the last part are one sample: an image, and a .txt or .json
with its caption. A shard is read through once; where its pictures lie is kept, so that any can be read later.
Shards are not unpacked and must not be compressed.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignbench.data.captioned import MAX_CAPTION_BYTES, NO_CAPTION, Listing, Sample, read_captions
from alignbench.data.dataset import ordered_map
from alignbench.data.encoded import UnreadableImage
from alignbench.data.folder import EXTENSIONS, MAX_BYTES, identity_of
from alignbench.errors import UserError
from alignbench.files import write_atomic

INDEX_VERSION = 1
_TEXT_KINDS = (".txt", ".json")


@dataclass(frozen=True)
class _Entry:
    """A sample of a shard; the fields are what the index file holds."""

    key: str
    """Path inside the shard without the extension; empty: the shard itself, which is damaged."""
    offset: int
    """Of the picture's bytes in the shard."""
    size: int
    captions: tuple[str, ...]
    problem: str


@dataclass
class _Files:
    """Where the files of one sample lie: (offset, size)."""

    image: tuple[int, int] | None = None
    texts: dict[str, tuple[int, int]] = field(default_factory=dict)


def find_shards(root: Path) -> list[Path]:
    """Return the tar files of a folder at any depth, sorted, or the one that is given."""
    return sorted(root.rglob("*.tar")) if root.is_dir() else [root]


def list_shards(root: Path, key: str, *, workers: int, cache_dir: Path) -> Listing:
    """List the samples of all shards, in the order of shards and of files inside them.

    Args:
        root: a tar file, or the folder that holds them.
        key: of the caption in JSON files; empty: the usual ones.
        workers: threads that read shards which are not indexed yet.
        cache_dir: where the indices are kept.
    """
    base = root if root.is_dir() else root.parent
    shards = find_shards(root)

    def entries_of(shard: Path) -> list[_Entry]:
        return _indexed(shard, key, cache_dir)

    samples: list[Sample] = []
    places: list[tuple[Path, int, int]] = []
    for shard, entries in zip(shards, ordered_map(entries_of, shards, workers=workers), strict=True):
        name = shard.relative_to(base).as_posix()
        for entry in entries:
            whole = f"{name}/{entry.key}" if entry.key else name
            samples.append(Sample(whole, entry.captions, entry.problem))
            places.append((shard, entry.offset, entry.size))
    identity = identity_of(base, [shard.relative_to(base).as_posix() for shard in shards])
    return Listing.of(samples, lambda position: _read(*places[position]), identity)


def _read(shard: Path, offset: int, size: int) -> bytes:
    if size > MAX_BYTES:
        raise UnreadableImage(f"larger than {MAX_BYTES >> 20} MiB")
    with shard.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise UnreadableImage("the shard ends before the image does")
    return data


# --- the index of a shard -------------------------------------------------------------------------


def _indexed(shard: Path, key: str, cache_dir: Path) -> list[_Entry]:
    """Return a shard's index, from the cache if the shard has not changed since."""
    status = shard.stat()
    facts = [INDEX_VERSION, str(shard.resolve()), status.st_size, status.st_mtime_ns, key]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    path = cache_dir / f"shard-{name}.json"
    known = _read_index(path)
    if known is not None:
        return known
    entries = _index(shard, key)
    try:
        write_atomic(path, json.dumps([list(vars(entry).values()) for entry in entries]))
    except OSError as error:
        raise UserError(
            f"{path}: the index of a shard cannot be written: {error.strerror}",
            fix="set ALIGNBENCH_CACHE to a folder you can write to",
        ) from error
    return entries


def _read_index(path: Path) -> list[_Entry] | None:
    """Return an index that was kept; None if there is none that can be read."""
    try:
        rows: Any = json.loads(path.read_text(encoding="utf-8"))
        return [
            _Entry(str(key), int(offset), int(size), tuple(captions), str(problem))
            for key, offset, size, captions, problem in rows
        ]
    except (OSError, ValueError, TypeError):
        return None


def _index(shard: Path, key: str) -> list[_Entry]:
    """Read a shard through; what stops that becomes an entry of its own."""
    groups: dict[str, _Files] = {}
    damage: list[_Entry] = []
    with shard.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.isreg():
                        _sort_in(groups, member)
                # Where it cannot read on, tarfile mostly just stops.
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("it breaks off, or cannot be read from there on")
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            found = "damaged" if groups else "not an uncompressed tar file"
            damage.append(_Entry("", 0, 0, (), f"{found}: {error}"))
        entries = [
            _entry(file, name, files, key) for name, files in groups.items() if files.image or files.texts
        ]
    return entries + damage


def _sort_in(groups: dict[str, _Files], member: tarfile.TarInfo) -> None:
    """Note where a file lies, under its sample; of two of a kind the first counts."""
    folder, _, last = member.name.rpartition("/")
    stem, dot, extension = last.partition(".")
    if not stem or not dot:
        return
    place = (member.offset_data, member.size)
    files = groups.setdefault(f"{folder}/{stem}".lstrip("/"), _Files())
    kind = f".{extension.lower()}"
    if kind in _TEXT_KINDS:
        files.texts.setdefault(kind, place)
    elif kind in EXTENSIONS and files.image is None:
        files.image = place


def _entry(file: Any, name: str, files: _Files, key: str) -> _Entry:
    """Read the caption of a sample."""
    if files.image is None:
        return _Entry(name, 0, 0, (), "no image")
    kinds: Sequence[str] = _TEXT_KINDS[1:] if key else _TEXT_KINDS
    kind = next((kind for kind in kinds if kind in files.texts), "")
    if not kind:
        return _Entry(name, *files.image, (), f"{NO_CAPTION}: no {' or '.join(kinds)} file with it")
    offset, size = files.texts[kind]
    if size > MAX_CAPTION_BYTES:
        problem = f"the caption file is larger than {MAX_CAPTION_BYTES >> 20} MiB"
        return _Entry(name, *files.image, (), problem)
    file.seek(offset)
    captions, problem = read_captions(file.read(size), is_json=kind == ".json", key=key)
    return _Entry(name, *files.image, captions, problem)
