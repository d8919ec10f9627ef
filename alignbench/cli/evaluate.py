"""`alignbench evaluate`: a model as it is, a finished run, or images."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from alignbench.cli.common import PLUGIN_HELP, carry_out, show_plan, show_record
from alignbench.commands import jobs
from alignbench.errors import UserError, problem_lines, refuse
from alignbench.registry import plugins
from alignbench.registry.lookup import Registry


def evaluate(
    model: str | None = typer.Option(None, "--model", help="Model to evaluate; see: list models."),
    samples: Path | None = typer.Option(
        None, "--samples", help="Score these images instead: a folder, or an ADM .npz file."
    ),
    run: Path | None = typer.Option(
        None, "--run", help="Score a finished run under another protocol; its record gains the results."
    ),
    protocol: str | None = typer.Option(None, "--protocol", help="Protocol; default: the model's."),
    reconstruction: bool = typer.Option(
        False, "--reconstruction", help="Score the tokenizer: the model's reconstruction protocol."
    ),
    name: str = typer.Option("", "--name", help="With --samples: what tables call the images."),
    assignments: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="e.g. model.policy=PATH, assets.NAME=PATH; repeatable."
    ),
    out: Path | None = typer.Option(None, "--out", help="Run folder; default: runs/<id>."),
    write_npz: bool = typer.Option(
        False, "--write-npz", help="Also write the images as ADM sample files, for other evaluators."
    ),
    write_png: bool = typer.Option(False, "--write-png", help="Also write the images as PNG files."),
    workers: int | None = typer.Option(None, "--workers", min=0, help="Threads that decode images."),
    plugin: list[Path] = typer.Option([], "--plugin", help=PLUGIN_HELP),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the plan and stop."),
    as_json: bool = typer.Option(False, "--json", help="Print the plan or the record as JSON."),
) -> None:
    """Score a model, a finished run, a tokenizer or any images under a protocol."""
    given = {"--model": model, "--samples": samples, "--run": run}
    named = [option for option, value in given.items() if value is not None]
    if len(named) != 1:
        raise UserError(
            f"{' and '.join(named) or 'nothing'} given to evaluate",
            fix="name one of --model NAME, --run DIR and --samples PATH",
        )
    if samples is not None:
        if reconstruction or write_npz or write_png:
            raise UserError("--reconstruction and --write-… need a model", fix="name it with --model")
        if protocol is None:
            raise UserError("--samples needs --protocol", fix="see: alignbench list protocols")
        job = jobs.plan_samples(
            samples,
            protocol=protocol,
            name=name,
            options=assignments,
            out=out,
            workers=workers,
            plugins=plugin,
        )
        _score(job, dry_run=dry_run, as_json=as_json)
        return
    if name:
        raise UserError("--name names images that are given", fix="leave it out")
    if run is not None:
        if out is not None:
            raise UserError(
                "--out changes nothing here: the results go into the run's folder", fix="leave it out"
            )
        _evaluate_run(run, protocol, reconstruction, assignments, workers, plugin, as_json)
        return
    assert model is not None
    if reconstruction:
        protocol = protocol or reconstruction_protocol(plugins.load_registry(plugin), model)
    planned = jobs.plan_evaluation(
        model,
        protocol=protocol,
        options=assignments,
        out=out,
        plugins=plugin,
        workers=workers,
        exports=tuple(kind for kind, wanted in {"npz": write_npz, "png": write_png}.items() if wanted),
    )
    if dry_run:
        show_plan(planned.plan, planned.plan.problems, as_json=as_json)
        raise typer.Exit(2 if planned.plan.problems else 0)
    refuse(planned.plan.id, planned.plan.problems)
    carry_out(planned, as_json=as_json)


def reconstruction_protocol(registry: Registry, model: str) -> str:
    """Return the protocol a model's tokenizer is judged by.

    Raises:
        UserError: its card names none.
    """
    found = registry.model(model).reconstruction
    if not found:
        raise UserError(
            f"the card of {model} names no reconstruction protocol", fix="name it with --protocol"
        )
    return found


def _score(job: jobs.SamplesJob, *, dry_run: bool, as_json: bool) -> None:
    made = job.plan
    lines = [
        f"plan {made.id}",
        f"  images     {len(made.images):,} of {made.images.title}",
        f"  evaluate   {made.protocol_name} @ {made.requirements.digest[7:15]}",
        *(f"  asset      {n} {a.path} sha256 {a.sha256[:12]}" for n, a in made.requirements.assets.items()),
    ]
    if dry_run:
        for line in [*lines, *problem_lines(made.problems)]:
            Console(soft_wrap=True).print(line, highlight=False, markup=False)
        raise typer.Exit(2 if made.problems else 0)
    refuse(made.id, made.problems)
    progress = jobs.default_progress()
    for line in lines:
        progress.say(line)
    record = jobs.score_samples(job, progress=progress)
    if not progress.quiet:
        show_record(record, job.registry, job.out, as_json=as_json)


def _evaluate_run(
    run: Path,
    protocol: str | None,
    reconstruction: bool,
    assignments: list[str],
    workers: int | None,
    plugin: list[Path],
    as_json: bool,
) -> None:
    if (protocol is None) == (not reconstruction):
        raise UserError(
            "--run needs one of --protocol NAME and --reconstruction", fix="see: alignbench list protocols"
        )
    from alignbench.record import read

    registry = plugins.load_registry(plugin)
    protocol = protocol or reconstruction_protocol(registry, read(run).model.name)
    progress = jobs.default_progress()
    record = jobs.evaluate(
        run=run, protocol=protocol, options=assignments, workers=workers, plugins=plugin, progress=progress
    )
    if not progress.quiet:
        show_record(record, registry, run, as_json=as_json)
