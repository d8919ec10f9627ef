"""One run from plan to record: data → method in the driver → export → evaluation → record, report, picture.

Every stage leaves its result in the run folder and finds it there when the same plan is run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from alignbench import run_folder
from alignbench.config import estimate
from alignbench.config.plan import Job
from alignbench.errors import RunFailed, UserError
from alignbench.files import file_sha256, give_usual_mode
from alignbench.progress import Progress
from alignbench.record import DataInfo, RunRecord
from alignbench.runs.evaluate_models import evaluate_models
from alignbench.runs.recorder import RunRecorder
from alignbench.runs.session import devices, session
from alignbench.training.driver import Interrupted
from alignbench.training.parallel import Parallel
from alignbench.training.setup import open_training_data, prepared, role_of
from alignbench.training.signals import StopOnSignal


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
            progress.say(f"{job.out} is complete; nothing to do")
            return current.finished
        progress.say(f"run {plan.id} → {job.out}")
        with devices(plan.config.train.precision, plan.model.policy.parameters) as parallel:
            recorder = current.recorder = RunRecorder.begin(job, current.record)
            if parallel.is_main:
                run_folder.remember(job.out, "weights", recorder.weights)
            if plan.method is not None:
                memory = parallel.memory_gib
                if memory and (note := estimate.memory_note(plan.estimate, memory)):
                    progress.say(note)
                _train(recorder, parallel, progress)
                parallel.release()
            if plan.evaluates:
                for results in evaluate_models(recorder, parallel, progress, job.out):
                    recorder.results += results
                    recorder.write("partial")
        return current.finish(recorder.build("complete"))


def _train(recorder: RunRecorder, parallel: Parallel, progress: Progress) -> None:
    job, plan = recorder.job, recorder.job.plan
    assert plan.method is not None
    export = job.out / "export" / f"{role_of(plan)}.safetensors"
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
        try:
            recorder.totals = ready.driver.train()
            if parallel.sum({"stop": float(stop())})["stop"]:  # after the last step
                raise Interrupted(plan.config.train.steps)
        except (Interrupted, UserError):
            recorder.totals = ready.driver.totals
            raise
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
