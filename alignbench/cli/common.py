"""What several commands print, and how."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console

from alignbench.commands.jobs import default_progress
from alignbench.config import estimate
from alignbench.config.adapter import lora_line
from alignbench.config.plan import Plan
from alignbench.errors import EXIT_FAILED, Problem, UserError, problem_lines
from alignbench.registry.lookup import Registry
from alignbench.text import class_line, visible, visible_json, wrapped

if TYPE_CHECKING:
    from alignbench.record import RunRecord


def put(*lines: object, stderr: bool = False) -> None:
    """Print lines on standard output, or on standard error, as they are."""
    console = Console(soft_wrap=True, stderr=stderr)
    for line in lines:
        console.print(visible(str(line)), highlight=False, markup=False)


@contextlib.contextmanager
def leaving_out() -> Iterator[Callable[[UserError], None]]:
    """Give a function that names a record which cannot be read; the block does the rest without it.

    Raises:
        UserError: after the block, if there was one (exit status 1).
    """
    told = []

    def tell(error: UserError) -> None:
        told.append(error)
        put(f"left out: {error}", stderr=True)

    yield tell
    if told:
        what = f"{len(told)} record{'s' if len(told) > 1 else ''} left out, named above; the rest was done"
        raise UserError(what, fix="mend or remove what was named", exit_code=EXIT_FAILED)


def folded(text: str, indent: str = "", first: str | None = None) -> list[str]:
    """Break a text at spaces for this terminal; see `text.wrapped`."""
    return wrapped(text, Console().width, indent, first)


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
    from alignbench.leaderboard.warnings import warnings_of_run

    cards = registry.metric_facts(), registry.asset_cards()
    evaluated = board.build([record], cards[0], assets=cards[1], sift=False).tables
    for table in evaluated:
        Console().print(terminal.rich_table(table))
    Console().print(terminal.rich_warnings(warnings_of_run(record, evaluated)), end="")
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
    """The plan in at most twenty lines, longer ones broken at spaces."""
    return [part for line in _plan_lines(plan) for part in folded(line, " " * 13, "")]


def _plan_lines(plan: Plan) -> list[str]:
    config, train, protocol, gib = plan.config, plan.config.train, plan.protocol, estimate.gib
    recipe = f"recipe {config.recipe}" if config.recipe else "no recipe: the method's defaults"
    recipe = recipe if plan.method else "nothing is trained"
    sequences = f" × {plan.sequences_per_image} sequences" if plan.sequences_per_image > 1 else ""
    lines = [
        f"plan {plan.id}   {recipe}",
        f"  model      {plan.model.title} · {plan.model.policy.parameters:,} parameters · "
        f"{plan.model.image_size} px, {plan.model.policy.tokens} tokens",
    ]
    if plan.method:
        lines.append(
            f"  geometry   {train.images_per_step} images{sequences} per step · "
            f"{counted(plan.world_size, 'device')} · micro-batch {train.micro_batch} → "
            f"{plan.accumulation} accumulated · {counted(train.steps, 'step')}"
        )
    if plan.lora:
        lines.append(f"  adapter    {lora_line(plan.lora, plan.model.policy.parameters)}")
    for key, origin in config.changed().items():
        lines.append(f"  changed    {key} = {origin.value} ({origin.source})")
    if plan.random_weights:
        lines.append("  weights    random: engine check, never ranked")
    else:
        lines += [
            f"  weights    {role} {'✓' if status.ok else '✗'} {status.path if status.ok else status.expected}"
            for role, status in plan.weights.items()
        ]
    chosen = ", ".join(f"{key}={value}" for key, value in config.section("data").items() if value)
    evaluation = (
        f"{config.protocol} @ {plan.protocol_digest[7:15]}: {counted(len(protocol.settings), 'setting')} × "
        f"{counted(len(protocol.seeds), 'seed')} × {protocol.samples:,} samples"
        f"{', before and after' if plan.method else ''}"
    )
    parts = ", ".join(f"{name} {gib(size)}" for name, size in plan.estimate.parts.items() if size)
    training = f"{gib(plan.estimate.train_gib)} GiB per device ({parts}) · " if plan.method else ""
    if copy := plan.snapshot_gib:
        training += f"{gib(copy)} GiB of host memory for the copy that checkpoints are written from · "
    return [
        *lines,
        f"  data       {config.dataset}{f' ({chosen})' if chosen else ''} · seed {config.seed}",
        *([f"  classes    {class_line(plan.classes)}"] if plan.classes else []),
        f"  evaluate   {evaluation if plan.evaluates else 'no'}",
        f"  estimate   {training}{gib(plan.estimate.disk_gib)} GiB disk",
    ]


def counted(count: int, name: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def print_json(value: Any) -> None:
    """Print plain data as JSON that any reader takes.

    Characters that the output's encoding lacks are escaped, and numbers that JSON lacks are null.
    """
    console = Console()
    strict = json.loads(json.dumps(value), parse_constant=lambda name: None)
    text = json.dumps(strict, indent=2, ensure_ascii=not console.encoding.startswith("utf"))
    console.print(visible_json(text), highlight=False, markup=False, soft_wrap=True)
