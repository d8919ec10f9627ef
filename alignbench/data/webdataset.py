"""Captioned images in tar shards, in the form of LAION-COCO and other web data sets.

Files whose names agree up to the first dot of the last part are one sample, and what follows that dot is the
ending, as webdataset has it: an image, and a .txt or .json with its caption. Whatever else lies in a shard is
listed with the reason why it is left out. A shard is read through once; where its pictures lie is kept, so
that any can be read later. Shards are not unpacked and must not be compressed.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from alignbench.data.captioned import CAPTION_FILES, Listing, Sample, read_captions
from alignbench.data.decode import UnreadableImage, ordered_map
from alignbench.data.encoded import read_cache, write_cache
from alignbench.data.walk import EXTENSIONS, file_state, identity_of, read_file

INDEX_VERSION = 2


class Entry(NamedTuple):
    """A sample of a shard, or damage to the shard; the fields are what the index file holds."""

    key: str
    """Path inside the shard without the ending, or what is left out; empty: the shard, which is damaged."""
    offset: int
    """Of the picture's bytes in the shard."""
    size: int
    captions: tuple[str, ...]
    problem: str


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
    names = [shard.relative_to(base).as_posix() for shard in shards]
    indices = ordered_map(lambda shard: _indexed(shard, key, cache_dir), shards, workers=workers)
    samples: list[Sample] = []
    positions: list[tuple[Path, int, int]] = []
    for shard, name, entries in zip(shards, names, indices, strict=True):
        for entry in entries:
            whole = f"{name}/{entry.key}" if entry.key else name
            samples.append(Sample(whole, entry.captions, entry.problem))
            positions.append((shard, entry.offset, entry.size))

    def read(position: int) -> bytes:
        shard, offset, size = positions[position]
        data = read_file(shard, offset=offset, size=size)
        if len(data) < size:
            raise UnreadableImage("the shard ends before the image does")
        return data

    return Listing.of(samples, read, identity_of(base, names))


def _indexed(shard: Path, key: str, cache_dir: Path) -> list[Entry]:
    """Return a shard's index, from the cache if the shard has not changed since."""
    status = shard.stat()
    facts = [INDEX_VERSION, str(shard.resolve()), *file_state(status), key]
    path = cache_dir / f"shard-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.json"
    try:
        return [
            Entry(str(name), int(offset), int(size), tuple(captions), str(problem))
            for name, offset, size, captions, problem in read_cache(path)
        ]
    except (ValueError, TypeError):  # absent or damaged
        entries = _index(shard, key)
    write_cache(path, entries, "the index of a shard")
    return entries


def _index(shard: Path, key: str) -> list[Entry]:
    """Read a shard through; what stops that becomes an entry of its own."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    left_out: list[Entry] = []
    others: Counter[str] = Counter()
    with shard.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if problem := _add(samples, others, member):
                        name = f"{member.name} at byte {member.offset}"
                        left_out.append(Entry(name, 0, 0, (), problem))
                # Where it cannot read on, tarfile mostly just stops.
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("it breaks off, or cannot be read from there on")
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            what = "damaged" if samples else "not an uncompressed tar file"
            left_out.append(Entry("", 0, 0, (), f"{what}: {error}"))
        entries = [_entry(file, name, files, key) for name, files in samples.items() if files]
    for ending, count in others.items():
        reason = f"{count} files end so after the first dot: neither an image's ending nor a caption's"
        left_out.append(Entry(f"*{ending}", 0, 0, (), reason))
    return entries + left_out


def _add(
    samples: dict[str, dict[str, tuple[int, int]]], others: Counter[str], member: tarfile.TarInfo
) -> str:
    """Note under its sample where a file lies, {ending or "image": (offset, size)}.

    Args:
        samples: {name: its files}, added to.
        others: counts endings that mean nothing here.
        member: of the shard.

    Returns:
        Why the file is left out; empty: it is not, or is counted under `others`.
    """
    if member.isdir():
        return ""
    if not member.isreg():
        return "not a regular file"
    folder, _, last = member.name.rpartition("/")
    stem, dot, ending = last.partition(".")
    kind = f".{ending.lower()}" if stem and dot else ""
    role = "image" if kind in EXTENSIONS else kind
    if role not in ("image", *CAPTION_FILES):
        others[kind or "no ending"] += 1
        return ""
    sample = samples.setdefault(f"{folder}/{stem}".lstrip("/"), {})
    if role in sample:
        return f"a second {'image' if role == 'image' else f'{role} file'} of {stem}"
    sample[role] = (member.offset_data, member.size)
    return ""


def _entry(file: IO[bytes], name: str, files: dict[str, tuple[int, int]], key: str) -> Entry:
    """Read the caption of a sample."""
    if "image" not in files:
        return Entry(name, 0, 0, (), "no image")

    def reader(offset: int, size: int) -> Callable[[int], bytes]:
        def read(most: int) -> bytes:
            file.seek(offset)
            return file.read(min(size, most))

        return read

    texts = {ending: reader(*position) for ending, position in files.items() if ending != "image"}
    return Entry(name, *files["image"], *read_captions(texts, key, "with it"))
