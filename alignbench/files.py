"""Files that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from alignbench.errors import UserError


def package_file(name: str) -> Path:
    """Return the path of a file that ships with the package, relative to its folder."""
    return Path(str(resources.files("alignbench"))) / name


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file through a temporary one beside it, synced before the rename.

    Raises:
        OSError: the disk is full or the folder is not writable; an earlier file stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            # Bytes of a path that are no text have no place in a text: they become question marks.
            file.write(content.encode(errors="replace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that a killed process left in a folder nobody else is working in."""
    for path in folder.rglob(".*"):
        # The second form is safetensors' own.
        if (path.name.endswith(".tmp") or path.name.startswith(".tmp")) and path.is_file():
            path.unlink(missing_ok=True)


def digest_of(content: Any) -> str:
    """SHA-256 of the canonical JSON of plain data."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()  # a path may hold any bytes


def cache_root() -> Path:
    """Return the folder for everything downloaded: `$ALIGNBENCH_CACHE`, else `~/.cache/alignbench`."""
    return Path(os.environ.get("ALIGNBENCH_CACHE") or "~/.cache/alignbench").expanduser()


def make_folder(folder: Path) -> None:
    """Create a folder with its parents, or raise UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot create {folder}: {error.strerror}",
            fix="set ALIGNBENCH_CACHE to a folder you can write to",
        ) from error


def file_sha256(path: Path) -> str:
    """Return the hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def expand(path: str) -> Path:
    """Return the path that a card means by `$TORCH_HOME/…` or `~/…`."""
    torch_home = os.environ.get("TORCH_HOME") or "~/.cache/torch"
    return Path(path.replace("$TORCH_HOME", torch_home)).expanduser()
