"""Options, tables and messages that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from alignbench.commands.jobs import default_progress, run
from alignbench.config import estimate
from alignbench.config.plan import Job, Plan
from alignbench.errors import Problem, problem_lines
from alignbench.registry.lookup import Registry

if TYPE_CHECKING:
    from alignbench.record import RunRecord


PLUGIN_HELP = "Python file whose classes carry cards, or a folder of cards; repeatable."


def show_record(record: RunRecord, registry: Registry, folder: Path, *, as_json: bool) -> None:
    """Print the before/after table, or the record itself."""
    console = Console()
    if as_json:
        print_json(record.model_dump(mode="json", by_alias=True))
        return
    from alignbench.leaderboard import board, terminal

    for table in board.tables([record], registry.metric_facts(), assets=registry.asset_cards()):
        console.print(terminal.rich_table(table))
    files = [folder / name for name in ("report.md", "samples.png", "run.json")]
    console.print(" · ".join(str(file) for file in files if file.exists()), highlight=False, soft_wrap=True)


def carry_out(job: Job, *, as_json: bool) -> None:
    """Run a job and print its plan before and its results after."""
    progress = default_progress()
    for line in plan_lines(job.plan):
        progress.say(line)
    record = run(job, progress=progress)
    if not progress.quiet:
        show_record(record, job.registry, job.out, as_json=as_json)


def show_plan(plan: Plan, problems: list[Problem], *, as_json: bool) -> None:
    """Print a plan on standard output."""
    console = Console(soft_wrap=True)
    if as_json:
        values = {**plan.as_dict(), "problems": [vars(problem) for problem in problems]}
        print_json(values)
        return
    for line in [*plan_lines(plan), *problem_lines(problems)]:
        console.print(line, highlight=False, markup=False)


def plan_lines(plan: Plan) -> list[str]:
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


def _evaluation(plan: Plan) -> str:
    """What will be sampled and scored."""
    if not plan.evaluates:
        return "no"
    protocol = plan.protocol
    return (
        f"{plan.config.protocol} @ {plan.protocol_digest[7:15]}: {len(protocol.settings)} settings × "
        f"{len(protocol.seeds)} seeds × {protocol.samples:,} samples"
        f"{', before and after' if plan.method else ''}"
    )


def print_json(value: Any) -> None:
    """Print plain data as JSON that any reader takes.

    Characters that the output's encoding lacks are escaped, and numbers that JSON lacks are null.
    """
    console = Console()
    strict = json.loads(json.dumps(value), parse_constant=lambda name: None)
    console.print_json(data=strict, highlight=False, ensure_ascii=not console.encoding.startswith("utf"))
