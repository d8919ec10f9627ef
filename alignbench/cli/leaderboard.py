"""`alignbench leaderboard`: records to tables."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from alignbench.cli.common import print_json
from alignbench.errors import EXIT_FAILED, UserError
from alignbench.registry.lookup import Registry


def leaderboard(
    runs: list[Path] = typer.Argument(None, help="Run folders, run.json files, or folders of runs."),
    out: Path = typer.Option(Path("leaderboards"), "--out", help="Folder of the tables and their records."),
    check: bool = typer.Option(False, "--check", help="Only check that the tables match their records."),
) -> None:
    """Write leaderboards from run records, or check that they are what their records give."""
    from alignbench.leaderboard import board

    registry = Registry.default()
    cards = registry.metric_facts(), registry.published_cards(), registry.asset_cards()
    console = Console()
    if check:
        if runs:
            raise UserError("--check takes no runs: it re-renders from the records beside the tables")
        differing = board.check(out, *cards)
        for problem in differing:
            console.print(problem, highlight=False, markup=False, soft_wrap=True)
        if differing:
            raise UserError(
                f"{len(differing)} files in {out} are not what their records give",
                fix=f"alignbench leaderboard {out / 'records'} --out {out}",
                exit_code=EXIT_FAILED,
            )
        console.print(f"{out}: every table matches its records", highlight=False)
        return
    if not runs:
        raise UserError("no runs were named", fix="alignbench leaderboard runs")
    for path in board.write(board.collect(runs), out, *cards):
        console.print(path, highlight=False, markup=False, soft_wrap=True)


SIDE = "A run folder or record file; RUN:base, RUN:method or RUN:samples to choose."


def compare(
    a: str = typer.Argument(..., help=SIDE),
    b: str = typer.Argument(..., help="The other one; differences are B minus A."),
    metric: list[str] = typer.Option([], "--metric", help="Only this metric; may be repeated."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Compare two evaluations of one protocol, metric by metric."""
    from alignbench.leaderboard import export, terminal
    from alignbench.leaderboard.compare import compare, read_evaluated

    facts = Registry.default().metric_facts()
    comparison = compare(read_evaluated(a), read_evaluated(b), facts, metrics=metric)
    if as_json:
        print_json(export.comparison_data(comparison))
    else:
        Console().print(terminal.rich_comparison(comparison))
