"""The run folder: one command, one folder, and two processes never in it at once.

plan.json  inputs.json  run.json  report.md  samples.png  metrics.jsonl  timing.jsonl  starts.json
checkpoints/step-000120/  export/policy.safetensors  samples/…  metrics/…  sample-log/…
training-samples/…  trackers/…  (on request)   .progress/…  (while a run works; see alignbench.progress)
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from alignbench.distributed import is_first
from alignbench.errors import EXIT_FAILED, EXIT_NOT_RUNNABLE, FULL, UserError
from alignbench.files import alone, read_json, remove_leftovers, write_json
from alignbench.progress import PROGRESS

PLAN = "plan.json"
INPUTS = "inputs.json"
LOCK = ".lock"
REASON = ".failed-"
"""Start of the files by which processes tell each other why they ended; the rank follows."""


class Identified(Protocol):
    """What a folder holds: a run's plan, or one for images that are given."""

    @property
    def id(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def as_dict(self) -> dict[str, Any]: ...


def check_folder(folder: Path, plan: Identified) -> None:
    """Make sure that a folder is new or holds this very plan.

    Raises:
        UserError: it holds another run, or something else.
    """
    try:
        os.fsencode(folder).decode()
    except UnicodeDecodeError:  # safetensors would refuse it after the training
        raise UserError(f"{folder}: the name is not UTF-8", fix="choose another folder with --out") from None
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file", fix="choose another folder with --out")
    held = folder / PLAN
    if held.exists():
        try:
            other = read_json(held)
            digest, name = other["digest"], other["id"]
        except (OSError, ValueError, LookupError, TypeError):
            raise UserError(f"{held} is not readable", fix="choose another folder with --out") from None
        if digest != plan.digest:
            raise UserError(
                f"{folder} already holds another run, {name}{_difference(other, plan)}",
                fix="choose another folder with --out, or leave --out away",
            )
    # A process killed before it wrote the plan leaves the lock and a temporary file.
    elif any(e.name not in (LOCK, PROGRESS) and not e.name.startswith(f".{PLAN}.") for e in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run", fix="choose another folder with --out")


def _difference(other: Mapping[str, Any], plan: Identified) -> str:
    """Name the first values in which a held plan differs; nothing if its form is another version's."""
    theirs, ours = other.get("config"), plan.as_dict()["config"]
    if not isinstance(theirs, dict) or not isinstance(theirs.get("values"), dict):
        return ""
    theirs, ours = {**theirs, **theirs["values"]}, {**ours, **ours["values"]}
    changed = [
        f"{key} = {theirs[key]} there, {value} here"
        for key, value in ours.items()
        if key not in ("values", "recipe") and key in theirs and theirs[key] != value
    ]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return f" ({'; '.join(changed[:3])}{more})" if changed else ""


@contextlib.contextmanager
def opened(folder: Path, plan: Identified) -> Iterator[None]:
    """Hold a run folder; the lock goes with the process, however it ends.

    Raises:
        UserError: another process works in it, it holds another run, or it cannot be made.
    """
    if not is_first():  # the first rank holds the folder for all
        yield
        return
    check_folder(folder, plan)
    existed, held = folder.exists(), (folder / PLAN).exists()
    with locked(folder):
        check_folder(folder, plan)  # again: another process may have come first
        remove_leftovers(folder)
        if not (folder / PLAN).exists():
            try:
                write_json(folder / PLAN, plan.as_dict())
            except OSError as error:
                raise _unwritable(folder, error) from error
        try:
            yield
        except UserError as error:
            if error.exit_code == EXIT_NOT_RUNNABLE and not held:
                _abandon(folder, remove=not existed)
            raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one who works in a folder, which is made if need be; the first rank holds it for all.

    Raises:
        UserError: another process works in it, or it cannot be written.
    """
    if not is_first():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise _unwritable(folder, error) from error
    busy = UserError(f"another process is working in {folder}", fix="wait for it, or choose --out")
    with lock, alone(lock, busy):
        yield


def _abandon(folder: Path, *, remove: bool) -> None:
    """Give up a folder in which nothing was done, so that the mended command may have it."""
    reasons = {path.name for path in folder.glob(f"{REASON}*")}
    if {entry.name for entry in folder.iterdir()} <= {LOCK, PLAN, INPUTS, PROGRESS, *reasons}:
        shutil.rmtree(folder / PROGRESS, ignore_errors=True)  # of another process, which is about to end
        for name in (PLAN, INPUTS, *reasons, LOCK):
            (folder / name).unlink(missing_ok=True)
        if remove:
            folder.rmdir()


def remember(folder: Path, name: str, value: Mapping[str, str]) -> None:
    """Note what a run is made of when it starts, and refuse to continue it with something else.

    Raises:
        UserError: it is not what the run started with.
    """
    path = folder / INPUTS
    try:
        known = read_json(path) if path.exists() else {}
    except ValueError:
        raise UserError(f"{path} is not readable", fix="remove it, or choose another folder") from None
    if known.get(name, value) != value:
        raise UserError(
            f"{name} changed since the run in {folder} began",
            fix="put it back as it was, or start anew in another folder with --out",
        )
    if name not in known:
        write_json(path, {**known, name: value})


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{folder} cannot be written: {(error.strerror or str(error)).lower()}",
        fix="choose another folder with --out",
        exit_code=EXIT_FAILED if error.errno in FULL else EXIT_NOT_RUNNABLE,
    )


def protocol_folder(run: Path, name: str, digest: str) -> Path:
    """Where a finished run keeps what was evaluated later, under another protocol than its own."""
    return run / "protocols" / f"{name}-{digest.removeprefix('sha256:')[:8]}"


def row_folder(run: Path, subject: str, setting: str, seed: int) -> Path:
    """Where the rows of one image set lie in a run folder, one folder an evaluator."""
    return run / "rows" / subject / setting / f"seed-{seed}"


def row_files(run: Path, subject: str, setting: str, seed: int, evaluator: str) -> list[Path]:
    """Return the row files of one image set that are there, in order."""
    return sorted((row_folder(run, subject, setting, seed) / evaluator).glob("shard-*.npz"))
