"""`alignbench leaderboard`: records to tables."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from alignbench.cli.common import leaving_out, print_json, put
from alignbench.cli.options import METRICS, Json, Plugins, many
from alignbench.commands import boards, tables
from alignbench.errors import EXIT_FAILED, UserError


class Format(str, Enum):
    """How a board can be printed; each is a function of `export.Leaderboard`."""

    markdown = "markdown"
    csv = "csv"
    latex = "latex"
    json = "json"


def leaderboard(
    *,
    runs: list[Path] = typer.Argument(None, help="Run folders, run.json files, or folders of runs."),
    out: Path = typer.Option(Path("leaderboards"), "--out", help="Folder of the tables and their records."),
    check: bool = typer.Option(False, "--check", help="Only check that the tables match their records."),
    form: Format | None = typer.Option(
        None, "--format", help="Print the tables of these runs, write nothing."
    ),
    html: bool = typer.Option(
        False, "--html", help="Also write index.html, one file for a browser; without runs: of --out."
    ),
    plugin: Plugins,
) -> None:
    """Write leaderboards from run records, or check that they are what their records give."""
    if check:
        if runs or form or html:
            raise UserError(
                "--check takes no runs, no --format and no --html: it makes the pages of --out again"
            )
        differing = boards.check(out, plugins=plugin)
        put(*differing)
        if differing:
            raise UserError(
                f"{len(differing)} files in {out} are not what their records give",
                fix=f"alignbench leaderboard {out / 'records'} --out {out}",
                exit_code=EXIT_FAILED,
            )
        put(f"{out}: every table matches its records")
        return
    if not runs and html:
        runs = [out / "records"]
    if not runs:
        raise UserError("no runs were named", fix="alignbench leaderboard runs")
    if form and html:
        raise UserError("--format prints, --html writes: one of them")
    with leaving_out() as tell:
        if form:
            put(getattr(tables.board(runs, plugins=plugin, tell=tell), form.value)().rstrip("\n"))
        else:
            put(*boards.leaderboard(runs, out, html=html, plugins=plugin, tell=tell))


def report(
    run: Path = typer.Argument(..., help="A run folder."),
    html: bool = typer.Option(False, "--html", help="Also write report.html, one file for a browser."),
) -> None:
    """Write the report of a run again: results, samples, curves, cost, how to repeat it."""
    put(*boards.report(run, html=html))


def audit(
    runs: list[Path] = typer.Argument(..., help="Run folders, run.json files, or folders of runs."),
    as_json: Json = False,
) -> None:
    """Hold measured numbers against published ones of the same model."""
    from alignbench.leaderboard import audit, terminal

    with leaving_out() as tell:
        found = tables.audit(runs, tell=tell)
        if as_json:
            print_json(audit.to_data(found))
        else:
            Console().print(terminal.rich_audit(found))


SIDE = "A run folder or record file; RUN:base, RUN:method or RUN:samples to choose."


def compare(
    *,
    a: str = typer.Argument(..., help=SIDE),
    b: str = typer.Argument(..., help="The other one; differences are B minus A."),
    metric: Annotated[list[str], many("--metric", "Only this metric; may be repeated.", complete=METRICS)],
    plugin: Plugins,
    as_json: Json = False,
) -> None:
    """Compare two evaluations of one protocol, metric by metric."""
    from alignbench.leaderboard import export, terminal

    comparison = tables.compare(a, b, metric, plugins=plugin)
    if as_json:
        print_json(export.comparison_data(comparison))
    else:
        Console().print(terminal.rich_comparison(comparison))
