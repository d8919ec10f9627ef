"""Captioned images in whatever form they lie: files side by side, JSONL manifests, tar shards.

Tar shards have the form of LAION-COCO and other web data sets: files whose names agree up to the first dot of
the last part are one sample, an image and a .txt or .json with its caption; what follows that dot is the
ending. Whatever else lies in a shard is listed with the reason why it is left out. A shard is read through
once; where its pictures lie is kept, so that any can be read later. Shards must not be compressed.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from alignbench.data.captioned import (
    CAPTION_FILES,
    NO_CAPTION,
    Listing,
    Sample,
    captioned_source,
    captions_of_object,
    read_captions,
)
from alignbench.data.decode import UnreadableImage, ordered_map
from alignbench.data.encoded import Source, read_cache, write_cache
from alignbench.data.walk import EXTENSIONS, file_state, identity_of, image_names, numbered_names, read_file
from alignbench.errors import UserError
from alignbench.files import parse_json
from alignbench.registry.schema import Scalar

IMAGE_KEYS = ("image", "file_name", "image_path", "path")
"""Where a line of a manifest may name its image."""
_SET_ROOT = "--set data.root=PATH"


def open_text_images(*, options: Mapping[str, Scalar], workers: int, cache_dir: Path, **_: object) -> Source:
    """List captioned images as `open_dataset` says; the options are on the card. Raises UserError."""
    if not options["root"]:
        raise UserError("no captioned images were given", fix=_SET_ROOT)
    root = Path(str(options["root"])).expanduser()
    if not root.exists():
        raise UserError(f"data.root: {root} does not exist", fix=_SET_ROOT)
    form, key, files = (str(options[option]) for option in ("form", "caption_key", "files"))
    form = form_of(root / files if files else root) if form == "auto" else form
    if files and (form == "folder" or not root.is_dir()):
        raise UserError("data.files names shards or manifests of a folder", fix="leave it out")
    if form == "folder":
        listing = list_folder(root, key)
    elif form == "jsonl":
        listing = list_manifests(root, key, files)
    else:
        listing = list_shards(root, key, files, workers=workers, cache_dir=cache_dir)
    return captioned_source(listing, title=str(root), options=options, workers=workers)


def form_of(root: Path) -> str:
    """Return `folder`, `jsonl` or `tar`; raises UserError: a file that is neither a manifest nor a shard."""
    if root.is_dir():
        if any(root.glob("*.jsonl")):
            return "jsonl"
        return "tar" if any(root.rglob("*.tar")) else "folder"
    kind = root.suffix.lower().removeprefix(".")
    if kind not in ("jsonl", "tar"):
        raise UserError(f"data.root: {root} is neither a folder nor a .jsonl or .tar file", fix=_SET_ROOT)
    return kind


def files_of(root: Path, pattern: str) -> list[Path]:
    """Return the files of a folder by pattern, sorted; a range as `numbered_names` takes it must be there
    whole, or UserError names the first that is missing."""
    names = numbered_names(pattern)
    found = [sorted(root.glob(name)) for name in names]
    if len(names) > 1 and (missing := [name for name, paths in zip(names, found, strict=True) if not paths]):
        raise UserError(
            f"data.files: {len(missing)} of {len(names)} files are not in {root}, e.g. {missing[0]}",
            fix="get them, or name fewer: --set data.files=PATTERN",
        )
    return [path for paths in found for path in paths]


def list_folder(root: Path, key: str) -> Listing:
    """List all images at any depth with the captions beside them, sorted by path, or raise UserError."""
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder", fix=_SET_ROOT)
    names = image_names(root)

    def sample(position: int) -> Sample:
        beside = {ending: (root / names[position]).with_suffix(ending) for ending in CAPTION_FILES}
        files = {ending: partial(_start_of, path) for ending, path in beside.items() if path.is_file()}
        return Sample(names[position], *read_captions(files, key, "beside it"))

    return Listing(
        names, sample, lambda position: read_file(root / names[position]), identity_of(root, names)
    )


def _start_of(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def list_manifests(root: Path, key: str, files: str = "") -> Listing:
    """List the images named by a JSONL file, or by JSONL files of a folder: all, or those of `files_of`.

    A line is an object with the image's path, absolute or from the manifest's folder, and its caption.

    Raises:
        UserError: a manifest cannot be read.
    """
    folder = root if root.is_dir() else root.parent
    manifests = files_of(root, files or "*.jsonl") if root.is_dir() else [root]
    lines = [line for manifest in manifests for line in _lines(manifest, key)]
    # Named as written: the same manifest elsewhere is the same data set.
    paths = [path for path, _ in lines]
    return Listing.of(
        [sample for _, sample in lines],
        lambda position: read_file(folder / paths[position]),
        identity_of(folder, paths),
    )


def _lines(manifest: Path, key: str) -> Iterator[tuple[str, Sample]]:
    """Yield (image path as written, sample) of every line that is not blank."""
    try:
        text = manifest.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.root: {manifest} cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _line(line, f"{manifest.name}:{number}", key)


def _line(line: str, where: str, key: str) -> tuple[str, Sample]:
    try:
        content = parse_json(line)
    except ValueError:
        content = None
    if not isinstance(content, Mapping):
        return "", Sample(where, problem="not a JSON object")
    path = next((value for name in IMAGE_KEYS if isinstance(value := content.get(name), str) and value), "")
    if not path or "\0" in path:
        return "", Sample(where, problem=f"no image under {', '.join(IMAGE_KEYS)}")
    captions = captions_of_object(content, key)
    return path, Sample(f"{where} {path}", captions, "" if captions else NO_CAPTION)


# --- tar shards ------------------------------------------------------------------------------------

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


def list_shards(root: Path, key: str, files: str = "", *, workers: int, cache_dir: Path) -> Listing:
    """List the samples of shards, in the order of shards and of files inside them.

    A folder's are all at any depth, or those of `files_of`; no other is opened.

    Shards that are not indexed yet are read in threads.
    """
    base = root if root.is_dir() else root.parent
    shards = files_of(root, files or "**/*.tar") if root.is_dir() else [root]
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

    def read(offset: int, size: int, most: int) -> bytes:
        file.seek(offset)
        return file.read(min(size, most))

    texts = {ending: partial(read, *position) for ending, position in files.items() if ending != "image"}
    return Entry(name, *files["image"], *read_captions(texts, key, "with it"))
