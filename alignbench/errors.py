"""Errors meant for people: one line that says what is wrong, why, and what to do about it.

Programmer errors stay ordinary exceptions; only what a user can cause or repair is a `UserError`.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib.util
import os
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

EXIT_FAILED = 1
"""The work started and could not be finished; finished parts are kept."""
EXIT_NOT_RUNNABLE = 2
"""Nothing was started: a wrong name, key, value or file."""
EXIT_PARTIAL = 3
"""Interrupted on request; running the same command again continues."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where a disk or a quota is full."""


class UserError(Exception):
    """Something the user can mend.

    Args:
        what: what is wrong, naming the thing (file, key, value).
        fix: what to do about it, if there is one thing to do.
        exit_code: the process's exit status.
    """

    def __init__(self, what: str, *, fix: str = "", exit_code: int = EXIT_NOT_RUNNABLE) -> None:
        self.what = what
        self.fix = fix
        self.exit_code = exit_code
        super().__init__(f"{what} → {fix}" if fix else what)


class RunFailed(UserError):
    """A run that started and broke (NaN loss, disk full): finished work is kept, exit status 1."""

    def __init__(self, what: str, *, fix: str = "") -> None:
        super().__init__(what, fix=fix, exit_code=EXIT_FAILED)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean X?"` for the nearest known names, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def missing_packages(names: Iterable[str], extra: str = "") -> tuple[list[str], str]:
    """Return the modules that are not installed, without importing any, and the command that brings them.

    `extra` is the extra of alignbench that has them; empty: each is installed by its own name.
    """
    missing = [name for name in names if not _installed(name)]
    return missing, f"pip install 'alignbench[{extra}]'" if extra else f"pip install {' '.join(missing)}"


def _installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # a folder of that name, e.g. `wandb/`, is no package


@dataclass(frozen=True)
class Problem:
    """Something that stops the run, and what to do about it."""

    where: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}{f' → {self.fix}' if self.fix else ''}"


@contextlib.contextmanager
def out_of_memory_as(what: str, fix: str) -> Iterator[None]:
    """Turn a shortage of memory inside the block into a failed run.

    Raises:
        RunFailed: the device or the machine had too little memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise RunFailed(what, fix=fix) from error


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    # The CPU's allocator has no exception of its own.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in _words_of(error)


def _words_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # foreign exceptions may fail at that, too
        return ""


@contextlib.contextmanager
def failure_of(what: str) -> Iterator[None]:
    """Turn any exception of exchangeable code inside the block into a failed run that names the code.

    Errors that already have words for people, and a shortage of memory, pass; so does everything while the
    environment variable `ALIGNBENCH_TRACEBACK` is set.

    Args:
        what: whose code it is, e.g. `reward 'clip-score'`.

    Raises:
        RunFailed: the code raised something, called `sys.exit`, or cancelled itself.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        if "ALIGNBENCH_TRACEBACK" in os.environ or _is_out_of_memory(error):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = next(iter(_words_of(error).strip().splitlines()), "")
        raise RunFailed(
            f"{what} failed: {type(error).__name__}{f': {reason}' if reason else ''} "
            f"({place.filename}:{place.lineno})",
            fix="ALIGNBENCH_TRACEBACK=1 shows where it was called from",
        ) from error


def smaller_batch(batch: int) -> str:
    """What to do where a protocol's images need too much memory."""
    larger = "a device with more memory"
    return f"{larger}, or --set protocol.batch={batch // 2}: another protocol" if batch > 1 else larger


def refuse(name: str, problems: Sequence[Problem]) -> None:
    """Stop before anything expensive if there are problems, naming all of them.

    Raises:
        UserError: exit status 2.
    """
    if problems:
        raise UserError(f"{name} cannot run: " + "\n".join(problem_lines(problems)))


def ways(fix: str) -> list[str]:
    """Split a remedy into the ways that it names; none if it is empty."""
    return fix.split(", or ") if fix else []


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """All problems, numbered, each with its remedy on a line of its own, to be copied."""
    if not problems:
        return []
    heading = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    lines = [heading]
    for number, problem in enumerate(problems, start=1):
        lines.append(f"  {number} {problem.where}: {problem.what}")
        lines += [f"    → {way}" for way in ways(problem.fix)]
    return lines
