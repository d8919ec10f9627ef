"""The run folder: one command, one folder, and two processes never in it at once.

plan.json  run.json  report.md  samples.png  metrics.jsonl  timing.jsonl
checkpoints/step-000120/  export/policy.safetensors  samples/…  metrics/…
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from alignbench.errors import UserError
from alignbench.files import write_atomic
from alignbench.plan import Plan


def check_folder(folder: Path, plan: Plan) -> None:
    """Make sure that a folder is new or holds this very plan.

    Raises:
        UserError: it holds another run, or something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file", fix="choose another folder with --out")
    held = folder / "plan.json"
    if held.exists():
        try:
            other = json.loads(held.read_text())
        except json.JSONDecodeError:
            raise UserError(f"{held} is not readable", fix="choose another folder with --out") from None
        if other["digest"] != plan.digest:
            raise UserError(
                f"{folder} already holds another run, {other['id']}",
                fix="choose another folder with --out, or leave --out away",
            )
    elif any(entry.name != ".lock" for entry in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run", fix="choose another folder with --out")


@contextlib.contextmanager
def opened(folder: Path, plan: Plan) -> Iterator[None]:
    """Hold a run folder; the lock goes with the process, however it ends.

    Raises:
        UserError: another process works in it, it holds another run, or it cannot be made.
    """
    if os.environ.get("RANK", "0") != "0":  # the first rank holds the folder for all
        yield
        return
    check_folder(folder, plan)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made: {error}", fix="choose another folder with --out"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another process is working in {folder}", fix="wait for it, or choose --out"
            ) from None
        if not (folder / "plan.json").exists():
            write_atomic(folder / "plan.json", json.dumps(plan.as_dict(), indent=1) + "\n")
        yield
