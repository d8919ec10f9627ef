"""`alignbench run`: resolve, plan, and carry the plan out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from alignbench.cli import options
from alignbench.cli.common import carry_out, leave, plan_lines
from alignbench.commands import jobs
from alignbench.commands.launch import in_processes
from alignbench.config import estimate
from alignbench.config.plan import Job, Plan
from alignbench.config.scale import scale
from alignbench.errors import UserError, refuse
from alignbench.run_folder import check_folder


def run(
    *,
    method: str = typer.Option(
        ..., "--method", "-m", help="Method to train with; see: list methods.", autocompletion=options.METHODS
    ),
    model: str = typer.Option(
        ..., "--model", help="Model to start from; see: list models.", autocompletion=options.MODELS
    ),
    data: str | None = typer.Option(
        None, "--data", help="Data set; default: the model's.", autocompletion=options.DATA
    ),
    recipe: options.Recipe = None,
    protocol: options.Protocol = None,
    assignments: Annotated[list[str], options.changes("Change one value; repeatable.")],
    seed: int = typer.Option(0, "--seed", help="Training seed."),
    steps: int | None = typer.Option(None, "--steps", help="Optimiser steps; same as --set train.steps."),
    out: options.Out = None,
    resume: bool = typer.Option(
        True, "--resume/--no-resume", help="Continue an interrupted run of the same plan (the default)."
    ),
    evaluates: bool = typer.Option(True, "--eval/--no-eval", help="Evaluate before and after."),
    checkpoint_every: int = typer.Option(20, "--checkpoint-every", min=1, help="Steps between checkpoints."),
    workers: int | None = typer.Option(
        None, "--workers", min=0, help="Threads that decode images; default: none for tiny images, up to 8."
    ),
    trackers: options.Trackers,
    grid_every: options.GridEvery = 0,
    log_samples: options.LogSamples = False,
    log_shown: options.Shown = 32,
    plugin: options.Plugins,
    nproc: options.Nproc = None,
    nodes: options.Nodes = None,
    bench: options.Bench = None,
    dry_run: options.DryRun = False,
    as_json: options.RecordJson = False,
) -> None:
    """Post-train a model with a method, evaluate it before and after, and write the run folder."""
    if not dry_run:
        _start(nproc, nodes, bench)
    job = jobs.plan(
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
        track=trackers,
        grid_every=grid_every,
        log_samples=log_shown if log_samples else 0,
    )
    _do(job, _lines(job.plan, nodes, nproc, bench), resume=resume, dry_run=dry_run, as_json=as_json)


def _lines(plan: Plan, nodes: int | None, nproc: int | None, bench: Path | None) -> list[str]:
    return scale(plan, nodes or 1, nproc or 1, bench=bench) if nodes or nproc else plan_lines(plan)


def _do(job: Job, lines: list[str], *, resume: bool, dry_run: bool, as_json: bool) -> None:
    disk = estimate.disk_problem(job.out, job.plan.estimate.disk_gib)
    problems = [*job.problems, *filter(None, [disk])]
    if dry_run:
        leave(lines, problems, plan=job.plan if as_json else None)
    refuse(job.plan.id, problems)
    check_folder(job.out, job.plan)
    if not resume and job.out.exists() and any(job.out.iterdir()):
        raise UserError(f"{job.out} already holds this run", fix="leave --no-resume away, or choose --out")
    carry_out(lines, partial(jobs.run, job), job.registry, job.out, as_json=as_json)


def _start(nproc: int | None, nodes: int | None, bench: Path | None) -> None:
    """Start processes where that was asked; refuse what only `--dry-run` reads."""
    if nodes is not None or bench is not None:
        raise UserError("--nodes and --bench only plan", fix="add --dry-run; to start, see docs/launch.md")
    in_processes(nproc)
