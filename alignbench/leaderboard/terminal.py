"""Boards on a terminal, through rich; rich is imported on use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alignbench.leaderboard import cells
from alignbench.leaderboard.compare import Compared, Comparison, Side
from alignbench.leaderboard.summary import verdict
from alignbench.leaderboard.table import Row, Table, Unranked, join, short

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


CAUTION = "training luck is in no interval here: nothing is said about other training seeds"
METHOD = "95 % intervals, no correction for the number of comparisons; difference is B minus A"


def as_data(found: Comparison) -> dict[str, Any]:
    """Return a comparison as plain data."""
    return {
        "a": _side(found.a),
        "b": _side(found.b),
        "metrics": [_compared(item) for item in found.metrics],
        "left_out": list(found.left_out),
    }


def _side(side: Side) -> dict[str, Any]:
    return {"run": side.record.id, "subject": side.subject, "title": side.title}


def _compared(item: Compared) -> dict[str, Any]:
    return {
        "protocol": item.protocol.model_dump(mode="json"),
        "metric": item.column.metric,
        "evaluator": item.column.evaluator,
        "direction": item.column.fact.direction,
        "setting": item.setting.model_dump(mode="json"),
        "a": item.a.interval.mean,
        "b": item.b.interval.mean,
        "difference": item.difference.mean,
        "low": item.difference.low,
        "high": item.difference.high,
        "significant": item.difference.significant,
        "tested": item.difference.tested,
        "evidence": item.evidence,
        "behind": item.detail,
        "why_not_paired": item.why,
        "verdict": item.verdict,
    }


def rich_comparison(found: Comparison) -> RenderableType:
    """Return tables, one a setting, with sentences below; narrow enough for 80 columns."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [
        Text(f"{letter} {side.title} ({side.record.id})") for letter, side in (("A", found.a), ("B", found.b))
    ]
    places: dict[str, list[Compared]] = {}
    for item in found.metrics:
        protocol = item.protocol
        place = f"{protocol.title} · {item.setting.title} · {short(protocol.digest)}"
        places.setdefault(place, []).append(item)
    for place, items in places.items():
        parts += [Text(), _comparison_grid(place, items)]
        parts += [Text(f"· {sentence}") for sentence in sentences(items)]
    parts += [Text(), *(Text(f"· {note}") for note in _notes(found))]
    return Group(*parts)


def sentences(items: Sequence[Compared]) -> list[str]:
    """Return one sentence for each outcome: `FID, Recall: difference not significant.`"""
    groups: dict[str, list[str]] = {}
    for item in items:
        groups.setdefault(item.verdict, []).append(item.column.title)
    return [f"{join(names)}: {verdict}." for verdict, names in groups.items()]


def _notes(found: Comparison) -> list[str]:
    notes = [METHOD]
    if "method" in {found.a.subject, found.b.subject}:
        notes.append(CAUTION)
    reasons: dict[str, list[str]] = {}
    for item in found.metrics:
        if item.why:
            reasons.setdefault(item.why, []).append(item.column.title)
    notes += [
        f"{join(dict.fromkeys(names))}: not compared image by image, {why}" for why, names in reasons.items()
    ]
    notes += [
        f"{side.record.id} is {side.record.status}"
        for side in (found.a, found.b)
        if side.record.status != "complete"
    ]
    return [*notes, *(f"not compared: {reason}" for reason in found.left_out)]


def _comparison_grid(place: str, items: Sequence[Compared]) -> RenderableType:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(
        title=Text(place), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    grid.add_column("metric")
    for name in ("A", "B", "difference"):
        grid.add_column(name, justify="right")
    grid.add_column("evidence")
    for item in items:
        column, change = item.column, item.difference
        span = (
            "" if change.low is None or change.high is None else f"\n{column.span(change.low, change.high)}"
        )
        words = [
            f"{column.title} {column.arrow}",
            column.text(item.a.interval.mean),
            column.text(item.b.interval.mean),
            f"{column.signed(change.mean)}{span}",
            f"{item.evidence}\n{item.detail}",
        ]
        grid.add_row(*map(Text, words))
    return grid
