"""The life of a run around its work: one folder held, the devices, what a failure is called, how it ends.

Training, evaluating a finished run and scoring given images differ in the work alone; everything here is the
same for all.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignbench import run_folder
from alignbench.distributed import is_first, world_size
from alignbench.errors import EXIT_PARTIAL, FULL, RunFailed, UserError
from alignbench.files import write_atomic
from alignbench.progress import Progress
from alignbench.record import FILE_NAME, RunRecord, read, write
from alignbench.registry.lookup import Registry
from alignbench.run_folder import LOCK, REASON
from alignbench.runs.recorder import RunRecorder
from alignbench.runs.report_files import write_report
from alignbench.training.driver import Interrupted
from alignbench.training.parallel import Parallel, choose_threads
from alignbench.training.process_group import ExchangeBroken, check_shared, default_store
from alignbench.training.signals import ignore_signals


@dataclass
class Session:
    """A run folder that this process holds."""

    folder: Path
    registry: Registry
    progress: Progress
    record: RunRecord | None
    """What earlier calls wrote."""
    recorder: RunRecorder | None = None
    """Once there is one, `run.json` says how a run ended that did not get to its end."""

    @property
    def finished(self) -> RunRecord | None:
        return self.record if self.record is not None and self.record.status == "complete" else None

    def finish(self, record: RunRecord) -> RunRecord:
        """Write report and record of a complete run, on the first rank; return the record."""
        if is_first():
            # The report comes first: where the record says complete, nothing is missing.
            write_report(record, self.folder, self.registry, self.progress.say)
            write(record, self.folder)
        return record

    def note(self, status: Literal["partial", "failed"]) -> None:
        """Say in `run.json` how a run ended; a full disk must not hide why it did."""
        if self.recorder is not None:
            with contextlib.suppress(RunFailed):
                self.recorder.write(status)


@contextlib.contextmanager
def session(
    folder: Path, registry: Registry, progress: Progress, plan: run_folder.Identified | None = None
) -> Iterator[Session]:
    """Hold a run folder while the block works in it, and say what went wrong in words of the run.

    The folder must be of `plan`; without one it is of a finished run, whatever that is.

    Raises:
        UserError: the folder is somebody else's, or nothing could be started (exit status 2); interrupted
            (exit status 3).
        RunFailed: broken on the way; a full disk.
    """
    held = run_folder.opened(folder, plan) if plan is not None else run_folder.locked(folder)
    with held, progress.followed_in(folder):  # its end comes after the record: who watches finds one of them
        if is_first():
            for left in folder.glob(f"{REASON}*"):
                left.unlink(missing_ok=True)
        current = Session(folder, registry, progress, _record_so_far(folder, progress))
        again = "run the same command again"
        try:
            yield current
        except (Interrupted, KeyboardInterrupt) as stopped:
            current.note("partial")
            step = f" after step {stopped.step}" if isinstance(stopped, Interrupted) else ""
            kept = "everything so far" if step else "finished work"
            raise UserError(
                f"interrupted{step}; {kept} is kept in {folder}",
                fix=f"{again} to continue",
                exit_code=EXIT_PARTIAL,
            ) from None
        except ExchangeBroken as broken:
            current.note("failed")
            said = "" if broken.explained else _reason_of_others(folder)
            explained = broken.explained or bool(said)
            raise ExchangeBroken(f"{broken.reason}{said}", explained=explained) from None
        except RunFailed as error:
            _tell_others(folder, error)
            current.note("failed")
            raise
        except UserError as error:
            _tell_others(folder, error)
            if current.recorder is None or current.recorder.totals is None:
                raise
            current.note("failed")
            raise RunFailed(error.what, fix=error.fix) from error  # after training: not "nothing was started"
        except OSError as error:
            _tell_others(folder, error)
            if error.strerror is None:  # not the operating system's
                raise
            full = error.errno in FULL
            reason = "no space left" if full else f"{error.strerror.lower()}: {error.filename or ''}"
            fix = f"{'free some' if full else 'mend that'} and {again}; finished work is kept"
            raise RunFailed(f"{folder}: {reason.removesuffix(': ')}", fix=fix) from error
        except Exception as error:
            _tell_others(folder, error)
            current.note("failed")
            raise


def _tell_others(folder: Path, error: Exception) -> None:
    """Leave word that this process says itself why it ends; the others' break at the next exchange."""
    if world_size() > 1:
        ignore_signals()  # the launcher ends all when one has ended, perhaps before this one has spoken
        with contextlib.suppress(OSError):
            if (folder / LOCK).exists():  # the one that all see
                write_atomic(folder / f"{REASON}{os.environ.get('RANK', '0')}", str(error))


def _reason_of_others(folder: Path) -> str:
    """Return what other processes said before they ended; empty: nothing, as after a kill."""
    time.sleep(1)  # the one that ended may still be writing
    reasons = sorted(folder.glob(f"{REASON}*"))
    return "".join(
        f"; process {path.name[len(REASON) :]} said: {path.read_text('utf-8')}" for path in reasons[:1]
    )


def _record_so_far(folder: Path, progress: Progress) -> RunRecord | None:
    """Read `run.json`; one that cannot be read is put aside and made again."""
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        return read(path)
    except UserError as error:
        progress.say(f"{error.what}; it is made again, the old one is kept as {FILE_NAME}.old")
        with contextlib.suppress(FileNotFoundError):  # another rank was first
            path.replace(path.with_name(f"{FILE_NAME}.old"))
        return None


@contextlib.contextmanager
def devices(
    precision: str, parameters: int | None = None, *, folder: Path | None = None
) -> Iterator[Parallel]:
    """Open this process's devices and leave them at the end.

    Args:
        parameters: of the model decide the number of threads; None: torch's own choice.
        folder: in which all processes work; None: each has one of its own.

    Raises:
        UserError: a process does not see the folder of the first one.
    """
    if parameters is not None:
        choose_threads(parameters)
    parallel = Parallel(precision)
    try:
        if folder is not None and parallel.world_size > 1:
            check_shared(folder, default_store(), parallel.rank, parallel.world_size)
        yield parallel
    finally:
        parallel.close()
