"""Trackers on request: TensorBoard, Weights & Biases, trackio, through accelerate. A run never fails for one.

A tracker shows what `metrics.jsonl` says. Beside its files in `trackers/` stands how far it has come, so that
one that is new, or was left behind, is filled up from the log and no step is sent twice.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from PIL import Image

from alignbench.config.plan import Job
from alignbench.errors import RunFailed
from alignbench.progress import Progress
from alignbench.record import Result

FOLDER = "trackers"
"""In the run folder."""
PROJECT = "alignbench"
Value = bool | int | float | str


class Tracked:
    """A run in one tracker.

    Args:
        first: finished steps; what the tracker has of later ones is of an attempt that was given up.
    """

    def __init__(self, name: str, folder: Path, title: str, config: Mapping[str, Value], first: int) -> None:
        self.name, self._state = name, folder / f"{name}.json"
        folder.mkdir(exist_ok=True)
        self.id, self.held = f"{title}-{secrets.token_hex(4)}", 0
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            state = json.loads(self._state.read_text(encoding="utf-8"))
            # What W&B keeps to itself until it ends is gone after a kill: another run is filled from the log.
            if name != "wandb" or state["finished"] or _sends():
                self.id, self.held = str(state["id"]), int(state["step"])
        new = not self.held
        self.held = min(self.held, first) if name == "tensorboard" else self.held
        with contextlib.redirect_stdout(io.StringIO()):  # standard output is for results
            self._tracker = STARTS[name](folder, self.id, config, self.held)
            self._tracker.start()
        if new and name == "tensorboard":  # accelerate's way makes another folder, named by the time
            from torch.utils.tensorboard.summary import hparams

            for summary in hparams(dict(config), {}):
                self._tracker.tracker.file_writer.add_summary(summary)
        if name == "wandb" and self._tracker.tracker.resumed:  # as the server says
            self.held = min(self.held, self._tracker.tracker.starting_step - 1)
        if name == "trackio":  # what it had not yet written when it was killed is lost
            self.held = min(self.held, self._tracker.tracker._next_step - 1)
        self._remember()

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Send a step's numbers, unless it has them."""
        if step > self.held:
            self.send(step, {f"train/{name}": value for name, value in values.items() if value is not None})
            self.held = step
            self._remember()

    def send(self, step: int, values: Mapping[str, float]) -> None:
        self._tracker.log({name: float(value) for name, value in values.items()}, step=step)

    def image(self, tag: str, path: Path, step: int) -> None:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        if self.name == "tensorboard":
            self._tracker.log_images({tag: np.array(picture)[None]}, step=step, dataformats="NHWC")
        elif self.name == "wandb":
            self._tracker.log_images({tag: [picture]}, step=step)
        else:
            import trackio

            self._tracker.log({tag: trackio.Image(picture)}, step=step)

    def finish(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            if self.name == "trackio":  # else it ends, and says so, once more at the program's end
                import trackio

                trackio.finish()
            else:
                self._tracker.finish()
        self._remember(finished=True)

    def _remember(self, *, finished: bool = False) -> None:
        state = {"id": self.id, "step": self.held, "finished": finished}
        self._state.write_text(json.dumps(state), encoding="utf-8")


def _tensorboard(folder: Path, run_id: str, config: Mapping[str, Value], held: int) -> GeneralTracker:
    return TensorBoardTracker("tensorboard", folder, purge_step=held + 1)


def _sends() -> bool:
    """Whether W&B is told to send what it gets."""
    return os.environ.get("WANDB_MODE", "offline") not in ("offline", "disabled", "dryrun")


def _wandb(folder: Path, run_id: str, config: Mapping[str, Value], held: int) -> GeneralTracker:
    """Nothing is sent unless `WANDB_MODE` says so: `wandb sync` does that later."""
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    how: dict[str, Any] = {} if "WANDB_MODE" in os.environ else {"mode": "offline"}
    how |= {"dir": str(folder), "settings": {"console": "off", "silent": True}}
    return WandBTracker(project, id=run_id, config=dict(config), resume="allow", **how)


def _trackio(folder: Path, run_id: str, config: Mapping[str, Value], held: int) -> GeneralTracker:
    """Its store is one a process: `TRACKIO_DIR`, else that of the first run."""
    own = str(folder / "trackio")
    used = os.environ.setdefault("TRACKIO_DIR", own)
    if used != own and Path(used).parent.name == FOLDER:
        raise RunFailed("its store is that of another run", fix="set TRACKIO_DIR, or one process a run")
    quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    return TrackioTracker(PROJECT, name=run_id, config=dict(config), resume="allow", **quiet)


STARTS: Mapping[str, Callable[[Path, str, Mapping[str, Value], int], GeneralTracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}


class Tracking:
    """All trackers of a run, on its first process; opened with the first thing that is to be logged."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self._job, self._progress = job, progress
        self._tracked: list[Tracked] | None = None

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log a step that is in `metrics.jsonl`."""
        self._open(step)
        self._each(lambda tracked: tracked.log(step, numbers))

    def image(self, tag: str, path: Path, step: int) -> None:
        self._open(step)
        self._each(lambda tracked: tracked.image(tag, path, step))

    def finish(self, results: list[Result]) -> None:
        """Log `eval/SUBJECT/SETTING/METRIC`, means over seeds, and the sample grid; then let go."""
        step = self._job.plan.config.train.steps
        self._open(step)
        found = {
            f"eval/{result.subject}/{result.setting.name}/{metric}": fmean(known)
            for result in results
            for metric, values in result.metrics.items()
            if (known := [value for value in values if value is not None])
        }
        if found:
            self._each(lambda tracked: tracked.send(step, found))
        grid = self._job.out / "samples.png"
        if results and grid.exists():
            self.image("samples", grid, step)
        self.close()

    def close(self) -> None:
        self._each(Tracked.finish)
        self._tracked = []

    def _open(self, step: int) -> None:
        """Start every tracker and give it the logged steps that it lacks."""
        if self._tracked is not None:
            return
        self._tracked, config = [], _flat(self._job)
        lines = list(_lines(self._job.out / "metrics.jsonl"))
        first = min(step, len(lines)) - 1 if lines else 0
        for name in self._job.track:
            with self._guarded(name):
                folder = self._job.out / FOLDER
                made = Tracked(name, folder, self._job.plan.id, config, first)
                self._tracked.append(made)
        for number, numbers in lines:
            self._each(lambda tracked, n=number, v=numbers: tracked.log(n, v))  # type: ignore[misc]

    def _each(self, use: Callable[[Tracked], None]) -> None:
        for tracked in list(self._tracked or ()):
            with self._guarded(tracked.name):
                use(tracked)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Give a tracker up that fails, in one line."""
        try:
            yield
        except (Exception, SystemExit) as error:
            reason = next(iter(str(error).splitlines()), "")
            self._progress.say(
                f"tracking with {name} stops, the run goes on: {type(error).__name__}: {reason}"
            )
            self._tracked = [tracked for tracked in self._tracked or () if tracked.name != name]


def _flat(job: Job) -> dict[str, Value]:
    """The configuration as {key: value}; what is None is left out."""
    config = job.plan.config.as_dict()
    flat = {**{key: value for key, value in config.items() if key != "values"}, **config["values"]}
    return {key: value for key, value in flat.items() if isinstance(value, bool | int | float | str)}


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (step, numbers) of a training log; torn lines are left out."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
            numbers = json.loads(line)
            yield int(numbers.pop("step")), numbers
