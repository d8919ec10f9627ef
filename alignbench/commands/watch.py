"""What runs are doing, read from their folders by another process: state, stages, numbers, warnings.

Nothing is written and no lock is taken. A run works while its first process lives, which has a file in
`.progress/`. Where the file is there and the process is not it was killed; else the record says how it ended.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from alignbench.commands.training_log import LOG, Log
from alignbench.errors import EXIT_FAILED, EXIT_PARTIAL, UserError
from alignbench.files import read_json
from alignbench.progress import PROGRESS, machine, process_state
from alignbench.record import FILE_NAME, read
from alignbench.run_folder import LOCK, PLAN

SILENT = 60.0
SILENT_UNITS = 5
"""Seconds, and units of a stage's work, after which a process without a sign is called silent."""

State = Literal["starting", "running", "complete", "failed", "interrupted", "killed"]
EXIT_STATUS: Mapping[State, int] = {"failed": EXIT_FAILED, "killed": EXIT_FAILED, "interrupted": EXIT_PARTIAL}
"""0 for the others."""
ENDED: Mapping[str, State] = {"complete": "complete", "partial": "interrupted", "failed": "failed"}
"""{status of a record of a run that no process works on: what happened}."""


@dataclass(frozen=True)
class StageProgress:
    """A piece of work with its units."""

    name: str
    done: int
    total: int | None
    """None: not begun, and not known."""
    seconds_left: float | None = None
    """At the pace so far; None: over, or not known."""


@dataclass(frozen=True)
class Process:
    """One process of a run."""

    rank: int
    pid: int
    host: str
    doing: str
    age: float
    """Seconds since it wrote last."""
    alive: bool | None
    """None: it runs on another machine, or in another container."""


@dataclass(frozen=True)
class RunView:
    """A run at one moment."""

    folder: Path
    id: str
    """Empty until the plan is written."""
    state: State
    doing: str
    stages: list[StageProgress]
    step: int
    """Last one in the log; 0: none."""
    numbers: dict[str, float | None]
    """Of that step."""
    series: str
    """What `values` are: the reward, or the loss where there is none."""
    values: list[float]
    processes: list[Process]
    warnings: list[str]

    @property
    def over(self) -> bool:
        return self.state not in ("starting", "running")

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


class Watched:
    """A run folder that is looked at again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = Log(folder / LOG)

    def look(self) -> RunView:
        """Return what the folder says now."""
        beats = _beats(self.folder)  # before the record: a run that ends writes that first
        if beats and _process(beats[0]).alive is False:
            time.sleep(0.05)  # it may be ending just now
            beats = _beats(self.folder)
        processes = [_process(beat) for beat in beats]
        plan = _plan(self.folder)
        self._log.update()
        state = _state(self.folder, processes)
        stages = _stages(beats, live=state == "running") or _stages_of_ended(plan, self._log)
        if state in ("starting", "running"):
            stages += _to_come(plan, stages)
        series, values = self._log.series()
        step = max(self._log.steps, default=0)
        return RunView(
            folder=self.folder,
            id=str(plan.get("id", "")),
            state=state,
            doing=processes[0].doing if processes and state == "running" else "",
            stages=stages,
            step=step,
            numbers=self._log.steps.get(step, {}),
            series=series,
            values=values,
            processes=processes,
            warnings=[*_process_warnings(state, processes, beats), *self._log.warnings()],
        )


def watched(paths: Sequence[Path], *, wait: bool) -> list[Path]:
    """Return the run folders among paths: each is one, or holds some.

    Args:
        wait: a folder that is not there yet counts: its run may be about to make it.

    Raises:
        UserError: a path is no folder, or holds no run.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_file():
            raise UserError(f"{path} is a file", fix="name a run folder, or a folder of runs")
        if not path.exists():
            if not wait:
                raise UserError(f"{path} does not exist", fix="name a run folder, or a folder of runs")
            found.append(path)
            continue
        inside = [] if _is_run(path) else sorted(folder for folder in path.iterdir() if _is_run(folder))
        if not inside and not _is_run(path) and any(path.iterdir()) and not wait:
            raise UserError(f"{path} holds no run", fix="name a run folder, or a folder of runs")
        found += inside or [path]
    return list(dict.fromkeys(found))


def exit_status(views: Sequence[RunView]) -> int:
    """Return 1 where a run failed or was killed, else 3 where one was interrupted, else 0."""
    found = {EXIT_STATUS.get(view.state, 0) for view in views}
    return next((status for status in (EXIT_FAILED, EXIT_PARTIAL) if status in found), 0)


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (PLAN, LOCK, FILE_NAME, PROGRESS))


def _beats(folder: Path) -> list[dict[str, Any]]:
    """Read the processes' files, the first process first."""
    found = []
    for path in folder.glob(f"{PROGRESS}/rank-*.json"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            beat = json.loads(path.read_bytes())
            _process(beat)
            found.append(beat)
    return sorted(found, key=lambda beat: int(beat["rank"]))


def _process(beat: Mapping[str, Any]) -> Process:
    here, alive = machine(), None
    if all(beat[key] == value for key, value in here.items()):
        alive = _lives(int(beat["pid"]), str(beat["born"]))
    age = max(time.time() - float(beat["updated"]), 0.0)
    return Process(int(beat["rank"]), int(beat["pid"]), str(beat["host"]), str(beat["doing"]), age, alive)


def _lives(pid: int, born: str) -> bool:
    if born:
        state, birth = process_state(pid)
        return birth == born and state not in "ZX"
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _plan(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / PLAN)
    except (OSError, ValueError):
        return {}


def _state(folder: Path, processes: Sequence[Process]) -> State:
    if processes and processes[0].rank == 0:  # the others end with it
        return "killed" if processes[0].alive is False else "running"
    try:
        return ENDED[read(folder / FILE_NAME).status]
    except (UserError, OSError):
        pass
    try:
        age = time.time() - (folder / PLAN).stat().st_mtime
    except OSError:
        return "starting"
    return "starting" if age < SILENT and not (folder / LOG).exists() else "interrupted"


def _stages(beats: Sequence[Mapping[str, Any]], *, live: bool) -> list[StageProgress]:
    """Every stage of the processes; done is what all that take part have done."""
    found = []
    for name in dict.fromkeys(name for beat in beats for name in beat["stages"]):
        parts = [beat["stages"][name] for beat in beats if name in beat["stages"]]
        part = min(parts, key=lambda part: part["done"])
        left, did = None, part["done"] - part["first"]
        if live and did > 0 and part["done"] < part["total"]:
            pace = (part["updated"] - part["started"]) / did
            left = max(pace * (part["total"] - part["done"]) - (time.time() - part["updated"]), 0.0)
        found.append(StageProgress(name, part["done"], part["total"], left))
    return found


def _stages_of_ended(plan: Mapping[str, Any], log: Log) -> list[StageProgress]:
    config = plan.get("config", {})
    steps = config.get("values", {}).get("train.steps") if isinstance(config, dict) else None
    if not isinstance(steps, int) or not config.get("method"):
        return []
    return [StageProgress("train", max(log.steps, default=0), steps)]


def _to_come(plan: Mapping[str, Any], begun: Sequence[StageProgress]) -> list[StageProgress]:
    """What the plan has after the stages that were begun; what a cache holds may still fall away."""
    trains = bool(plan.get("config", {}).get("method"))
    subjects = ["base", "method"] if trains else ["base"]
    work = ["train"] if trains else []
    if plan.get("evaluates", False):
        work += [f"{what} {subject}" for what in ("evaluate", "score") for subject in subjects]
    names = [stage.name for stage in begun if stage.name in work and (stage.done or stage.total)]
    after = work.index(names[-1]) + 1 if names else 0
    known = {stage.name for stage in begun}
    return [StageProgress(name, 0, None) for name in work[after:] if name not in known]


def _process_warnings(
    state: State, processes: Sequence[Process], beats: Sequence[Mapping[str, Any]]
) -> list[str]:
    if state == "killed":
        return ["the process is gone without a word; the same command again continues"]
    found = []
    for process, beat in zip(processes, beats, strict=True):
        who = f"process {process.rank} ({process.pid} on {process.host})"
        stage = beat["stages"].get(process.doing)
        did = stage["done"] - stage["first"] if stage else 0
        pace = (stage["updated"] - stage["started"]) / did if did else math.inf if stage else 0.0
        if process.alive is False:
            found.append(f"{who} is gone")
        elif process.age > max(SILENT, SILENT_UNITS * pace):
            where = "" if process.alive else "; whether it lives cannot be seen from here"
            found.append(f"{who} has been silent for {process.age:.0f} s{where}")
        elif process.alive and process_state(process.pid)[0] in ("T", "t"):
            found.append(f"{who} stands still: somebody stopped it")
    return found
