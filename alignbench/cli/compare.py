"""`alignbench compare`: two evaluations side by side, and which differences are real."""

from __future__ import annotations

import typer
from rich.console import Console

from alignbench.cli.output import print_json
from alignbench.registry.lookup import Catalogue

SIDE = "A run folder or record file; RUN:base, RUN:method or RUN:samples to choose."


def compare(
    a: str = typer.Argument(..., help=SIDE),
    b: str = typer.Argument(..., help="The other one; differences are B minus A."),
    metric: list[str] = typer.Option([], "--metric", help="Only this metric; may be repeated."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Compare two evaluations of one protocol, metric by metric."""
    from alignbench.leaderboard import compare as comparison
    from alignbench.leaderboard import terminal

    catalogue = Catalogue.default()
    found = comparison.compare(
        comparison.open_side(a), comparison.open_side(b), catalogue.metric_facts(), metrics=metric
    )
    if as_json:
        print_json(terminal.as_data(found))
    else:
        Console().print(terminal.rich_comparison(found))
