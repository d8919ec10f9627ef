"""Order rows and say which differences are real: bold cells, ranks with ties, comparisons with the base.

A row beats another if the interval of their difference excludes 0: Welch's over seeds, and for a single
value the sampling error of its image set, or of the pair where both were resampled alike. Where a single
value comes without that error, nothing can be tested and the plain values decide.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from alignbench.leaderboard.table import Cell, Column, Comparison, Row, Table, join, short
from alignbench.metrics.intervals import Difference, difference, resampled_difference

if TYPE_CHECKING:
    from alignbench.registry.protocol import AssetCard, Setting


def cell_difference(a: Cell, b: Cell) -> Difference:
    """Compare two cells of a column; see `statistics.difference` and `statistics.resampled_difference`."""
    if a.pairs_with(b):
        return resampled_difference(a.values[0], b.values[0], a.drawn, b.drawn)
    return difference(a.values, b.values, sd_a=a.interval.set_sd, sd_b=b.interval.set_sd)


def better(a: Cell, b: Cell, column: Column) -> bool:
    """Whether a beats b: significantly where that can be tested, else by value."""
    found = cell_difference(a, b)
    return column.gain(found.mean) > 0 and (found.significant or not found.tested)


def mark_best(rows: Sequence[Row], columns: Sequence[Column]) -> list[Row]:
    """Mark the best cell of every column and those it does not beat."""
    marked = list(rows)
    for column in columns:
        cells = [row.cells[column.key] for row in rows if column.key in row.cells]
        if len(cells) < 2:
            continue
        best = max(cells, key=lambda cell: column.gain(cell.interval.mean))
        for index, row in enumerate(marked):
            cell = row.cells.get(column.key)
            if cell is not None and not better(best, cell, column):
                marked[index] = replace(row, cells={**row.cells, column.key: replace(cell, best=True)})
    return marked


def rank(rows: Sequence[Row], column: Column | None) -> list[Row]:
    """Rank = 1 + number of rows that beat this one; equal ranks are ties."""
    if column is None:
        return list(rows)
    cells = [row.cells.get(column.key) for row in rows]
    ranks = [
        None
        if cell is None
        else 1 + sum(other is not None and better(other, cell, column) for other in cells)
        for cell in cells
    ]
    return [
        replace(row, rank=rank, tied=rank is not None and ranks.count(rank) > 1)
        for row, rank in zip(rows, ranks, strict=True)
    ]


def in_order(rows: Sequence[Row], settings: Sequence[Setting], column: Column | None) -> list[Row]:
    """Base, controls, then the rest: the one with the best row first, its settings together."""

    def score(row: Row) -> float:
        cell = row.cells.get(column.key) if column else None
        return float("-inf") if cell is None or column is None else column.gain(cell.interval.mean)

    top: dict[str, float] = {}
    for row in rows:
        top[row.identity] = max(score(row), top.get(row.identity, float("-inf")))
    group = {"base": 0, "control": 1, "method": 2, "samples": 2}
    return sorted(
        rows,
        key=lambda row: (
            group[row.kind],
            -top[row.identity] if row.identity else 0.0,
            row.identity,
            settings.index(row.setting),
        ),
    )


def distinct(rows: Sequence[Row]) -> list[Row]:
    """Add a piece of the digest, or the run, to rows of different origin that would read the same."""
    owners: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        owners[row.name].add(row.identity)

    def told_apart(row: Row) -> Row:
        piece = row.identity if row.kind == "samples" else row.identity[:7]
        return replace(row, detail="; ".join(filter(None, [row.detail, piece])))

    return [told_apart(row) if len(owners[row.name]) > 1 else row for row in rows]


def compare(table: Table) -> tuple[Comparison, ...]:
    base = {row.setting.name: row for row in table.rows if row.kind in {"base", "control"}}
    found = []
    for row in table.rows:
        partner = base.get(row.setting.name)
        if row.kind != "method" or partner is None or partner.setting != row.setting:
            continue
        differences = {
            column.key: cell_difference(row.cells[column.key], partner.cells[column.key])
            for column in table.columns
            if column.key in row.cells and column.key in partner.cells
        }
        found.append(Comparison(row, differences))
    return tuple(found)


KINDS = ("reference", "network", "prompts")
"""What an asset can be, in the order of labels."""


def own_assets(used: Mapping[str, str], cards: Mapping[str, AssetCard]) -> tuple[str, ...]:
    """Return the assets that are not the file of their card; a card that knows no digest proves nothing.

    Args:
        used: {asset: digest} behind the numbers.
        cards: {asset: card}.
    """
    return tuple(
        name
        for name, digest in sorted(used.items())
        if (card := cards.get(name)) is not None and card.sha256 and digest != f"sha256:{card.sha256}"
    )


def labelled(tables: Sequence[Table], cards: Mapping[str, AssetCard]) -> list[Table]:
    """Give every table the words that tell it from its neighbours, in the same order."""
    named = [replace(table, label=_own_label(table, cards)) for table in tables]
    for describe in (_differences, lambda _: _digest):
        for group in _namesakes(named):
            words = describe([named[place] for place in group])
            for place in group:
                parts = [named[place].label, words(named[place])]
                named[place] = replace(named[place], label=", ".join(filter(None, parts)))
    return named


def _own_label(table: Table, cards: Mapping[str, AssetCard]) -> str:
    """`own reference and network`, or nothing."""
    kinds = {cards[name].what for name in table.own_assets}
    return f"own {join(kind for kind in KINDS if kind in kinds)}" if kinds else ""


def _namesakes(tables: Sequence[Table]) -> Iterable[list[int]]:
    """Return the places of tables that stand on one page under one heading."""
    groups: dict[tuple[str, int, str], list[int]] = defaultdict(list)
    for place, table in enumerate(tables):
        groups[table.protocol.name, table.protocol.version, table.heading].append(place)
    return [group for group in groups.values() if len(group) > 1]


def _differences(tables: Sequence[Table]) -> Callable[[Table], str]:
    """Return what names the values of one table that are not the same in all of these."""

    def parts(table: Table) -> list[str]:
        assets = [f"{name} {_short(table.assets.get(name))}" for name in _names(tables, "assets")]
        weights = [f"{role} {_short(table.weights.get(role))}" for role in _names(tables, "weights")]
        return [
            *assets,
            f"reference {_short(table.reference)}",
            f"{table.n:,} images",
            f"sampling seeds {', '.join(map(str, table.seeds))}",
            *weights,
        ]

    columns = list(zip(*map(parts, tables), strict=True))
    differing = [number for number, column in enumerate(columns) if len(set(column)) > 1]
    return lambda table: ", ".join(parts(table)[number] for number in differing)


def _names(tables: Sequence[Table], what: str) -> list[str]:
    return sorted(
        {name for table in tables for name in (table.assets if what == "assets" else table.weights)}
    )


def _digest(table: Table) -> str:
    """The last resort: protocols that differ in something no record names."""
    return f"protocol digest {short(table.protocol.digest)}"


def _short(digest: str | None) -> str:
    return short(digest) if digest else "none"
