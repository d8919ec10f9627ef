"""Files that are whole or absent."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import IO, Any

from alignbench.errors import UserError

DIGEST = "sha256"
"""Key under which a JSON file that is believed later holds the digest of all the rest."""


def package_file(name: str) -> Path:
    """Return the path of a file that ships with the package, relative to its folder."""
    return Path(str(resources.files("alignbench"))) / name


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all; raises OSError as `atomic_file`."""
    with atomic_file(path) as file:
        # Bytes of a path that are no text have no place in a text: they become question marks.
        file.write(content.encode(errors="replace") if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Give a temporary file that gets the wanted name, synced before, when the block ends well.

    Raises:
        OSError: the disk is full or the folder is not writable; an earlier file stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes on several hosts may write the same file, under the same number.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("wb+") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def give_usual_mode(path: Path) -> None:
    """Let others read a file as the umask says; safetensors makes files for their owner alone."""
    probe = path.with_name(f".{path.name}.mode.tmp")
    probe.touch()
    try:
        shutil.copymode(probe, path)
    finally:
        probe.unlink()


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


def parse_json(text: str | bytes) -> Any:
    """Parse JSON of any origin.

    Raises:
        ValueError: it is not JSON, not UTF-8, nested too deeply, or an object names a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # which of them was meant?
        keys = [key for key, _ in pairs]
        raise ValueError(f"it holds the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write plain data with a digest of itself, for `read_json`; atomic, as `write_atomic`."""
    write_atomic(path, json.dumps({**content, DIGEST: _json_digest(content)}, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return what `write_json` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what was written.
    """
    content = parse_json(path.read_bytes())
    if not isinstance(content, dict) or content.pop(DIGEST, None) != _json_digest(content):
        raise ValueError(f"{path.name} changed since it was written")
    return content


def _json_digest(content: dict[str, Any]) -> str:
    return digest_of(json.loads(json.dumps(content)))  # as a reader will see it: keys are texts


@functools.cache
def code_digest() -> str:
    """SHA-256 over the program itself: what it computed is only believed while it is the same program."""
    root = package_file("")
    sources = [
        Path(folder, name)
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
        if name.endswith(".py")
    ]
    return digest_of({str(path.relative_to(root)): file_sha256(path) for path in sources})


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


@contextlib.contextmanager
def alone(lock: IO[str], busy: UserError) -> Iterator[None]:
    """Be the only process that holds a lock file while it is open; raises `busy` where another one does."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise busy from None
    yield


@contextlib.contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Read and write a file of the cache while no other process does."""
    with lock_of(path).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def lock_of(path: Path) -> Path:
    """Where processes lock a file that is on its way; not beside it, where it would be one of the files."""
    make_folder(cache_root() / "locks")
    return cache_root() / "locks" / digest_of(str(path))[:24]


def file_sha256(path: Path) -> str:
    """Return the hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def file_digests(paths: Sequence[Path], memory: Path, *, workers: int = 1) -> list[str]:
    """Return the SHA-256 of files, reading only those that `memory` does not know as they are now.

    A file counts as unchanged while path, size, inode and times of modification and of change are the same;
    the last cannot be set by hand. Of processes that ask at once the first reads, the others wait for it. A
    memory that cannot be read costs nothing but time; one that cannot be written, e.g. in a shared cache, is
    not extended.

    Args:
        paths: existing files.
        memory: JSON file to keep the digests in.
        workers: threads that read.

    Raises:
        OSError: a file cannot be read.
    """
    files = [(path, *_name_and_state(path)) for path in paths]
    known = _remembered(memory)
    if any(known.get(name, [])[:-1] != state for _, name, state in files):
        with contextlib.ExitStack() as turn, ThreadPoolExecutor(max(workers, 1)) as pool:
            with contextlib.suppress(OSError, UserError):  # nowhere to lock: each process reads
                turn.enter_context(in_turn(memory))
            known = _remembered(memory)
            new = [file for file in files if known.get(file[1], [])[:-1] != file[2]]
            digests = pool.map(file_sha256, [path for path, _, _ in new])
            known |= {name: [*state, digest] for (_, name, state), digest in zip(new, digests, strict=True)}
            with contextlib.suppress(OSError):
                write_json(memory, known)
    return [str(known[name][-1]) for _, name, _ in files]


def _remembered(memory: Path) -> dict[str, list[Any]]:
    with contextlib.suppress(OSError, ValueError):
        return read_json(memory)
    return {}


def _name_and_state(path: Path) -> tuple[str, list[int]]:
    """Return under which name a file is remembered, and what says that it is unchanged."""
    real = path.resolve()
    status = real.stat()
    state = [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
    return os.fsencode(real).decode(errors="backslashreplace"), state


def expand(path: str) -> Path:
    """Return the path that a card means by `$TORCH_HOME/…` or `~/…`."""
    torch_home = os.environ.get("TORCH_HOME") or "~/.cache/torch"
    return Path(path.replace("$TORCH_HOME", torch_home)).expanduser()
