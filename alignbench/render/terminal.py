"""Boards on a terminal, through rich; rich is imported on use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignbench.render import cells
from alignbench.tables import Table, Unranked, short
from alignbench.verdict import verdict

if TYPE_CHECKING:
    from rich.console import RenderableType


def rich_table(table: Table) -> RenderableType:
    """Return one table with its verdict below."""
    from rich.console import Group
    from rich.text import Text

    return Group(_grid(table), *(Text(f"· {sentence.replace('**', '')}") for sentence in verdict(table)))


def rich_unranked(unranked: Sequence[Unranked]) -> RenderableType:
    """Return the list of what no table shows, and why."""
    from rich.console import Group
    from rich.text import Text

    title = Text("not ranked", style="bold")
    return Group(title, *(Text(f"· {item.id}: {item.reason}") for item in unranked))


def _grid(table: Table) -> RenderableType:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    title = f"{table.protocol.title} · {table.model} · {short(table.protocol.digest)}"
    grid = Grid(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left")
    grid.add_column("rank", justify="right")
    grid.add_column("row", overflow="fold")
    grid.add_column("setting", overflow="fold")
    for column in table.columns:
        grid.add_column(Text(f"{column.title} {column.arrow}"), justify="right")
    grid.add_column("n")
    for header in ("train s", "device"):
        grid.add_column(header)
    for row in table.rows:
        spent = dict(zip(cells.COST_HEADERS, cells.cost(row), strict=True))
        values = [
            Text(cells.metric(row, column), style="bold" if cells.is_best(row, column) else "")
            for column in table.columns
        ]
        label = f"{row.name}, control" if row.kind == "control" else row.name
        words = [cells.rank(row), label, row.setting.title]
        tail = [cells.unit(row), spent["train s"], spent["device"]]
        grid.add_row(*map(Text, words), *values, *map(Text, tail))
    return grid
