"""`alignbench bench`: what a run costs on this machine, without making one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from alignbench import plan as planning
from alignbench import plugins
from alignbench.cli.output import print_json
from alignbench.cli.run import PLUGIN_HELP, default_workers, plan_lines, problem_lines, refuse
from alignbench.config import asset_options, complete_key, parse_assignments, resolve
from alignbench.court import make_court
from alignbench.errors import UserError, suggest
from alignbench.launch import is_first
from alignbench.problems import Problem
from alignbench.progress import Progress
from alignbench.registry.catalogue import Catalogue

if TYPE_CHECKING:
    from alignbench.bench import Timing

SYNTHETIC = {"class": "synthetic", "text": "synthetic-text"}
"""{condition: data set of random images}."""
WEIGHTS = "model.weights"


def bench(
    method: str | None = typer.Option(None, "--method", "-m", help="Time training steps of this method."),
    model: str | None = typer.Option(None, "--model", help="Time sampling from this model, or training it."),
    protocol: str | None = typer.Option(
        None, "--protocol", help="Time this protocol's evaluators; with --model: how to sample."
    ),
    data: str | None = typer.Option(None, "--data", help="Training images; default: random ones."),
    assignments: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="Change one value; repeatable. Weights are random unless set."
    ),
    repeats: int = typer.Option(3, "--repeats", min=1, help="Steps, or batches, that are timed."),
    images: int = typer.Option(256, "--images", min=8, help="Images that evaluators look at."),
    rows: int = typer.Option(0, "--rows", min=0, help="Rows that evaluators score; 0: none."),
    reference_rows: int = typer.Option(10_000, "--reference-rows", min=1, help="Rows they compare with."),
    plugin: list[Path] = typer.Option([], "--plugin", help=PLUGIN_HELP),
    as_json: bool = typer.Option(False, "--json", help="Print JSON, with versions and device."),
) -> None:
    """Time training steps (--method and --model), sampling (--model) or evaluators (--protocol)."""
    catalogue = plugins.catalogue(plugin)
    progress = Progress(quiet=not is_first())
    if model is None:
        if method is not None or protocol is None:
            raise UserError("nothing to time", fix="name --model, with or without --method, or --protocol")
        timings = _evaluators(catalogue, protocol, assignments, images, rows, reference_rows, progress)
    else:
        random = [] if any(text.startswith(f"{WEIGHTS}=") for text in assignments) else [f"{WEIGHTS}=random"]
        config = resolve(
            catalogue,
            method=method,
            model=model,
            dataset=data or SYNTHETIC[catalogue.model(model).condition],
            protocol=protocol,
            assignments=[*assignments, *random],
            steps=repeats + 1 if method else None,
        )
        plan = planning.make_plan(catalogue, config, evaluates=False)
        refuse(plan, plan.problems)
        for line in plan_lines(plan):
            progress.say(line)
        timings = _model(plan, catalogue, repeats, progress)
    if is_first():
        _show(timings, as_json=as_json)


def _model(plan: planning.Plan, catalogue: Catalogue, repeats: int, progress: Progress) -> list[Timing]:
    from alignbench import bench as timing

    if plan.method is None:
        return timing.time_sampling(plan, repeats=repeats, progress=progress)
    workers = default_workers(plan.model.image_size)
    return [timing.time_training(plan, catalogue, workers=workers, progress=progress)]


def _evaluators(
    catalogue: Catalogue,
    name: str,
    assignments: list[str],
    images: int,
    rows: int,
    reference_rows: int,
    progress: Progress,
) -> list[Timing]:
    known = asset_options(catalogue)
    given = {complete_key(key, known): text for key, text in parse_assignments(assignments).items()}
    for key in given:
        if key not in known:
            raise UserError(f"{key} changes nothing here.{suggest(key, known)}", fix="leave it out")
    paths = {key.removeprefix("assets."): text for key, text in given.items()}
    card = catalogue.protocol(name)
    if card.task == "reconstruction":
        raise UserError(
            f"{name} judges pairs of images, which are not made here", fix="name another protocol"
        )
    court = make_court(catalogue, name, card, paths)
    # No reference is read: rows are made.
    problems = [p for p in court.problems if not _is_reference(catalogue, p)]
    if problems:
        raise UserError(f"{name} cannot be timed: " + "\n".join(problem_lines(problems)))
    import torch

    from alignbench.bench_evaluators import time_evaluators

    return time_evaluators(
        court,
        catalogue,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        images=images,
        rows=rows,
        reference_rows=reference_rows,
        progress=progress,
    )


def _is_reference(catalogue: Catalogue, problem: Problem) -> bool:
    kind, _, asset = problem.where.partition("/")
    return kind == "assets" and catalogue.asset(asset).what == "reference"


def _show(timings: list[Timing], *, as_json: bool) -> None:
    if as_json:
        print_json([timing.as_dict() for timing in timings])
        return
    console = Console()
    for timing in timings:
        facts = ", ".join(f"{name} {value}" for name, value in timing.facts.items())
        table = Table(title=f"{timing.title}\n{facts}", title_justify="left", box=None)
        for heading in ("", "value", "unit", ""):
            table.add_column(heading, justify="right" if heading == "value" else "left")
        for figure in timing.figures:
            table.add_row(figure.name, f"{figure.value:.4g}", figure.unit, figure.note)
        console.print(table)
