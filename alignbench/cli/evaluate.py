"""`alignbench evaluate` and `alignbench sample`: a model as it is, or a finished run's export."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import typer
from rich.console import Console

from alignbench.cli.common import (
    DEFAULT_OUT,
    PLUGIN_HELP,
    default_workers,
    only,
    plan_lines,
    problem_lines,
    refuse,
    show_plan,
    show_record,
)
from alignbench.config import plan as planning
from alignbench.config.settings import changes_nothing, resolve
from alignbench.distributed import is_first
from alignbench.errors import UserError
from alignbench.progress import Progress
from alignbench.registry import plugins
from alignbench.registry.lookup import Registry
from alignbench.run_folder import check_folder


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
        False, "--reconstruction", help="Judge the tokenizer: the model's reconstruction protocol."
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
        _evaluate_samples(samples, protocol, name, assignments, out, workers, plugin, dry_run, as_json)
        return
    if name:
        raise UserError("--name names images that are given", fix="leave it out")
    registry = plugins.load_registry(plugin)
    if run is not None:
        _evaluate_run(run, registry, protocol, reconstruction, assignments, out, workers, as_json)
        return
    assert model is not None
    if reconstruction:
        protocol = protocol or reconstruction_protocol(registry, model)
    config = resolve(
        registry,
        method=None,
        model=model,
        dataset=_reconstructed(registry, protocol),
        protocol=protocol,
        assignments=assignments,
    )
    only(config, "model", "protocol", "assets", "data")
    plan = planning.make_plan(registry, config)
    if dry_run:
        show_plan(plan, plan.problems, as_json=as_json)
        raise typer.Exit(2 if plan.problems else 0)
    refuse(plan, plan.problems)
    folder = out or DEFAULT_OUT / plan.id
    check_folder(folder, plan)
    from alignbench.config.plan import Job
    from alignbench.runs import run as runner

    job = Job(
        plan,
        registry,
        folder,
        command=shlex.join(["alignbench", *sys.argv[1:]]),
        workers=default_workers(plan.protocol.image_size) if workers is None else workers,
        exports=tuple(kind for kind, wanted in {"npz": write_npz, "png": write_png}.items() if wanted),
    )
    progress = Progress(quiet=not is_first())
    for line in plan_lines(plan):
        progress.say(line)
    record = runner.run(job, progress)
    if not progress.quiet:
        show_record(record, registry, folder, as_json=as_json)


def _reconstructed(registry: Registry, protocol: str | None) -> str | None:
    """The data set whose images a reconstruction protocol takes: its options can be set."""
    card = registry.protocol(protocol) if protocol else None
    if card is None or card.task != "reconstruction" or card.reference is None:
        return None
    return card.reference.dataset


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


def _evaluate_samples(
    samples: Path,
    protocol: str | None,
    name: str,
    assignments: list[str],
    out: Path | None,
    workers: int | None,
    plugin: list[Path],
    dry_run: bool,
    as_json: bool,
) -> None:
    from alignbench.runs import evaluate_samples

    if protocol is None:
        raise UserError("--samples needs --protocol", fix="see: alignbench list protocols")
    registry = plugins.load_registry(plugin)
    threads = default_workers(registry.protocol(protocol).image_size) if workers is None else workers
    plan = evaluate_samples.make_given_plan(
        registry,
        samples,
        protocol=protocol,
        title=name or samples.resolve().stem,
        assignments=assignments,
        workers=threads,
    )
    lines = [
        f"plan {plan.id}",
        f"  images     {len(plan.images):,} of {plan.images.title}",
        f"  evaluate   {protocol} @ {plan.requirements.digest[7:15]}",
        *(f"  asset      {n} {a.path} sha256 {a.sha256[:12]}" for n, a in plan.requirements.assets.items()),
    ]
    if dry_run:
        for line in [*lines, *problem_lines(plan.problems)]:
            Console(soft_wrap=True).print(line, highlight=False, markup=False)
        raise typer.Exit(2 if plan.problems else 0)
    if plan.problems:
        raise UserError(f"{plan.id} cannot run: " + "\n".join(problem_lines(plan.problems)))
    progress = Progress(quiet=not is_first())
    for line in lines:
        progress.say(line)
    folder = out or DEFAULT_OUT / plan.id
    command = shlex.join(["alignbench", *sys.argv[1:]])
    record = evaluate_samples.score(
        plan, registry, folder, command=command, workers=threads, progress=progress
    )
    if not progress.quiet:
        show_record(record, registry, folder, as_json=as_json)


def _evaluate_run(
    run: Path,
    registry: Registry,
    protocol: str | None,
    reconstruction: bool,
    assignments: list[str],
    out: Path | None,
    workers: int | None,
    as_json: bool,
) -> None:
    if out is not None:
        raise changes_nothing("--out", why="the results go into the run's folder")
    if (protocol is None) == (not reconstruction):
        raise UserError(
            "--run needs one of --protocol NAME and --reconstruction", fix="see: alignbench list protocols"
        )
    from alignbench.record import read
    from alignbench.runs import evaluate_run

    protocol = protocol or reconstruction_protocol(registry, read(run).model.name)
    if workers is None:
        workers = default_workers(registry.protocol(protocol).image_size)
    progress = Progress(quiet=not is_first())
    record = evaluate_run.evaluate_run(
        run, registry, protocol=protocol, assignments=assignments, workers=workers, progress=progress
    )
    if not progress.quiet:
        show_record(record, registry, run, as_json=as_json)
