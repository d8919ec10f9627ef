"""Files in folders: which of them are images, what they are called, and whether they have changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from alignbench.data.decode import UnreadableImage
from alignbench.errors import UserError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
MAX_BYTES = 1 << 28
"""Largest file that is read: no picture small enough to be decoded needs more."""


def walk(folder: Path) -> Iterator[Path]:
    """Yield all files at any depth but hidden ones, linked folders once; unreadable ones are a UserError."""
    visited: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, onerror=refuse_folder, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def refuse_folder(error: OSError) -> NoReturn:
    """Raise UserError for a folder that cannot be read."""
    raise UserError(
        f"{error.filename}: the folder cannot be read: {error.strerror}", fix="make it readable, or remove it"
    ) from error


def image_names(root: Path, folder: str = "") -> list[str]:
    """Return the paths from the root, with forward slashes, of all images in a folder, sorted."""
    paths = (path for path in walk(root / folder) if path.suffix.lower() in EXTENSIONS)
    return sorted(path.relative_to(root).as_posix() for path in paths)


def numbered_names(pattern: str) -> list[str]:
    """Write out the range of numbers in a name: `{00000..00073}.tar` are 74 names; without one, itself."""
    found = re.search(r"\{([0-9]+)\.\.([0-9]+)\}", pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    names = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [pattern[: found.start()] + name + pattern[found.end() :] for name in names]


def printable(name: str) -> str:
    """Replace bytes of a file name that are not UTF-8, which could be neither printed nor recorded."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key in which numbers inside names count as numbers."""
    pieces = re.split(r"([0-9]+)", name)
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces], name


def read_file(path: Path, *, offset: int = 0, size: int | None = None) -> bytes:
    """Return a file, or some bytes of one; raises UnreadableImage: not a regular file, or too large."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would never end
        raise UnreadableImage("not a regular file")
    if (status.st_size if size is None else size) > MAX_BYTES:
        raise UnreadableImage(f"larger than {MAX_BYTES >> 20} MiB")
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def identity_of(root: Path, names: Sequence[str]) -> str:
    """Hash the root and what the file system says of every file in it; equal while no file has changed.

    The time of change of the inode is part of it, since the time of modification can be set by hand.
    """
    state = hashlib.sha256(os.fsencode(root.resolve()))
    for name in names:
        try:
            status = (root / name).stat()
        except OSError:  # a broken link: the check will name it
            state.update(json.dumps([name]).encode())
        else:
            state.update(json.dumps([name, *file_state(status)]).encode())
    return state.hexdigest()


def file_state(status: os.stat_result) -> list[int]:
    """Return what of a file's status changes whenever its content does."""
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
