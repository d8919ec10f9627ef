"""`alignbench run`: resolve, plan, and carry the plan out."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from alignbench.cli.output import print_json
from alignbench.config import estimate
from alignbench.config import plan as planning
from alignbench.config.settings import resolve
from alignbench.distributed import is_first
from alignbench.errors import Problem, UserError
from alignbench.progress import Progress
from alignbench.registry import plugins
from alignbench.registry.lookup import Catalogue
from alignbench.run_folder import check_folder

if TYPE_CHECKING:
    from alignbench.record import RunRecord

DEFAULT_OUT = Path("runs")
PLUGIN_HELP = "Python file whose classes carry cards, or a folder of cards; repeatable."


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
    catalogue = plugins.catalogue(plugin)
    config = resolve(
        catalogue,
        method=method,
        model=model,
        dataset=data,
        recipe=recipe,
        protocol=protocol,
        assignments=assignments,
        steps=steps,
        seed=seed,
    )
    plan = planning.make_plan(catalogue, config, evaluates=evaluates)
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
        catalogue,
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
        show_record(record, catalogue, folder, as_json=as_json)


def default_workers(image_size: int) -> int:
    """Decoding threads: none where handing an image over costs more than decoding it."""
    return 0 if image_size <= 32 else min(8, os.cpu_count() or 1)


def refuse(plan: planning.Plan, problems: list[Problem]) -> None:
    """Stop before anything expensive if the plan has problems, naming all of them.

    Raises:
        UserError: exit status 2.
    """
    if problems:
        lines = problem_lines(problems)
        raise UserError(f"{plan.id} cannot run: " + "\n".join(lines))


def show_record(record: RunRecord, catalogue: Catalogue, folder: Path, *, as_json: bool) -> None:
    """Print the before/after table, or the record itself."""
    console = Console()
    if as_json:
        print_json(record.model_dump(mode="json", by_alias=True))
        return
    from alignbench.leaderboard import board, terminal

    for table in board.tables([record], catalogue.metric_facts(), assets=catalogue.asset_cards()):
        console.print(terminal.rich_table(table))
    files = [folder / name for name in ("report.md", "samples.png", "run.json")]
    console.print(" · ".join(str(file) for file in files if file.exists()), highlight=False, soft_wrap=True)


def show_plan(plan: planning.Plan, problems: list[Problem], *, as_json: bool) -> None:
    """Print a plan on standard output."""
    console = Console(soft_wrap=True)
    if as_json:
        values = {**plan.as_dict(), "problems": [vars(problem) for problem in problems]}
        print_json(values)
        return
    for line in [*plan_lines(plan), *problem_lines(problems)]:
        console.print(line, highlight=False, markup=False)


def plan_lines(plan: planning.Plan) -> list[str]:
    """The plan in at most twenty lines."""
    config, train = plan.config, plan.config.train
    recipe = f"recipe {config.recipe}" if config.recipe else "no recipe: the method's defaults"
    sequences = f" × {plan.sequences_per_image} sequences" if plan.sequences_per_image > 1 else ""
    lines = [
        f"plan {plan.id}   {recipe}",
        f"  model      {plan.model.title} · {plan.model.policy.parameters:,} parameters · "
        f"{plan.model.image_size} px, {plan.model.policy.tokens} tokens",
        f"  geometry   {train.images_per_step} images{sequences} per step · {plan.world_size} device"
        f"{'s' if plan.world_size > 1 else ''} · micro-batch {train.micro_batch} → {plan.accumulation} "
        f"accumulated · {train.steps} steps",
    ]
    for key, origin in config.changed().items():
        lines.append(f"  changed    {key} = {origin.value} ({origin.source})")
    if plan.random_weights:
        lines.append("  weights    random: engine check, never ranked")
    else:
        lines += [
            f"  weights    {role} {status.path if status.ok else status.expected} {'✓' if status.ok else '✗'}"
            for role, status in plan.weights.items()
        ]
    chosen = ", ".join(f"{key}={value}" for key, value in config.section("data").items() if value)
    lines.append(f"  data       {config.dataset}{f' ({chosen})' if chosen else ''} · seed {config.seed}")
    lines.append(f"  evaluate   {_evaluation(plan)}")
    gib = estimate.gib
    parts = ", ".join(f"{name} {gib(size)}" for name, size in plan.estimate.parts.items() if size)
    lines.append(
        f"  estimate   {gib(plan.estimate.train_gib)} GiB per device ({parts}) · "
        f"{gib(plan.estimate.disk_gib)} GiB disk"
    )
    return lines


def _evaluation(plan: planning.Plan) -> str:
    """What will be sampled and scored."""
    if not plan.evaluates:
        return "no"
    protocol = plan.protocol
    return (
        f"{plan.config.protocol} @ {plan.protocol_digest[7:15]}: {len(protocol.settings)} settings × "
        f"{len(protocol.seeds)} seeds × {protocol.samples:,} samples"
        f"{', before and after' if plan.method else ''}"
    )


def problem_lines(problems: list[Problem]) -> list[str]:
    """All problems, numbered, each with its remedy after an arrow."""
    if not problems:
        return []
    lines = [f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"]
    for number, problem in enumerate(problems, start=1):
        arrow = f" → {problem.fix}" if problem.fix else ""
        lines.append(f"  {number} {problem.where}: {problem.what}{arrow}")
    return lines
