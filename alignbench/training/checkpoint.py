"""Checkpoints that are whole or absent: written to a temporary folder, marked, synced, renamed.

One process writes; the files do not depend on the number of ranks. Nothing is ever overwritten in place. The
marker holds digests of all files and of itself: a changed byte is found before anything is resumed from it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from alignbench.errors import RunFailed
from alignbench.files import file_sha256, give_usual_mode, read_json, write_json

MARKER = "DONE.json"
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
    totals: dict[str, Any]
    """Costs so far: seconds, images, sequences, …"""


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
    temporary = final.with_suffix(".tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)  # a folder without its marker
        temporary.mkdir(parents=True)
        save_file({name: value.cpu().contiguous() for name, value in state.module.items()},
                  temporary / "module.safetensors")  # fmt: skip
        give_usual_mode(temporary / "module.safetensors")
        torch.save(state.optimizer, temporary / "optimizer.pt")
        digests = {file.name: file_sha256(file) for file in temporary.iterdir()}
        marker = {"step": state.step, "totals": state.totals, "torch": torch.__version__, "files": digests}
        write_json(temporary / MARKER, marker)
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        temporary.rename(final)
        sync(root)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk, in the words of each library
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunFailed(
            f"checkpoint {final} cannot be written: {error}",
            fix="untie the weights that share memory"
            if "share memory" in str(error)
            else "free disk space and run the same command again; it continues from the last checkpoint",
        ) from error
    for old in complete(root)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


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


def load_latest(root: Path, *, checked: bool = False) -> State | None:
    """Read the newest finished checkpoint, or None; `checked`: this process has just compared its digests.

    Raises:
        RunFailed: it changed since it was written, or cannot be read.
    """
    folders = complete(root)
    if not folders:
        return None
    folder = folders[-1]
    try:
        marker = read_json(folder / MARKER) if checked else _marker(folder)
        return State(
            step=marker["step"],
            module=load_file(folder / "module.safetensors"),
            optimizer=torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True),
            totals=marker["totals"],
        )
    except Exception as error:
        reason = str(error).split("\n")[0].split(". ")[0]  # torch goes on for several sentences
        raise RunFailed(
            f"checkpoint {folder} is damaged: {reason}", fix=f"remove {folder} and run the same command again"
        ) from error


def _marker(folder: Path) -> dict[str, Any]:
    """Return the marker after comparing every file with its digest."""
    marker = read_json(folder / MARKER)
    if folder != folder_of(folder.parent, marker["step"]):
        raise ValueError(f"it says that it is of step {marker['step']}")
    for name, digest in marker["files"].items():
        if file_sha256(folder / name) != digest:
            raise ValueError(f"{name} changed since it was written")
    return marker
