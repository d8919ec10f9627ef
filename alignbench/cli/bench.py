"""`alignbench bench`: what a run costs on this machine, without making one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from alignbench.cli.common import folded, plan_lines, print_json, put
from alignbench.cli.options import DATA, METHODS, MODELS, PROTOCOLS, Plugins, changes
from alignbench.commands.jobs import default_progress
from alignbench.config.plan import Plan, default_workers, make_plan
from alignbench.config.requirements import requirements_of
from alignbench.config.settings import Origin, changes_nothing, known_options, resolve, values_of
from alignbench.errors import Problem, UserError, problem_lines, refuse
from alignbench.hub.verify import Requirements
from alignbench.progress import Progress
from alignbench.registry import plugins
from alignbench.registry.lookup import Registry

if TYPE_CHECKING:
    from alignbench.runs.bench import Timing

SYNTHETIC = {"class": "synthetic", "text": "synthetic-text"}
"""{condition: data set of random images}."""
RANDOM = "model.weights=random"


def bench(
    *,
    method: str | None = typer.Option(
        None, "--method", "-m", help="Time training steps of this method.", autocompletion=METHODS
    ),
    model: str | None = typer.Option(
        None, "--model", help="Time sampling from this model, or training it.", autocompletion=MODELS
    ),
    protocol: str | None = typer.Option(
        None,
        "--protocol",
        help="Time this protocol's evaluators; with --model: how to sample.",
        autocompletion=PROTOCOLS,
    ),
    data: str | None = typer.Option(
        None, "--data", help="Training images; default: random ones.", autocompletion=DATA
    ),
    assignments: Annotated[
        list[str], changes("Change one value; repeatable. Weights are random unless set.")
    ],
    repeats: int | None = typer.Option(
        None, "--repeats", min=1, help="Steps, or batches, that are timed; default: 3."
    ),
    images: int | None = typer.Option(
        None, "--images", min=8, help="Images that evaluators look at; default: 256."
    ),
    rows: int | None = typer.Option(
        None, "--rows", min=1, help="Rows that evaluators score; default: scoring is not timed."
    ),
    reference_rows: int | None = typer.Option(
        None, "--reference-rows", min=1, help="Rows they compare with; default: 10,000."
    ),
    plugin: Plugins,
    as_json: bool = typer.Option(False, "--json", help="Print JSON, with versions and device."),
) -> None:
    """Time training steps (--method and --model), sampling (--model) or evaluators (--protocol)."""
    registry = plugins.load_registry(plugin)
    progress = default_progress()
    sizes = {"--images": images, "--rows": rows, "--reference-rows": reference_rows}
    if model is not None:
        unread = {"--protocol": protocol} if method else {"--data": data}
        _refuse_given("training steps are timed" if method else "sampling is timed", {**unread, **sizes})
        plan = _plan(registry, method, model, protocol, data, assignments, repeats or 3)
        progress.say("\n".join(plan_lines(plan)))
        from alignbench.runs.bench import time_sampling, time_training

        if method is None:
            timings = time_sampling(plan, registry, repeats=repeats or 3, progress=progress)
        else:
            workers = default_workers(plan.model.image_size)
            timings = [time_training(plan, registry, workers=workers, progress=progress)]
    elif method is None and protocol is not None:
        _refuse_given("evaluators are timed", {"--data": data, "--repeats": repeats})
        counts = {"images": images or 256, "rows": rows or 0, "reference_rows": reference_rows or 10_000}
        timings = _time_evaluators(registry, protocol, assignments, counts, progress)
    else:
        raise UserError("nothing to time", fix="name --model, with or without --method, or --protocol")
    if not progress.quiet:
        _show(timings, as_json=as_json)


def _time_evaluators(
    registry: Registry, protocol: str, assignments: list[str], counts: dict[str, int], progress: Progress
) -> list[Timing]:
    needed = _requirements(registry, protocol, assignments)
    from alignbench.runs.bench_evaluators import time_evaluators

    return time_evaluators(needed, registry, **counts, progress=progress)


def _refuse_given(what: str, options: dict[str, object]) -> None:
    """Refuse options that nothing would read, naming the first one."""
    for name, value in options.items():
        if value is not None:
            raise UserError(f"{name} changes nothing where {what}", fix="leave it out")


def _plan(
    registry: Registry,
    method: str | None,
    model: str,
    protocol: str | None,
    data: str | None,
    assignments: list[str],
    repeats: int,
) -> Plan:
    """Resolve what is to be timed; random weights go first, so that whatever is given counts."""
    config = resolve(
        registry,
        method=method,
        model=model,
        dataset=data or SYNTHETIC[registry.model(model).condition],
        protocol=protocol,
        assignments=[RANDOM, *assignments],
    )
    if "train.steps" in config.changed():
        raise changes_nothing("train.steps", fix="--repeats N takes N steps and one before them")
    if method is not None:
        steps = Origin(repeats + 1, "--repeats")
        config = replace(config, values={**config.values, "train.steps": steps})
    plan = make_plan(registry, config, evaluates=False)
    problems = list(plan.problems)
    if plan.protocol.condition != plan.model.condition or plan.protocol.task != "generation":
        where = f"protocol {plan.config.protocol}"
        problems.append(Problem(where, f"generates nothing from {model}", "choose another with --protocol"))
    refuse(plan.id, problems)
    return plan


def _requirements(registry: Registry, name: str, assignments: list[str]) -> Requirements:
    """Find what a protocol's evaluators need; no reference is read: rows are made."""
    values = values_of(assignments, known_options(registry, sections=["assets"]))
    paths = {key.removeprefix("assets."): path for key, path in values.items()}
    card = registry.protocol(name)
    if card.task == "reconstruction":
        raise UserError(
            f"{name} judges pairs of images, which are not made here", fix="name another protocol"
        )
    requirements = requirements_of(registry, name, card, paths)
    problems = [p for p in requirements.problems if not _is_reference(registry, p)]
    if problems:
        raise UserError(f"{name} cannot be timed: " + "\n".join(problem_lines(problems)))
    return requirements


def _is_reference(registry: Registry, problem: Problem) -> bool:
    kind, _, asset = problem.where.partition("/")
    return kind == "assets" and registry.asset(asset).what == "reference"


def _show(timings: list[Timing], *, as_json: bool) -> None:
    if as_json:
        print_json([timing.as_dict() for timing in timings])
        return
    console = Console()
    for timing in timings:
        facts = ", ".join(f"{name} {value}" for name, value in timing.facts.items())
        put(*folded(timing.title), *folded(facts))
        table = Table(box=None, pad_edge=False)
        for heading in ("", "value", "unit", ""):
            table.add_column(heading, justify="right" if heading == "value" else "left")
        for figure in timing.figures:
            table.add_row(figure.name, f"{figure.value:.4g}", figure.unit, figure.note)
        console.print(table)
