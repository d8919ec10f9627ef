"""One run from plan to record: data → method in the driver → export → evaluation → record, report, picture.

Every stage leaves its result in the run folder and finds it there when the same plan is run again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from alignbench import evaluation, folder, grid, hub, report, run_facts
from alignbench.assembly import (
    build_method,
    build_model,
    load_export,
    open_training_data,
    role_of,
    trained_module,
)
from alignbench.data import open_dataset
from alignbench.data.reference import DatasetImages
from alignbench.data.stream import Stream
from alignbench.driver import Driver, Interrupted, parameter_groups
from alignbench.errors import EXIT_PARTIAL, RunFailed, UserError
from alignbench.files import write_atomic
from alignbench.job import Job
from alignbench.parallel import Parallel, choose_threads
from alignbench.progress import Progress
from alignbench.record import FILE_NAME, DataInfo, RunRecord, read, write
from alignbench.stopping import StopOnSignal


def run(job: Job, progress: Progress) -> RunRecord:
    """Carry a plan out, or continue it; return its record.

    Raises:
        UserError: not runnable, or interrupted (exit status 3), or broken (exit status 1).
    """
    if job.plan.problems:
        raise UserError("; ".join(f"{item.where}: {item.what}" for item in job.plan.problems))
    with folder.opened(job.out, job.plan):
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
    facts = run_facts.Facts.begin(job, is_main=parallel.is_main)
    try:
        if parallel.is_main:
            folder.remember(job.out, "weights", facts.weights)
        if job.plan.method is not None:
            _train(job, facts, parallel, progress)
            parallel.release()
        if job.plan.evaluates and parallel.is_main:
            _evaluate(job, facts, parallel.device, progress)
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
        write_atomic(job.out / "report.md", report.report_markdown(record, job.catalogue.metric_facts()))
        write(record, job.out)
    return record


def _note(status: Literal["partial", "failed"], facts: run_facts.Facts, job: Job) -> None:
    """Say in `run.json` how a run ended; a full disk must not hide why it did."""
    with contextlib.suppress(RunFailed):
        facts.write(status, job)


# --- training -------------------------------------------------------------------------------------


def _train(job: Job, facts: run_facts.Facts, parallel: Parallel, progress: Progress) -> None:
    plan = job.plan
    assert plan.method is not None
    export = job.out / "export" / f"{role_of(plan)}.safetensors"
    dataset = open_training_data(job, progress)
    facts.data = DataInfo(
        name=plan.config.dataset,
        split=job.catalogue.dataset(plan.config.dataset).train_split,
        digest=dataset.digest,
        count=len(dataset),
        skipped=len(dataset.skipped),
    )
    if parallel.is_main:
        folder.remember(job.out, f"data set {plan.config.dataset}", {"images": dataset.digest})
    backbone = build_model(plan, parallel.device)
    backbone.recompute(plan.config.train.recompute)
    module = trained_module(backbone, plan.method.updates)
    facts.trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    train = plan.config.train
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(
        parameter_groups(module, train.weight_decay),
        lr=train.lr,
        betas=(train.beta1, train.beta2),
        eps=train.eps,
        fused=parallel.device.type == "cuda",
    )
    module, optimizer = parallel.wrap(module, optimizer)
    # So that `backbone.logits` computes in the precision of the run, whatever is trained.
    backbone.policy = module if plan.method.updates == "policy" else parallel.wrap_frozen(backbone.policy)
    # After wrapping: a frozen reference is a copy and must compute in the same precision.
    method = build_method(job, backbone, parallel.device)
    with (
        StopOnSignal(progress) as stop,
        Stream(
            dataset, seed=plan.config.seed, images_per_step=train.images_per_step, workers=job.workers
        ) as stream,
    ):
        driver = Driver(
            train,
            method=method,
            module=module,
            optimizer=optimizer,
            stream=stream,
            parallel=parallel,
            folder=job.out,
            progress=progress,
            checkpoint_every=job.checkpoint_every,
            stop=stop,
        )
        try:
            facts.totals = driver.train()
            if stop():  # after the last step
                raise Interrupted(train.steps)
        except (Interrupted, RunFailed):
            facts.totals = driver.totals
            raise
    if parallel.is_main:
        _save_export(backbone.export()[role_of(plan)], export)
        facts.exports = {role_of(plan): f"sha256:{hub.file_sha256(export)}"}
    parallel.barrier()


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


# --- evaluation -----------------------------------------------------------------------------------


def _evaluate(job: Job, facts: run_facts.Facts, device: torch.device, progress: Progress) -> None:
    """Score the model before and after training, and draw both."""
    plan = job.plan
    reference_card = job.catalogue.dataset(plan.protocol.reference.dataset)
    reference = DatasetImages(
        open_dataset(
            reference_card,
            split=plan.protocol.reference.split,
            image_size=plan.protocol.image_size,
            num_classes=plan.model.num_classes,
            options={key: option.default for key, option in reference_card.options.items()},
            workers=job.workers,
            cache_dir=job.cache / "data",
        )
    )
    evaluators = evaluation.build_evaluators(job.catalogue, plan.protocol, device)
    shared = None if plan.random_weights else _shared_results(job, progress)
    pictures = []
    subjects: tuple[Literal["base", "method"], ...] = ("base", "method") if plan.method else ("base",)
    for subject in subjects:
        backbone = build_model(plan, device)
        weights = facts.weights
        if subject == "method":
            load_export(job.out, backbone)
            weights = {**weights, **facts.exports}
        evaluated = evaluation.Evaluation(
            subject=subject,
            weights_digest=run_facts.weights_digest(weights),
            backbone=backbone,
            protocol=plan.protocol,
            protocol_digest=plan.protocol_digest,
            evaluators=evaluators,
            reference=reference,
            num_classes=plan.model.num_classes or 1,
            device=device,
            folder=job.out,
            cache=shared if subject == "base" else None,
        )
        facts.add_scores(subject, evaluated.run(progress), reference.digest, job)
        facts.write("partial", job)
        pictures.append(_picture(job, evaluated, subject))
    first = next(reference.images())
    real = first[grid.choose(reference.labels()[: len(first)].tolist())]
    grid.write_grid(job.out / "samples.png", [*pictures, ("real images", real)])


def _shared_results(job: Job, progress: Progress) -> Path | None:
    """Folder where results of untouched models are kept for other runs; None if it cannot be written."""
    place = job.cache / "evaluations"
    try:
        place.mkdir(parents=True, exist_ok=True)
        writable = os.access(place, os.W_OK)
    except OSError:
        writable = False
    if writable:
        return place
    progress.say(
        f"{place} cannot be written: every run scores the base anew "
        "→ set ALIGNBENCH_CACHE to a folder you can write to"
    )
    return None


def _picture(job: Job, evaluated: evaluation.Evaluation, subject: str) -> tuple[str, torch.Tensor]:
    """A few samples at the first setting; the same image ids for every subject."""
    protocol = job.plan.protocol
    name, setting = next(iter(protocol.settings.items()))
    seed = protocol.seeds[0]
    shown = (
        job.plan.config.model if subject == "base" else f"{job.plan.config.model} + {job.plan.config.method}"
    )
    return f"{shown}, {setting.title}", evaluated.pictures(name, seed)
