"""`alignbench evaluate`: a model as it is, a finished run, or images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from alignbench.cli import options
from alignbench.cli.common import carry_out, leave, plan_lines
from alignbench.commands import jobs
from alignbench.commands.launch import in_processes
from alignbench.errors import UserError, refuse
from alignbench.registry import plugins
from alignbench.registry.lookup import Registry


def evaluate(
    *,
    model: str | None = typer.Option(
        None, "--model", help="Model to evaluate; see: list models.", autocompletion=options.MODELS
    ),
    samples: Path | None = typer.Option(
        None, "--samples", help="Score these images instead: a folder, or an ADM .npz file."
    ),
    run: Path | None = typer.Option(
        None, "--run", help="Score a finished run under another protocol; its record gains the results."
    ),
    protocol: options.Protocol = None,
    reconstruction: bool = typer.Option(
        False, "--reconstruction", help="Score the tokenizer: the model's reconstruction protocol."
    ),
    name: str = typer.Option("", "--name", help="With --samples: what tables call the images."),
    assignments: Annotated[
        list[str], options.changes("e.g. model.policy=PATH, assets.NAME=PATH; repeatable.")
    ],
    out: options.Out = None,
    write_npz: bool = typer.Option(
        False, "--write-npz", help="Also write the images as ADM sample files, for other evaluators."
    ),
    write_png: bool = typer.Option(False, "--write-png", help="Also write the images as PNG files."),
    workers: int | None = typer.Option(None, "--workers", min=0, help="Threads that decode images."),
    log_samples: options.LogSamples = False,
    log_shown: options.Shown = 32,
    plugin: options.Plugins,
    nproc: options.Nproc = None,
    dry_run: options.DryRun = False,
    as_json: options.RecordJson = False,
) -> None:
    """Score a model, a finished run, a tokenizer or any images under a protocol."""
    _require_one({"--model": model, "--samples": samples, "--run": run})
    if not dry_run:
        in_processes(nproc)
    choices = jobs.Choices(protocol=protocol, options=assignments, workers=workers, plugins=plugin, out=out)
    choices["log_samples"] = log_shown if log_samples else 0
    exports = tuple(kind for kind, wanted in {"npz": write_npz, "png": write_png}.items() if wanted)
    if samples is not None:
        if reconstruction or exports:
            raise UserError("--reconstruction and --write-… need a model", fix="name it with --model")
        _evaluate_samples(samples, name, choices, dry_run=dry_run, as_json=as_json)
    elif name:
        raise UserError("--name names images that are given", fix="leave it out")
    elif run is not None:
        if dry_run or exports:  # or the record would gain results that nobody wanted yet
            raise UserError("--run takes neither --dry-run nor --write-…", fix="leave them out")
        _evaluate_run(run, reconstruction, choices, as_json=as_json)
    elif model is not None:
        if reconstruction:
            choices["protocol"] = protocol or _reconstruction_protocol(plugins.load_registry(plugin), model)
        choices["exports"] = exports
        job = jobs.plan_evaluation(model, **choices)
        if dry_run:
            leave(plan_lines(job.plan), job.plan.problems, plan=job.plan if as_json else None)
        refuse(job.plan.id, job.plan.problems)
        carry_out(plan_lines(job.plan), partial(jobs.run, job), job.registry, job.out, as_json=as_json)


def _require_one(given: Mapping[str, object]) -> None:
    named = [option for option, value in given.items() if value is not None]
    if len(named) != 1:
        raise UserError(
            f"{' and '.join(named) or 'nothing'} given to evaluate",
            fix="name one of --model NAME, --run DIR and --samples PATH",
        )


def _reconstruction_protocol(registry: Registry, model: str) -> str:
    found = registry.model(model).reconstruction
    if not found:
        raise UserError(
            f"the card of {model} names no reconstruction protocol", fix="name it with --protocol"
        )
    return found


def _evaluate_samples(
    samples: Path, name: str, choices: jobs.Choices, *, dry_run: bool, as_json: bool
) -> None:
    if choices["protocol"] is None:
        raise UserError("--samples needs --protocol", fix="see: alignbench list protocols")
    job = jobs.plan_samples(samples, name=name, **choices)
    made = job.plan
    lines = [
        f"plan {made.id}",
        f"  images     {len(made.images):,} of {made.images.title}",
        f"  evaluate   {made.protocol_name} @ {made.requirements.digest[7:15]}",
        *(f"  asset      {n} {a.path} sha256 {a.sha256[:12]}" for n, a in made.requirements.assets.items()),
    ]
    if dry_run:
        leave(lines, made.problems)
    refuse(made.id, made.problems)
    carry_out(lines, partial(jobs.score_samples, job), job.registry, job.out, as_json=as_json)


def _evaluate_run(run: Path, reconstruction: bool, choices: jobs.Choices, *, as_json: bool) -> None:
    if choices.pop("out", None) is not None:
        raise UserError(
            "--out changes nothing here: the results go into the run's folder", fix="leave it out"
        )
    named = [choices["protocol"] is not None, reconstruction].count(True)
    if named == 2 or not (named or choices["log_samples"]):
        raise UserError(
            "--run needs one of --protocol NAME and --reconstruction", fix="see: alignbench list protocols"
        )
    from alignbench.record import read

    registry = plugins.load_registry(choices["plugins"])
    if reconstruction:
        choices["protocol"] = _reconstruction_protocol(registry, read(run).model.name)
    carry_out([], partial(jobs.evaluate, run=run, **choices), registry, run, as_json=as_json)
