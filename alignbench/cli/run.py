"""`alignbench run`: resolve, plan, and carry the plan out."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import typer

from alignbench.cli.common import (
    DEFAULT_OUT,
    PLUGIN_HELP,
    default_workers,
    plan_lines,
    refuse,
    show_plan,
    show_record,
)
from alignbench.config import estimate
from alignbench.config import plan as planning
from alignbench.config.settings import resolve
from alignbench.distributed import is_first
from alignbench.errors import UserError
from alignbench.progress import Progress
from alignbench.registry import plugins
from alignbench.run_folder import check_folder


def run(
    method: str = typer.Option(..., "--method", "-m", help="Method to train with; see: list methods."),
    model: str = typer.Option(..., "--model", help="Model to start from; see: list models."),
    data: str | None = typer.Option(None, "--data", help="Data set; default: the model's."),
    recipe: str | None = typer.Option(
        None, "--recipe", help="Recipe; default: the one for method and model."
    ),
    protocol: str | None = typer.Option(None, "--protocol", help="Protocol; default: the model's."),
    assignments: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="Change one value; repeatable."
    ),
    seed: int = typer.Option(0, "--seed", help="Training seed."),
    steps: int | None = typer.Option(None, "--steps", help="Optimiser steps; same as --set train.steps."),
    out: Path | None = typer.Option(None, "--out", help="Run folder; default: runs/<id>."),
    resume: bool = typer.Option(
        True, "--resume/--no-resume", help="Continue an interrupted run of the same plan (the default)."
    ),
    evaluates: bool = typer.Option(True, "--eval/--no-eval", help="Evaluate before and after."),
    checkpoint_every: int = typer.Option(20, "--checkpoint-every", min=1, help="Steps between checkpoints."),
    workers: int | None = typer.Option(
        None, "--workers", min=0, help="Threads that decode images; default: none for tiny images, up to 8."
    ),
    plugin: list[Path] = typer.Option([], "--plugin", help=PLUGIN_HELP),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the plan and stop."),
    as_json: bool = typer.Option(False, "--json", help="Print the plan or the record as JSON."),
) -> None:
    """Post-train a model with a method, evaluate it before and after, and write the run folder."""
    registry = plugins.load_registry(plugin)
    config = resolve(
        registry,
        method=method,
        model=model,
        dataset=data,
        recipe=recipe,
        protocol=protocol,
        assignments=assignments,
        steps=steps,
        seed=seed,
    )
    plan = planning.make_plan(registry, config, evaluates=evaluates)
    folder = out or DEFAULT_OUT / plan.id
    problems = [*plan.problems, *filter(None, [estimate.disk_problem(folder, plan.estimate.disk_gib)])]
    if dry_run:
        show_plan(plan, problems, as_json=as_json)
        raise typer.Exit(2 if problems else 0)
    refuse(plan, problems)
    check_folder(folder, plan)
    if not resume and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} already holds this run", fix="leave --no-resume away, or choose --out")
    from alignbench.config.plan import Job
    from alignbench.runs import run as runner

    job = Job(
        plan,
        registry,
        folder,
        command=shlex.join(["alignbench", *sys.argv[1:]]),
        checkpoint_every=checkpoint_every,
        workers=default_workers(plan.model.image_size) if workers is None else workers,
    )
    progress = Progress(quiet=not is_first())
    for line in plan_lines(plan):
        progress.say(line)
    record = runner.run(job, progress)
    if not progress.quiet:
        show_record(record, registry, folder, as_json=as_json)
