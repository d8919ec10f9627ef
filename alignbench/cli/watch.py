"""`alignbench watch`: what runs are doing, live."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from alignbench.cli.common import print_json, put
from alignbench.cli.options import Json
from alignbench.commands.watch import RunView, StageProgress, Watched, exit_status, watched
from alignbench.text import NO_BREAK, visible, wrapped

INTERVAL = 1.0
"""Seconds between two looks."""
LINGER = 3.0
"""Seconds for which nothing works before the command ends: a sweep may start its next run."""
BLOCKS, LETTERS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
"""Levels of a sparkline, and those of outputs whose encoding lacks the first."""
FULL, ASCII_FULL = ("█", "░"), ("#", ".")
STYLES = {"running": "cyan", "starting": "cyan", "complete": "green", "interrupted": "yellow"}
NUMBERS = 8
"""Numbers of the last step that are shown."""


def watch(
    *,
    runs: list[Path] = typer.Argument(..., help="Run folders, or folders of runs."),
    once: bool = typer.Option(False, "--once", help="Print what is now and end."),
    as_json: Json = False,
) -> None:
    """Follow runs from another terminal: stages, numbers, warnings; it only reads."""
    console = Console()
    known: dict[Path, Watched] = {}

    def look(*, wait: bool) -> list[RunView]:
        return [known.setdefault(folder, Watched(folder)).look() for folder in watched(runs, wait=wait)]

    if once or as_json or not console.is_terminal:
        views = look(wait=False)
        if as_json:
            print_json([view.as_dict() for view in views])
        else:
            put(*(line for view in views for line in lines_of(view, console.width, console.encoding)))
        raise typer.Exit(exit_status(views))
    try:
        views = look(wait=True)
        with Live(console=console, auto_refresh=False) as live:
            ended = None
            while ended is None or time.monotonic() - ended < LINGER:
                views = look(wait=True)
                live.update(Group(*(_coloured(view, console) for view in views)), refresh=True)
                ended = (ended or time.monotonic()) if all(view.over for view in views) else None
                time.sleep(INTERVAL)
    except KeyboardInterrupt:
        return  # whoever looks away has not interrupted anything
    raise typer.Exit(exit_status(views))


def lines_of(view: RunView, width: int, encoding: str) -> list[str]:
    """Return a run as lines that an encoding has; `width` decides how long the sparkline is."""
    unicode = _has(encoding, BLOCKS + "".join(FULL) + "·…")
    dot = " · " if unicode else ", "
    doing = f"{dot}{view.doing}" if view.doing else ""
    rows = [(view.id or view.folder.name, f"{view.state}{doing}"), ("  folder", str(view.folder))]
    rows += [(f"  {stage.name}", _stage(stage, unicode, dot)) for stage in view.stages]
    if view.numbers:
        ordered = sorted(view.numbers.items(), key=lambda item: item[0] not in ("reward", "loss"))
        shown = [f"{name}{NO_BREAK}{'-' if value is None else f'{value:.4g}'}" for name, value in ordered]
        rows.append((f"  step {view.step}", dot.join(shown[:NUMBERS])))
    if view.values:
        room = max(width - 50, 10)
        ends = f"{min(view.values):.4g} to {max(view.values):.4g}"
        rows.append((f"  {view.series}", f"{sparkline(view.values, room, unicode=unicode)}  {ends}"))
    for process in view.processes:
        text = f"{process.pid} on {process.host}{dot}{process.doing}, {process.age:.0f} s ago"
        rows.append((f"  process {process.rank}", text))
    rows += [("  warning", warning) for warning in view.warnings]
    column = max(len(name) for name, _ in rows[1:]) + 2
    (title, state), *others = [(visible(name), visible(text)) for name, text in rows]
    lines = [f"{title}  {state}"]
    for name, text in others:
        lines += wrapped(text, width, " " * (column + 2), f"{name.ljust(column)}  ")
    return lines


def sparkline(values: Sequence[float], width: int, *, unicode: bool = True) -> str:
    """Draw values as at most `width` characters, each the mean of as many neighbours, low to high."""
    levels = BLOCKS if unicode else LETTERS
    count = min(width, len(values))
    edges = [len(values) * number // count for number in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(levels[round((mean - low) / span * 7) if span else 3] for mean in means)


def _stage(stage: StageProgress, unicode: bool, dot: str) -> str:
    if stage.total is None:
        return "to come"
    full, empty = FULL if unicode else ASCII_FULL
    filled = 20 * stage.done // max(stage.total, 1)
    left = "" if stage.seconds_left is None else f"{dot}{_time(stage.seconds_left)} left"
    return f"{full * filled}{empty * (20 - filled)} {stage.done}/{stage.total}{left}"


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    )


def _coloured(view: RunView, console: Console) -> Text:
    first, *others = lines_of(view, console.width, console.encoding)
    text = Text(f"{first}\n", style=f"bold {STYLES.get(view.state, 'red')}", overflow="fold")
    style = "not bold default"
    for line in others:
        if line[2:3].strip():  # not the rest of the row before
            style = "not bold red" if line.startswith("  warning") else "not bold default"
        text.append(f"{line}\n", style=style)
    return text


def _has(encoding: str, characters: str) -> bool:
    try:
        characters.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
