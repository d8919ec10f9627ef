"""Order rows and say which differences are real: bold cells, ranks with ties, comparisons with the base.

A row beats another if the interval of their difference excludes 0: Welch's over seeds, and for a single
value the sampling error of its image set, or of the pair where both were resampled alike. Where a single
value comes without that error, nothing can be tested and the plain values decide.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from alignbench.metrics.intervals import Difference, difference, resampled_difference
from alignbench.record import SettingRef
from alignbench.tables import Cell, Column, Comparison, Row, Table


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


def in_order(rows: Sequence[Row], settings: Sequence[SettingRef], column: Column | None) -> list[Row]:
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
