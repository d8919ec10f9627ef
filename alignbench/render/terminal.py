"""Boards on a terminal, through rich; rich is imported on use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignbench.render import cells
from alignbench.tables import Row, Table, Unranked, short
from alignbench.verdict import verdict

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


def rich_table(table: Table) -> RenderableType:
    """Return one table, narrow enough for 80 columns, with its verdict below; files hold the rest.

    Metrics that are mere detail are left out.
    """
    from rich.console import Group
    from rich.text import Text

    sentences = [sentence.replace("**", "").split(" Other metrics")[0] for sentence in verdict(table)]
    return Group(_grid(table), *(Text(f"· {sentence}") for sentence in sentences))


def rich_unranked(unranked: Sequence[Unranked]) -> RenderableType:
    """Return the list of what no table shows, and why."""
    from rich.console import Group
    from rich.text import Text

    title = Text("not ranked", style="bold")
    return Group(title, *(Text(f"· {item.id}: {item.reason}") for item in unranked))


def _caption(table: Table) -> Text | None:
    """What ± was taken over."""
    from rich.text import Text

    units = sorted({cells.unit(row) for row in table.rows if _over_seeds(row)} - {""})
    texts = [f"± is half of a 95 % interval over {' or '.join(units)}"] if units else []
    if cells.one_set(table):
        texts.append("‡ sampling error of one image set, not training luck")
    return Text("; ".join(texts)) if texts else None


def _over_seeds(row: Row) -> bool:
    return any(cell.interval.n > 1 for cell in row.cells.values())


def _grid(table: Table) -> RenderableType:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    title = f"{table.protocol.title} · {table.heading} · {short(table.protocol.digest)}"
    names = [row.name for row in table.rows]
    plain = len({row.title for row in table.rows}) == len(set(names))
    columns = [column for column in table.columns if not column.fact.detail]
    grid = Grid(
        title=Text(title),
        caption=_caption(table),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        padding=0,
        pad_edge=False,
    )
    grid.add_column("#", justify="right")
    grid.add_column("model")
    grid.add_column("sampling")
    for column in columns:
        width = max(map(len, column.title.split()))
        grid.add_column(Text(f"{column.title}\n{column.arrow}"), justify="right", min_width=width)
    for row in table.rows:
        values = [
            # The half-width on a line of its own: six metrics then fit a narrow terminal.
            Text(
                cells.metric(row, column).replace(" ± ", "\n±"),
                style="bold" if cells.is_best(row, column) else "",
            )
            for column in columns
        ]
        words = [cells.rank(row), row.title if plain else row.name, row.setting.title]
        grid.add_row(*map(Text, words), *values)
    return grid
