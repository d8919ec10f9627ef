"""What several commands print, and how."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console

from alignbench.commands.jobs import default_progress
from alignbench.config import estimate
from alignbench.config.adapter import lora_line
from alignbench.config.plan import Plan
from alignbench.errors import Problem, problem_lines
from alignbench.registry.lookup import Registry
from alignbench.text import class_line, visible

if TYPE_CHECKING:
    from alignbench.record import RunRecord


def put(*lines: object) -> None:
    """Print lines on standard output as they are."""
    console = Console(soft_wrap=True)
    for line in lines:
        console.print(visible(str(line)), highlight=False, markup=False)


def carry_out(
    lines: Iterable[str], work: Callable[..., RunRecord], registry: Registry, folder: Path, *, as_json: bool
) -> None:
    """Say in lines what will be done, do it, and print the before/after table, or the record itself."""
    progress = default_progress()
    for line in lines:
        progress.say(line)
    record = work(progress=progress)
    if progress.quiet:
        return
    if as_json:
        print_json(record.model_dump(mode="json", by_alias=True))
        return
    from alignbench.leaderboard import board, terminal

    cards = registry.metric_facts(), registry.asset_cards()
    for table in board.build([record], cards[0], assets=cards[1], sift=False).tables:
        Console().print(terminal.rich_table(table))
    files = [folder / name for name in ("report.md", "samples.png", "run.json")]
    put(" · ".join(str(file) for file in files if file.exists()))


def leave(lines: Iterable[str], problems: Sequence[Problem], *, plan: Plan | None = None) -> NoReturn:
    """Print a plan, as JSON where it is given, and end with status 2 if it has problems."""
    if plan is None:
        put(*lines, *problem_lines(problems))
    else:
        print_json({**plan.as_dict(), "problems": [vars(problem) for problem in problems]})
    raise typer.Exit(2 if problems else 0)


def plan_lines(plan: Plan) -> list[str]:
    """The plan in at most twenty lines."""
    config, train, protocol, gib = plan.config, plan.config.train, plan.protocol, estimate.gib
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
    if plan.lora:
        lines.append(f"  adapter    {lora_line(plan.lora, plan.model.policy.parameters)}")
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
    evaluation = (
        f"{config.protocol} @ {plan.protocol_digest[7:15]}: {len(protocol.settings)} settings × "
        f"{len(protocol.seeds)} seeds × {protocol.samples:,} samples"
        f"{', before and after' if plan.method else ''}"
    )
    parts = ", ".join(f"{name} {gib(size)}" for name, size in plan.estimate.parts.items() if size)
    return [
        *lines,
        f"  data       {config.dataset}{f' ({chosen})' if chosen else ''} · seed {config.seed}",
        *([f"  classes    {class_line(plan.classes)}"] if plan.classes else []),
        f"  evaluate   {evaluation if plan.evaluates else 'no'}",
        f"  estimate   {gib(plan.estimate.train_gib)} GiB per device ({parts}) · "
        f"{gib(plan.estimate.disk_gib)} GiB disk",
    ]


def print_json(value: Any) -> None:
    """Print plain data as JSON that any reader takes.

    Characters that the output's encoding lacks are escaped, and numbers that JSON lacks are null.
    """
    console = Console()
    strict = json.loads(json.dumps(value), parse_constant=lambda name: None)
    console.print_json(data=strict, highlight=False, ensure_ascii=not console.encoding.startswith("utf"))
