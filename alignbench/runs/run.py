"""One run from plan to record: data → method in the driver → export → evaluation → record, report, picture.

Every stage leaves its result in the run folder and finds it there when the same plan is run again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from alignbench import run_folder
from alignbench.config import estimate
from alignbench.config.plan import Job
from alignbench.distributed import is_first
from alignbench.errors import RunFailed, UserError
from alignbench.files import file_sha256, give_usual_mode
from alignbench.progress import Progress
from alignbench.record import DataInfo, RunRecord
from alignbench.runs.evaluate_models import evaluate_models
from alignbench.runs.evaluate_run import log_finished
from alignbench.runs.recorder import RunRecorder
from alignbench.runs.sample_grids import TrainingGrids
from alignbench.runs.session import devices, session
from alignbench.runs.together import together
from alignbench.training.adapter import WEIGHTS_FILE
from alignbench.training.driver import Interrupted
from alignbench.training.parallel import Parallel
from alignbench.training.setup import open_training_data, prepared, role_of
from alignbench.training.signals import StopOnSignal

if TYPE_CHECKING:
    from alignbench.runs.tracking import Tracking


def run(job: Job, progress: Progress) -> RunRecord:
    """Carry a plan out, or continue it; return its record.

    Raises:
        UserError: not runnable, or interrupted (exit status 3), or broken (exit status 1).
    """
    plan = job.plan
    if plan.problems:
        raise UserError("; ".join(f"{item.where}: {item.what}" for item in plan.problems))
    with session(job.out, job.registry, progress, plan) as current:
        if current.finished is not None:
            if job.log_samples and plan.evaluates:
                log_finished(job, current.finished, job.out, progress)
            else:
                progress.say(f"{job.out} is complete; nothing to do")
            return current.finished
        progress.say(f"run {plan.id} → {job.out}")
        with (
            devices(plan.config.train.precision, plan.model.policy.parameters, folder=job.out) as parallel,
            _tracking(job, progress) as tracking,
        ):
            recorder = current.recorder = RunRecorder.begin(job, current.record)
            if parallel.is_main:
                run_folder.remember(job.out, "weights", recorder.weights)
            if plan.method is not None:
                memory = parallel.memory_gib
                if memory and (note := estimate.memory_note(plan.estimate, memory)):
                    progress.say(note)
                _train(recorder, parallel, progress, tracking)
                parallel.release()
            if plan.evaluates:
                for results in evaluate_models(recorder, parallel, progress, job.out):
                    recorder.results += results
                    recorder.write("partial")
            if tracking:
                tracking.finish(recorder.results)
            progress.doing("report")
            with together(parallel, job.out) as group:  # a launcher cannot start again what has ended well
                if not group.is_first:
                    group.help()
                return current.finish(recorder.build("complete"))


@contextlib.contextmanager
def _tracking(job: Job, progress: Progress) -> Iterator[Tracking | None]:
    """Trackers on the first process, if any are asked for; they are let go however the block ends."""
    if not job.track or not is_first():
        yield None
        return
    from alignbench.runs.tracking import Tracking

    tracking = Tracking(job, progress)
    try:
        yield tracking
    finally:
        tracking.close()


def _train(recorder: RunRecorder, parallel: Parallel, progress: Progress, tracking: Tracking | None) -> None:
    job, plan = recorder.job, recorder.job.plan
    assert plan.method is not None
    export = job.out / "export" / f"{role_of(plan)}.safetensors"
    progress.doing("training data")
    with parallel.main_process_first():  # looks at every image, unless the cache knows them
        dataset = open_training_data(job, progress)
    recorder.data = DataInfo(
        name=plan.config.dataset,
        split=job.registry.dataset(plan.config.dataset).train_split,
        digest=dataset.digest,
        count=len(dataset),
        skipped=len(dataset.skipped),
    )
    if parallel.is_main:
        run_folder.remember(job.out, f"data set {plan.config.dataset}", {"images": dataset.digest})
    # Signals are only put off once there is a step to finish.
    with prepared(job, dataset, parallel, progress) as ready, StopOnSignal(progress) as stop:
        recorder.trainable = ready.trainable
        ready.driver.stop = stop
        grids = TrainingGrids(job, ready.backbone, parallel.device, progress)

        def after_step(step: int, numbers: Mapping[str, float]) -> None:
            if tracking:
                tracking.log(step, numbers)
            if (grid := grids.after_step(step)) and tracking:
                tracking.image("training-samples", grid, step)

        ready.driver.after_step = after_step
        try:
            recorder.totals = ready.driver.train()
            if parallel.sum({"stop": float(stop())})["stop"]:  # after the last step
                raise Interrupted(plan.config.train.steps)
        except (Interrupted, UserError):
            recorder.totals = ready.driver.totals
            raise
    progress.doing("export")
    if ready.adapter is not None and parallel.is_main:
        folder = export.with_name("adapter")
        ready.adapter.write_settings(folder)
        _save_export(ready.adapter.export(), folder / WEIGHTS_FILE)
        ready.adapter.merge()
    state = parallel.whole(ready.backbone.export()[role_of(plan)])
    if parallel.is_main:
        _save_export(state, export)
    parallel.barrier()
    recorder.exports = {role_of(plan): f"sha256:{file_sha256(export)}"}


def _save_export(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write trained weights so that the file is whole or absent."""
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise RunFailed(f"training left values that are not numbers in {broken[0]}", fix="lower train.lr")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, temporary)
    except SafetensorError as error:
        raise RunFailed(
            f"{path} cannot be written: {error}", fix="free some space and run the same command again"
        ) from error
    give_usual_mode(temporary)
    temporary.replace(path)
