"""One run from plan to record: data → method in the driver → export → evaluation → record, report, picture.

Every stage leaves its result in the run folder and finds it there when the same plan is run again.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from alignbench import run_folder
from alignbench.config import estimate
from alignbench.config.plan import Job
from alignbench.errors import EXIT_PARTIAL, RunFailed, UserError
from alignbench.evaluation.evaluate import Score
from alignbench.files import file_sha256, write_atomic
from alignbench.leaderboard import report
from alignbench.progress import Progress
from alignbench.record import FILE_NAME, DataInfo, RunRecord, read, write
from alignbench.runs import recorder
from alignbench.runs.evaluate_models import evaluate_models
from alignbench.training import setup
from alignbench.training.driver import Interrupted
from alignbench.training.parallel import Parallel, choose_threads
from alignbench.training.setup import open_training_data, role_of
from alignbench.training.signals import StopOnSignal


def run(job: Job, progress: Progress) -> RunRecord:
    """Carry a plan out, or continue it; return its record.

    Raises:
        UserError: not runnable, or interrupted (exit status 3), or broken (exit status 1).
    """
    if job.plan.problems:
        raise UserError("; ".join(f"{item.where}: {item.what}" for item in job.plan.problems))
    with run_folder.opened(job.out, job.plan):
        record = _record_so_far(job, progress)
        if record is not None and record.status == "complete":
            progress.say(f"{job.out} is complete; nothing to do")
            return record
        progress.say(f"run {job.plan.id} → {job.out}")
        try:
            return _carry_out(job, progress)
        except OSError as error:
            if error.strerror is None:  # not the operating system's
                raise
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "no space left" if full else f"{error.strerror.lower()}: {error.filename or ''}"
            raise RunFailed(
                f"{job.out}: {reason.removesuffix(': ')}",
                fix=f"{'free some' if full else 'mend that'} and run the same command again; "
                "finished work is kept",
            ) from error


def _record_so_far(job: Job, progress: Progress) -> RunRecord | None:
    """Read `run.json`; one that cannot be read is put aside and made again."""
    path = job.out / FILE_NAME
    if not path.exists():
        return None
    try:
        return read(path)
    except UserError as error:
        progress.say(f"{error.what}; it is made again, the old one is kept as {FILE_NAME}.old")
        with contextlib.suppress(FileNotFoundError):  # another rank was first
            path.replace(path.with_name(f"{FILE_NAME}.old"))
        return None


def _carry_out(job: Job, progress: Progress) -> RunRecord:
    choose_threads(job.plan.model.policy.parameters)
    parallel = Parallel(job.plan.config.train.precision)
    facts = recorder.RunRecorder.begin(job, is_main=parallel.is_main)
    try:
        if parallel.is_main:
            run_folder.remember(job.out, "weights", facts.weights)
        if job.plan.method is not None:
            memory = parallel.memory_gib
            if memory and (note := estimate.memory_note(job.plan.estimate, memory)):
                progress.say(note)
            _train(job, facts, parallel, progress)
            parallel.release()
        if job.plan.evaluates:
            _evaluate(job, facts, parallel, progress)
    except Interrupted as stopped:
        _note("partial", facts, job)
        raise UserError(
            f"interrupted after step {stopped.step}; everything so far is kept in {job.out}",
            fix="run the same command again to continue",
            exit_code=EXIT_PARTIAL,
        ) from None
    except KeyboardInterrupt:
        _note("partial", facts, job)
        raise UserError(
            f"interrupted; finished work is kept in {job.out}",
            fix="run the same command again to continue",
            exit_code=EXIT_PARTIAL,
        ) from None
    except RunFailed:
        _note("failed", facts, job)
        raise
    except UserError as error:
        if facts.totals is None:
            raise
        _note("failed", facts, job)
        raise RunFailed(error.what, fix=error.fix) from error  # after training: not "nothing was started"
    finally:
        parallel.close()
    record = facts.build("complete", job)
    if parallel.is_main:
        # The report comes first: where the record says complete, nothing is missing.
        write_atomic(
            job.out / "report.md",
            report.report_markdown(record, job.registry.metric_facts(), assets=job.registry.asset_cards()),
        )
        write(record, job.out)
    return record


def _note(status: Literal["partial", "failed"], facts: recorder.RunRecorder, job: Job) -> None:
    """Say in `run.json` how a run ended; a full disk must not hide why it did."""
    with contextlib.suppress(RunFailed):
        facts.write(status, job)


# --- training -------------------------------------------------------------------------------------


def _train(job: Job, facts: recorder.RunRecorder, parallel: Parallel, progress: Progress) -> None:
    plan = job.plan
    assert plan.method is not None
    export = job.out / "export" / f"{role_of(plan)}.safetensors"
    dataset = open_training_data(job, progress)
    facts.data = DataInfo(
        name=plan.config.dataset,
        split=job.registry.dataset(plan.config.dataset).train_split,
        digest=dataset.digest,
        count=len(dataset),
        skipped=len(dataset.skipped),
    )
    if parallel.is_main:
        run_folder.remember(job.out, f"data set {plan.config.dataset}", {"images": dataset.digest})
    # Signals are only put off once there is a step to finish.
    with setup.prepared(job, dataset, parallel, progress) as ready, StopOnSignal(progress) as stop:
        facts.trainable = ready.trainable
        ready.driver.stop = stop
        try:
            facts.totals = ready.driver.train()
            if stop():  # after the last step
                raise Interrupted(plan.config.train.steps)
        except (Interrupted, RunFailed):
            facts.totals = ready.driver.totals
            raise
    if parallel.is_main:
        _save_export(ready.backbone.export()[role_of(plan)], export)
    parallel.barrier()
    facts.exports = {role_of(plan): f"sha256:{file_sha256(export)}"}


def _save_export(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write trained weights so that the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, temporary)
    except SafetensorError as error:
        raise RunFailed(
            f"{path} cannot be written: {error}", fix="free some space and run the same command again"
        ) from error
    temporary.replace(path)


def _evaluate(job: Job, facts: recorder.RunRecorder, parallel: Parallel, progress: Progress) -> None:
    def note(subject: Literal["base", "method"], scores: list[Score], reference: str | None) -> None:
        facts.add_scores(subject, scores, reference, job)
        facts.write("partial", job)

    evaluate_models(
        job,
        weights=facts.weights,
        exports=facts.exports,
        parallel=parallel,
        progress=progress,
        note=note,
        folder=job.out,
    )
