"""What all drills share: the undisturbed run, a folder for each trial, what counts as said and as equal."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from alignbench.record import FILE_NAME, read
from tests.helpers.command import alignbench

SMALL = [
    "--steps", "4", "--checkpoint-every", "1", "--set", "train.images_per_step=8",
    "--set", "method.group_size=2",
]  # fmt: skip
TINY = [
    "run", "--method", "ar-grpo", "--model", "llamagen-tiny", *SMALL,
    "--set", "protocol.samples=200", "--set", "protocol.seeds=0", "--set", "protocol.settings=t1",
]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
LIMIT_S = 240
"""A command that takes longer hangs."""


class Lost(Exception):
    """A trial that ended neither as it should nor with a word."""


def outcome(folder: Path) -> dict[str, object]:
    """What a finished run is compared by: weights, samples' digests behind the scores, and scores."""
    record = read(folder)
    results = [(x.subject, x.evaluator, x.metrics, x.intervals, x.n) for x in record.results]
    calls = record.train.reward_calls if record.train else {}
    return {"status": record.status, "exports": record.exports, "results": results, "calls": calls}


def command(*arguments: str, ranks: int = 1) -> list[str]:
    """The command line of a run."""
    start = [*TORCHRUN, str(ranks)] if ranks > 1 else [sys.executable]
    return [*start, "-m", "alignbench", *arguments]


def in_process(*arguments: str) -> tuple[int, str]:
    """Run a command here; (exit status, standard error), with the traceback where one would be shown."""
    try:
        done = alignbench(*arguments)
    except BaseException:
        return 1, traceback.format_exc()
    return done.returncode, done.stderr


def check_words(errors: str, *names: str) -> None:
    """A failure is one line that begins with the program's name and holds these; no traceback of ours."""
    lines = [line for line in errors.splitlines() if line.startswith("alignbench: ")]
    if len(lines) != 1 or "Traceback" in errors:
        raise Lost(f"no single line says what is wrong:\n{errors[-2000:]}")
    if not all(name in lines[0] for name in names):
        raise Lost(f"{' and '.join(names)} should be named: {lines[0]}")


def check_failed(out: Path) -> None:
    """The record of a run that broke says so."""
    if not (out / FILE_NAME).exists() or read(out).status != "failed":
        raise Lost("the record does not say that it failed")


class Drill:
    """The undisturbed run, and trials that are compared with it.

    Args:
        root: an empty folder.
        seed: decides what happens, when and where.
    """

    arguments = TINY

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.draw = root, random.Random(seed)
        self.cache = root / "cache"
        os.environ["ALIGNBENCH_CACHE"] = str(self.cache)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self.whole = root / "whole"
        started = time.monotonic()
        subprocess.run(command(*self.arguments, "--out", str(self.whole)), check=True, capture_output=True)
        self.seconds = time.monotonic() - started
        self.wanted = outcome(self.whole)

    @contextlib.contextmanager
    def trial(self) -> Iterator[Path]:
        """Give a folder of its own and a copy of the cache."""
        with tempfile.TemporaryDirectory(dir=self.root) as name:
            folder = Path(name)
            shutil.copytree(self.cache, folder / "cache")
            os.environ["ALIGNBENCH_CACHE"] = str(folder / "cache")
            try:
                yield folder
            finally:
                os.environ["ALIGNBENCH_CACHE"] = str(self.cache)

    def finish(self, out: Path) -> None:
        """Repeat the command undisturbed and compare."""
        code, errors = in_process(*self.arguments, "--out", str(out))
        if code or outcome(out) != self.wanted:
            raise Lost(f"the repeated command ended with {code} and other results:\n{errors[-2000:]}")
