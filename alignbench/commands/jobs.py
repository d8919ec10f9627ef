"""Plan and carry out: train a model, evaluate a model, a run or images. Imports no torch."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict, Unpack

from alignbench.config.following import tracker_names
from alignbench.config.plan import Job, default_workers, make_plan
from alignbench.config.settings import only, resolve
from alignbench.distributed import is_first
from alignbench.errors import UserError, refuse
from alignbench.progress import Progress
from alignbench.registry import plugins
from alignbench.registry.schema import Scalar
from alignbench.run_folder import check_folder
from alignbench.text import made_plain

if TYPE_CHECKING:
    from alignbench.record import RunRecord
    from alignbench.runs.evaluate_samples import SamplesJob

RUNS = Path("runs")
"""Where run folders go unless a folder is named."""


class Choices(TypedDict, total=False):
    """What may be chosen about a job beside its method and model; the names are those of the options of
    `alignbench run` and `alignbench evaluate`."""

    data: str | None
    """Data set; default: the model's."""
    recipe: str | None
    """Recipe; default: the one for method and model."""
    protocol: str | None
    """Protocol; default: the model's."""
    seed: int
    """Training seed."""
    steps: int | None
    """Optimiser steps; the same as the option `train.steps`."""
    options: Mapping[str, Scalar] | Sequence[str]
    """{key: value}, or a list of `key=value`: what `--set` takes."""
    evaluates: bool
    """False: train only."""
    out: str | os.PathLike[str] | None
    """Run folder; default: `runs/<id>`."""
    plugins: Sequence[Any]
    """Python files or folders of cards, or decorated functions and classes that carry a card."""
    workers: int | None
    """Threads that decode images; default: none for tiny images, up to 8."""
    checkpoint_every: int
    """Steps between checkpoints."""
    exports: tuple[str, ...]
    """Forms in which the scored images are written as well: `npz`, `png`."""
    track: Sequence[str]
    """Trackers to send the numbers to: `tensorboard`, `wandb`, `trackio`."""
    grid_every: int
    """Steps between two sample grids of the policy in training; 0: none."""
    log_samples: int
    """Also log every scored image with its numbers, and show so many of the worst and of the best."""


def plan(method: str | None, model: str, **choices: Unpack[Choices]) -> Job:
    """Resolve names and values into a checked job; nothing is loaded, trained or written.

    Args:
        method: name of a method; None: the model is evaluated as it is.

    Returns:
        The job. `job.problems` lists everything that keeps it from running, each with its remedy.

    Raises:
        UserError: unknown names or keys, or values of the wrong type or range.
    """
    registry = plugins.load_registry(choices.get("plugins", ()))
    config = resolve(
        registry,
        method=method,
        model=model,
        dataset=choices.get("data"),
        recipe=choices.get("recipe"),
        protocol=choices.get("protocol"),
        assignments=assignments(choices.get("options", ())),
        steps=choices.get("steps"),
    )
    config = replace(config, seed=choices.get("seed", 0))
    made = make_plan(registry, config, evaluates=choices.get("evaluates", True))
    size = made.model.image_size if method else made.protocol.image_size
    workers = choices.get("workers")
    return Job(
        made,
        registry,
        Path(choices.get("out") or RUNS / made.id),
        command=command_line(),
        checkpoint_every=choices.get("checkpoint_every", 20),
        workers=default_workers(size) if workers is None else workers,
        exports=choices.get("exports", ()),
        track=tracker_names(choices.get("track", ())),
        grid_every=choices.get("grid_every", 0),
        log_samples=_log_samples(choices),
    )


def run(job: Job, *, progress: Progress | None = None) -> RunRecord:
    """Carry a job out, or continue it: train, evaluate before and after, write the run folder.

    Args:
        progress: told what happens; default: standard error, on the first process.

    Raises:
        UserError: the plan has problems, the folder holds something else, or the run was interrupted.
        RunFailed: it broke; what is done is kept, and the same call continues.
    """
    refuse(job.plan.id, job.problems)
    check_folder(job.out, job.plan)
    from alignbench.runs.run import run

    return run(job, progress or default_progress())


carry_out = run
"""The same, where `run` is the name of a folder."""


def evaluate(
    *,
    model: str | None = None,
    run: str | os.PathLike[str] | None = None,
    samples: str | os.PathLike[str] | None = None,
    name: str = "",
    progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> RunRecord:
    """Score one of three things under a protocol: a model as it is, a finished run, or images.

    Args:
        run: folder of a finished run; its record gains the results. With `log_samples` and without a
            protocol its own results get their log.
        samples: a folder of images, or an ADM `.npz` file.
        name: what tables call the images.
        choices: see `Choices`; `run` and `samples` need a `protocol`; `options` takes the keys `protocol.*`,
            `assets.*` and, of models, `model.*`.

    Raises:
        UserError: not exactly one of the three was given, or what `plan` and `run` raise.
    """
    if [model, run, samples].count(None) != 2:
        raise UserError("evaluate scores one thing", fix="give one of model, run and samples")
    progress = progress or default_progress()
    if model is not None:
        return carry_out(plan_evaluation(model, **choices), progress=progress)
    if samples is not None:
        return score_samples(plan_samples(samples, name=name, **choices), progress=progress)
    assert run is not None
    from alignbench.runs.evaluate_run import evaluate_run

    log_samples = _log_samples(choices)
    return evaluate_run(
        Path(run),
        plugins.load_registry(choices.get("plugins", ())),
        protocol=choices.get("protocol") or "" if log_samples else _protocol(choices),
        assignments=assignments(choices.get("options", ())),
        workers=choices.get("workers"),
        log_samples=log_samples,
        progress=progress,
    )


def plan_samples(
    samples: str | os.PathLike[str], *, name: str = "", **choices: Unpack[Choices]
) -> SamplesJob:
    """Open images and find what a protocol needs to score them; see `evaluate`."""
    from alignbench.runs.evaluate_samples import SamplesJob, make_given_plan

    protocol, registry = _protocol(choices), plugins.load_registry(choices.get("plugins", ()))
    workers = choices.get("workers")
    if workers is None:
        workers = default_workers(registry.protocol(protocol).image_size)
    made = make_given_plan(
        registry,
        Path(samples),
        protocol=protocol,
        title=name or made_plain(Path(samples).resolve().stem),
        assignments=assignments(choices.get("options", ())),
        workers=workers,
    )
    out = Path(choices.get("out") or RUNS / made.id)
    return SamplesJob(made, registry, out, workers, _log_samples(choices))


def score_samples(job: SamplesJob, *, progress: Progress) -> RunRecord:
    """Score what `plan_samples` found, or continue it."""
    refuse(job.plan.id, job.plan.problems)
    from alignbench.runs.evaluate_samples import score

    return score(job, command_line(), progress)


def _protocol(choices: Choices) -> str:
    """Return the protocol; raises UserError: none is named."""
    protocol = choices.get("protocol")
    if protocol is None:
        raise UserError("runs and samples need a protocol", fix="see: alignbench list protocols")
    return protocol


def _log_samples(choices: Choices) -> int:
    """Return how many images the log's page shows; raises UserError: it is negative, or nothing is scored."""
    shown = int(choices.get("log_samples", 0))
    if shown < 0:
        raise UserError(f"log_samples={shown} is below 0", fix="0 writes no log")
    if shown and not choices.get("evaluates", True):
        raise UserError("a log of samples is of scored images, and nothing is to be scored")
    return shown


def plan_evaluation(model: str, **choices: Unpack[Choices]) -> Job:
    """As `plan`, for a model as it is; a reconstruction protocol takes the options of its data set.

    Raises:
        UserError: as `plan`, or an option of something that is not used.
    """
    protocol = choices.get("protocol")
    if protocol is not None:
        card = plugins.load_registry(choices.get("plugins", ())).protocol(protocol)
        if card.task == "reconstruction" and card.reference:
            choices["data"] = card.reference.dataset
    job = plan(None, model, **choices)
    only(job.plan.config, "model", "protocol", "assets", "data")
    return job


def assignments(options: Mapping[str, Scalar] | Sequence[str]) -> list[str]:
    """Return options in the form of `--set`."""
    if not isinstance(options, Mapping):
        return list(options)
    words = {True: "true", False: "false"}
    return [f"{key}={words[v] if isinstance(v, bool) else v}" for key, v in options.items()]


def default_progress() -> Progress:
    return Progress(quiet=not is_first())


def command_line() -> str:
    """What the user typed; of a Python program its name."""
    return shlex.join(["alignbench", *sys.argv[1:]])
