"""`alignbench sweep`: a grid of ordinary runs, and one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from alignbench.cli.common import leave, put
from alignbench.cli.options import Plugins, card_names, changes
from alignbench.config import estimate
from alignbench.config.plan import default_workers
from alignbench.errors import EXIT_FAILED, UserError, refuse
from alignbench.progress import Progress
from alignbench.registry import plugins
from alignbench.registry.lookup import Registry, read_card
from alignbench.registry.tables import SweepCard
from alignbench.runs.sweeps.sweep import Sweep, carry_out, make

DEFAULT_OUT = Path("sweeps")
EMBEDDED = ("llamagen-tiny", "shapes-tiny")


def sweep(
    *,
    sweep: str = typer.Argument(
        help="Name of a sweep, or a TOML file; see: list sweeps.", autocompletion=card_names("sweeps")
    ),
    assignments: Annotated[list[str], changes("Change one value of every run; repeatable.")],
    out: Path | None = typer.Option(
        None, "--out", help="Folder of the runs and the table; default: sweeps/NAME."
    ),
    plugin: Plugins,
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the runs with their commands and stop."),
    as_json: bool = typer.Option(False, "--json", help="Print the table as JSON."),
) -> None:
    """Run a grid of settings and seeds, skip what is done, and write one table."""
    registry = plugins.load_registry(plugin)
    name, card = _find(registry, sweep)
    typed = sweep if sweep.endswith(".toml") else name
    folder = out or DEFAULT_OUT / name
    files = [path.absolute() for path in plugin]
    planned = make(registry, name, card, out=folder, assignments=assignments, plugins=files, typed=typed)
    disk = estimate.disk_problem(folder, sum(r.plan.estimate.disk_gib for r in planned.runs if not r.done))
    problems = [*planned.problems, *filter(None, [disk])]
    if dry_run:
        leave([*product_lines(planned), *run_lines(planned)], problems)
    refuse(f"sweep {name}", problems)
    _run(planned, registry, as_json=as_json)


def _find(registry: Registry, wanted: str) -> tuple[str, SweepCard]:
    """Name and card of a file or of a shipped sweep; a name without a model means an embedded one."""
    path = Path(wanted)
    if path.suffix == ".toml":
        return path.stem, cast(SweepCard, read_card(path, "sweeps"))
    sweeps = registry.locations["sweeps"]
    names = [wanted, *(f"{wanted}-{model}" for model in EMBEDDED)]
    name = next((name for name in names if name in sweeps), wanted)
    return name, registry.sweep(name)


def _run(planned: Sweep, registry: Registry, *, as_json: bool) -> None:
    from alignbench.runs.sweeps import page

    progress = Progress()
    for line in product_lines(planned):
        progress.say(line)
    failures = carry_out(
        planned,
        registry,
        progress,
        workers=default_workers(planned.runs[0].plan.model.image_size),
        after=lambda failed: page.write(planned, registry, failed),
    )
    page.write(planned, registry, failures)
    if as_json:
        put((planned.out / "sweep.json").read_text(encoding="utf-8"))
    else:
        Console().print(page.shown(planned, registry, failures))
        put(" · ".join(str(planned.out / name) for name in ("sweep.md", "sweep.json")))
    if failures:
        raise UserError(
            f"{len(failures)} of {len(planned.runs)} runs failed; the table is in {planned.out / 'sweep.md'}",
            exit_code=EXIT_FAILED,
        )


def product_lines(planned: Sweep) -> list[str]:
    """How much work it is."""
    runs, seeds, steps, images, sequences = planned.runs, planned.card.seeds, 0, 0, 0
    for run in runs:
        train = run.plan.config.train
        steps += train.steps
        images += train.steps * train.images_per_step
        sequences += train.steps * train.images_per_step * run.plan.sequences_per_image
    disk = sum(run.plan.estimate.disk_gib for run in runs)
    finished = [record for run in runs if (record := run.finished())]
    left = len(runs) - len(finished)
    lines = [
        f"sweep {planned.name}: {len(runs)} runs = {len(planned.configurations)} configurations × "
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))})",
        f"  work       {steps:,} optimiser steps · {images:,} images · {sequences:,} sequences · "
        f"{disk:.2g} GiB disk",
        f"  done       {len(finished)} of {len(runs)}",
    ]
    if finished and left:
        seconds = [
            (record.train.seconds if record.train else 0.0)
            + sum(result.sample_seconds + result.evaluate_seconds for result in record.results)
            for record in finished
        ]
        mean = sum(seconds) / len(seconds)
        lines.append(f"  estimate   {left} × {mean:.0f} s (mean of those done) = {left * mean / 60:.0f} min")
    return lines


def run_lines(planned: Sweep) -> list[str]:
    """Every run with the command that does it alone."""
    return [
        f"  {'done ' if run.done else 'to do'}  {run.configuration.title}, seed {run.seed}\n"
        f"         {run.command}"
        for run in planned.runs
    ]
