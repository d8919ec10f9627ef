"""Files that are whole or absent."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path


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
