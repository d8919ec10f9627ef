"""`alignbench run`: resolve, plan, and carry the plan out."""

from __future__ import annotations

from pathlib import Path

import typer

from alignbench.cli.common import PLUGIN_HELP, carry_out, show_plan
from alignbench.commands.jobs import plan
from alignbench.config import estimate
from alignbench.errors import UserError, refuse
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
    job = plan(
        method,
        model,
        data=data,
        recipe=recipe,
        protocol=protocol,
        seed=seed,
        steps=steps,
        options=assignments,
        evaluates=evaluates,
        out=out,
        plugins=plugin,
        workers=workers,
        checkpoint_every=checkpoint_every,
    )
    disk = estimate.disk_problem(job.out, job.plan.estimate.disk_gib)
    problems = [*job.plan.problems, *filter(None, [disk])]
    if dry_run:
        show_plan(job.plan, problems, as_json=as_json)
        raise typer.Exit(2 if problems else 0)
    refuse(job.plan.id, problems)
    check_folder(job.out, job.plan)
    if not resume and job.out.exists() and any(job.out.iterdir()):
        raise UserError(f"{job.out} already holds this run", fix="leave --no-resume away, or choose --out")
    carry_out(job, as_json=as_json)
