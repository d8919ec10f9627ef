"""One run from plan to record: data → method in the driver → export → evaluation → record, report, picture.

Every stage leaves its result in the run folder and finds it there when the same plan is run again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from alignbench import evaluation, folder, grid, hub, report, run_facts
from alignbench.api import Backbone, Method, Reward, Updates
from alignbench.backbones.containers import load_strict, read_state_dict
from alignbench.data import ImageDataset, open_dataset
from alignbench.data.reference import DatasetImages
from alignbench.data.stream import Stream
from alignbench.driver import Driver, Interrupted, parameter_groups
from alignbench.errors import EXIT_PARTIAL, RunFailed, UserError
from alignbench.files import write_atomic
from alignbench.parallel import Parallel, choose_threads
from alignbench.plan import Plan
from alignbench.progress import Progress
from alignbench.record import FILE_NAME, DataInfo, RunRecord, read, write
from alignbench.registry import members
from alignbench.registry.catalogue import Catalogue, import_target
from alignbench.rewards.build import build as build_reward
from alignbench.rewards.class_names import class_names
from alignbench.rewards.placement import Placed
from alignbench.stopping import StopOnSignal

DEFAULT_OUT = Path("runs")


@dataclass(frozen=True)
class Job:
    """A plan and how to carry it out; nothing here changes a result."""

    plan: Plan
    catalogue: Catalogue
    out: Path
    """The run folder."""
    command: str
    """What the user typed."""
    checkpoint_every: int = 20
    workers: int = 0
    """Threads that decode images in the background; 0: none."""

    @property
    def cache(self) -> Path:
        return hub.cache_root()


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
        path.replace(path.with_name(f"{FILE_NAME}.old"))
        return None


def _carry_out(job: Job, progress: Progress) -> RunRecord:
    choose_threads(job.plan.model.policy.parameters)
    parallel = Parallel(job.plan.config.train.precision)
    facts = run_facts.Facts.begin(job, is_main=parallel.is_main)
    try:
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


def build_model(plan: Plan, device: torch.device) -> Backbone:
    """Build the model as it is before training."""
    build = import_target(str(plan.model.target))
    files = None if plan.random_weights else {role: status.path for role, status in plan.weights.items()}
    backbone: Backbone = build(plan.model, files, seed=0, device=device)
    members.require(f"model {plan.config.model!r}", backbone, members.OBJECT_MEMBERS["models"])
    return backbone


def open_training_data(job: Job, progress: Progress) -> ImageDataset:
    """Open the training split and say what was left out."""
    card = job.catalogue.dataset(job.plan.config.dataset)
    dataset = open_dataset(
        card,
        split=card.train_split,
        image_size=job.plan.model.image_size,
        num_classes=job.plan.model.num_classes,
        options=job.plan.config.section("data"),
        workers=job.workers,
        cache_dir=job.cache / "data",
    )
    for skipped in dataset.skipped[:5]:
        progress.say(f"left out {skipped.path}: {skipped.reason}")
    if dataset.skipped:
        listed = job.out / "left-out.txt"
        write_atomic(listed, "".join(f"{skipped.path}: {skipped.reason}\n" for skipped in dataset.skipped))
        progress.say(f"left out {len(dataset.skipped)} unreadable images in all; see {listed}")
    return dataset


def build_method(job: Job, backbone: Backbone, device: torch.device) -> Method:
    """Build the method from its card and the resolved options.

    Raises:
        UserError: the method's class lacks what the interface needs, or its options contradict each other.
    """
    name = job.plan.config.method
    assert name is not None
    target = members.load_method(job.catalogue, name)

    shared: dict[tuple[object, ...], Placed] = {}

    def reward(spec: str) -> Reward:
        return build_reward(
            spec,
            job.catalogue,
            device,
            class_names=lambda: class_names(job.catalogue.dataset(job.plan.config.dataset)),
            image_size=job.plan.model.image_size,
            shared=shared,
        )

    config = target.Config(**job.plan.config.section("method"))
    method: Method = target(config, backbone=backbone, reward=reward, seed=job.plan.config.seed)
    return method


def trained_module(backbone: Backbone, updates: Updates) -> nn.Module:
    """Return what a method trains; afterwards gradients reach that and nothing else of the backbone."""
    decoder = backbone.tokenizer.trainable_decoder()
    backbone.policy.requires_grad_(updates == "policy")
    decoder.requires_grad_(updates == "decoder")
    return backbone.policy if updates == "policy" else decoder


def _train(job: Job, facts: run_facts.Facts, parallel: Parallel, progress: Progress) -> None:
    plan = job.plan
    assert plan.method is not None
    export = job.out / "export" / f"{_role(plan)}.safetensors"
    dataset = open_training_data(job, progress)
    facts.data = DataInfo(
        name=plan.config.dataset,
        split=job.catalogue.dataset(plan.config.dataset).train_split,
        digest=dataset.digest,
        count=len(dataset),
        skipped=len(dataset.skipped),
    )
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
        _save_export(backbone.export()[_role(plan)], export)
        facts.exports = {_role(plan): f"sha256:{hub.file_sha256(export)}"}
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


def _role(plan: Plan) -> str:
    """Which file a method changes."""
    assert plan.method is not None
    return "policy" if plan.method.updates == "policy" else "tokenizer"


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


def load_export(run: Path, backbone: Backbone) -> None:
    """Put a run's exported weights into a backbone.

    Raises:
        UserError: the folder has no export, or it is of another model.
    """
    if not run.is_dir():
        raise UserError(f"{run} is not a run folder", fix="name the folder of a run that has trained")
    files = sorted((run / "export").glob("*.safetensors"))
    if not files:
        raise UserError(f"{run} has no exported weights", fix="name the folder of a run that has trained")
    for file in files:
        module: Any = backbone.policy if file.stem == "policy" else backbone.tokenizer
        load_strict(module, read_state_dict(file), name=str(file))


def _picture(job: Job, evaluated: evaluation.Evaluation, subject: str) -> tuple[str, torch.Tensor]:
    """A few samples at the first setting; the same image ids for every subject."""
    protocol = job.plan.protocol
    name, setting = next(iter(protocol.settings.items()))
    seed = protocol.seeds[0]
    shown = (
        job.plan.config.model if subject == "base" else f"{job.plan.config.model} + {job.plan.config.method}"
    )
    return f"{shown}, {setting.title}", evaluated.pictures(name, seed)
