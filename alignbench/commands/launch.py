"""`--nproc N`: the same command in N processes of this machine, through torchrun, with one exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path

from alignbench.distributed import LAUNCHED
from alignbench.errors import EXIT_FAILED, EXIT_PARTIAL, RunFailed, UserError

STATUS = "ALIGNBENCH_STATUS"
"""Environment variable: the folder in which each process leaves its id and, in the end, its exit status."""
AGENT = """
import logging, runpy, sys
logging.disable(logging.CRITICAL)
try:
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
except Exception:
    sys.exit(1)
"""
"""torchrun without its report: each process says itself why it ends, and `_wait` which one was killed."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def in_processes(nproc: int | None) -> None:
    """Carry this command out in `nproc` processes and end as they end; without a number do nothing.

    Signals go to the first process, which stops the others as it would under any launcher.

    Raises:
        UserError: a launcher has started this process, or the machine has fewer GPUs; a process was killed.
        SystemExit: with the processes' exit status.
    """
    if nproc is None or STATUS in os.environ:  # the latter: this is one of them
        return
    if set(LAUNCHED[:2]) & os.environ.keys():
        raise UserError("--nproc starts processes, and a launcher has started this one", fix="leave it out")
    import torch

    if torch.cuda.is_available() and nproc > torch.cuda.device_count():
        raise UserError(
            f"--nproc {nproc} is more than the {torch.cuda.device_count()} GPUs that are visible",
            fix="one process for each GPU",
        )
    with tempfile.TemporaryDirectory(prefix="alignbench-") as folder:
        command = [sys.executable, "-c", AGENT, "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command += [str(nproc), "-m", "alignbench", *_without_nproc(sys.argv[1:])]
        raise SystemExit(_wait(command, nproc, Path(folder)))


def _without_nproc(arguments: Sequence[str]) -> list[str]:
    """Leave `--nproc` out: torchrun would take it for one of its own options."""
    return [
        word
        for before, word in zip(["", *arguments], arguments, strict=False)
        if not (word == "--nproc" or before == "--nproc" or word.startswith("--nproc="))
    ]


def _wait(command: Sequence[str], nproc: int, folder: Path) -> int:
    """Run torchrun, pass signals on, and return the exit status that one process would have.

    Raises:
        RunFailed: a process was killed.
    """
    # A session of its own: Ctrl-C reaches this process alone, which passes it on.
    launcher = subprocess.Popen(command, env={**os.environ, STATUS: str(folder)}, start_new_session=True)
    asked = False

    def pass_on(number: int, frame: types.FrameType | None) -> None:
        nonlocal asked
        asked = True
        try:
            os.kill(int((folder / "pid-0").read_text()), number)
        except (OSError, ValueError):  # not there yet, or not any more
            launcher.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        ended = launcher.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if ended == 0:
        return 0
    statuses = {int(path.read_text()) for path in folder.glob("status-*")}
    # Of one that failed the others are told by a signal, and then say that they were interrupted.
    failed = statuses - {0, EXIT_PARTIAL}
    if failed:
        return EXIT_FAILED if EXIT_FAILED in failed else min(failed)
    if asked or len(list(folder.glob("status-*"))) == nproc:
        return EXIT_PARTIAL
    gone = [str(rank) for rank in range(nproc) if not (folder / f"status-{rank}").exists()]
    raise RunFailed(f"killed: process {' and '.join(gone)} of {nproc}", fix="run the same command again")


def note_process() -> None:
    """Say which process of `in_processes` this is, if it is one."""
    if STATUS in os.environ:
        (Path(os.environ[STATUS]) / f"pid-{os.environ.get('RANK', '0')}").write_text(str(os.getpid()))


def note_status(status: int) -> None:
    """Say with which exit status this process of `in_processes` ends."""
    if STATUS in os.environ:
        (Path(os.environ[STATUS]) / f"status-{os.environ.get('RANK', '0')}").write_text(str(status))
