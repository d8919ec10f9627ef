"""Checkpoints that are whole or absent: written to a temporary folder, marked, synced, renamed.

One process writes here, and the files do not depend on the number of ranks; what lies in shards is written
by all, see `sharded_checkpoint`. Nothing is ever overwritten in place. The marker holds digests of all files
and of itself: a changed byte is found before anything is resumed from it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from alignbench.errors import RunFailed
from alignbench.files import file_sha256, give_usual_mode, read_json, write_json
from alignbench.training.process_group import ExchangeBroken

MARKER = "DONE.json"
WHOLE = "module.safetensors"
"""What is trained, where one process wrote it."""
METHOD = "method.safetensors"
"""What the method remembers, if anything; one process writes it in either form."""
KEEP = 2
"""Complete checkpoints kept in a run folder."""


@dataclass(frozen=True)
class State:
    """What a resumed run needs. No random state: numbers are addressed by step and sample."""

    step: int
    """Optimiser steps done."""
    module: dict[str, torch.Tensor]
    """State of what is trained."""
    optimizer: dict[str, Any]
    """`state` by the number of the parameter, and `param_groups`, which shards come without."""
    totals: dict[str, Any]
    """Costs so far: seconds, images, sequences, …"""
    method: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What the method remembers from step to step."""


class Writer:
    """Writes checkpoints, at once or behind the caller's back in a thread: at most one at a time."""

    def __init__(self) -> None:
        self._last: Future[Any] | None = None
        self._threads = ThreadPoolExecutor(1, "checkpoint")  # none before it is needed

    def write(self, save: Callable[[State], Any], state: State, behind: bool) -> None:
        """Write, or begin to write a copy of the state, which may change meanwhile."""
        if behind:
            copied = State(**{item.name: _copied(getattr(state, item.name)) for item in fields(state)})
            self._last = self._threads.submit(save, copied)
        else:
            save(state)

    def wait(self, *, only_if_done: bool = False) -> None:
        """Wait for what is being written, and raise what went wrong."""
        if self._last is None or (only_if_done and not self._last.done()):
            return
        last, self._last = self._last, None
        last.result()

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Wait behind the block, also after an error, for what is being written."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the reason
                self.wait()
            raise
        self.wait()


def _copied(value: Any) -> Any:
    """Copy tensors, whole or a part, to host memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


def folder_of(root: Path, step: int) -> Path:
    return root / f"step-{step:06d}"


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save(root: Path, state: State) -> Path:
    """Write one checkpoint and drop the oldest beyond `KEEP`.

    Raises:
        RunFailed: the disk is full; earlier checkpoints are untouched.
    """
    final = folder_of(root, state.step)
    if (final / MARKER).exists():
        return final
    with writing(final):
        temporary = begin(final)
        save_file({name: value.cpu().contiguous() for name, value in state.module.items()},
                  temporary / WHOLE)  # fmt: skip
        give_usual_mode(temporary / WHOLE)
        torch.save(state.optimizer, temporary / "optimizer.pt")
        write_method(temporary, state)
        digests = {file.name: file_sha256(file) for file in temporary.iterdir()}
        finish(final, state, digests)
    return final


def write_method(folder: Path, state: State) -> dict[str, str]:
    """Write what the method remembers; return {name: digest} of the file, or nothing."""
    if not state.method:
        return {}
    save_file({name: value.cpu().contiguous() for name, value in state.method.items()}, folder / METHOD)
    give_usual_mode(folder / METHOD)
    return {METHOD: file_sha256(folder / METHOD)}


def begin(final: Path) -> Path:
    """Make the empty folder in which a checkpoint is written."""
    temporary = final.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(final, ignore_errors=True)  # a folder without its marker
    temporary.mkdir(parents=True)
    return temporary


def finish(final: Path, state: State, digests: Mapping[str, str]) -> None:
    """Mark what was written as whole, under its final name, and drop the oldest beyond `KEEP`."""
    temporary, root = final.with_suffix(".tmp"), final.parent
    marker = {"step": state.step, "totals": state.totals, "torch": torch.__version__, "files": dict(digests)}
    write_json(temporary / MARKER, marker)
    for file in temporary.iterdir():
        sync(file)
    sync(temporary)
    temporary.rename(final)
    sync(root)
    for old in complete(root)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def writing(final: Path) -> Iterator[None]:
    """Say in one line that the block could not write a checkpoint, and leave nothing of it.

    Raises:
        RunFailed: the disk is full, or tensors share memory.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk, in the words of each library
        shutil.rmtree(final.with_suffix(".tmp"), ignore_errors=True)
        raise RunFailed(
            f"checkpoint {final} cannot be written: {error}",
            fix="untie the weights that share memory"
            if "share memory" in str(error)
            else "free disk space and run the same command again; it continues from the last checkpoint",
        ) from error


def complete(root: Path) -> list[Path]:
    """List finished checkpoints, oldest first."""
    return sorted(folder for folder in root.glob("step-??????") if (folder / MARKER).exists())


def put_aside_damaged(root: Path, say: Callable[[str], None]) -> None:
    """Rename checkpoints that changed since they were written, newest first, until one is whole.

    Left-over temporary folders are removed. One process calls this before all call `load_latest`.

    Args:
        root: folder of the checkpoints.
        say: told which were put aside, why, and where the run goes on.
    """
    for stale in root.glob("step-*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    for folder in reversed(complete(root)):
        try:
            _marker(folder)
            return
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            aside = folder.with_suffix(".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            say(f"checkpoint {folder} is damaged ({error}) and put aside; an earlier one is used")


def load_latest(
    root: Path, *, checked: bool = False, read: Callable[[Path], tuple[Any, Any]] | None = None
) -> State | None:
    """Read the newest finished checkpoint, or None.

    Args:
        checked: this process has just compared its digests.
        read: from its folder, what is trained and the optimiser; None: `read_whole`.

    Raises:
        RunFailed: it changed since it was written, or cannot be read.
    """
    folders = complete(root)
    if not folders:
        return None
    folder = folders[-1]
    try:
        marker = read_json(folder / MARKER) if checked else _marker(folder)
        module, optimizer = (read or read_whole)(folder)
        method = load_file(folder / METHOD) if METHOD in marker["files"] else {}
        return State(marker["step"], module, optimizer, marker["totals"], method)
    except ExchangeBroken:
        raise
    except Exception as error:
        reason = str(error).split("\n")[0].split(". ")[0]  # torch goes on for several sentences
        raise RunFailed(
            f"checkpoint {folder} is damaged: {reason}", fix=f"remove {folder} and run the same command again"
        ) from error


def read_whole(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what one process wrote."""
    optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    return load_file(folder / WHOLE), optimizer


def _marker(folder: Path) -> dict[str, Any]:
    """Return the marker after comparing every file with its digest."""
    marker = read_json(folder / MARKER)
    if folder != folder_of(folder.parent, marker["step"]):
        raise ValueError(f"it says that it is of step {marker['step']}")
    for name, digest in marker["files"].items():
        if file_sha256(folder / name) != digest:
            raise ValueError(f"{name} changed since it was written")
    return marker
