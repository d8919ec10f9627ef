"""Order rows and say which differences are real: bold cells, ranks and their intervals; label tables.

A row beats another if the interval of their difference excludes 0: Student's over pairs of equal sampling
seeds, Welch's over other seeds, and for a single value the sampling error of its image set, or of the pair
where both were resampled alike. Where a single value comes without that error, nothing can be tested and the
plain values decide. No other test of two cells exists.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from alignbench.leaderboard.table import Cell, Column, Row, Table, grouped, join, short
from alignbench.metrics.intervals import (
    LEVEL,
    Difference,
    difference,
    paired_difference,
    resampled_difference,
)

if TYPE_CHECKING:
    from alignbench.registry.protocol import AssetCard, Setting


def cell_difference(a: Cell, b: Cell, *, level: float = LEVEL) -> Difference:
    """Compare two cells of a column with the best pairs they share; see `intervals`."""
    if a.shares_seeds(b):
        return paired_difference(a.values, b.values, level=level)
    if a.shares_resamples(b):
        return resampled_difference(a.values[0], b.values[0], a.drawn, b.drawn, level=level)
    return difference(a.values, b.values, sd_a=a.interval.set_sd, sd_b=b.interval.set_sd, level=level)


def better(a: Cell, b: Cell, column: Column) -> bool:
    """Whether a beats b: significantly where that can be tested, else by value."""
    change = cell_difference(a, b)
    return column.gain(change.mean) > 0 and (change.significant or not change.tested)


def mark_best(rows: Sequence[Row], columns: Sequence[Column]) -> list[Row]:
    """Mark the best cell of every column and those it does not beat."""
    marked = list(rows)
    for column in columns:
        cells = [row.cells[column.key] for row in rows if column.key in row.cells]
        if len(cells) < 2:
            continue
        best = max(cells, key=column.score)
        for index, row in enumerate(marked):
            cell = row.cells.get(column.key)
            if cell is not None and not better(best, cell, column):
                marked[index] = replace(row, cells={**row.cells, column.key: replace(cell, best=True)})
    return marked


def rank(rows: Sequence[Row], column: Column | None) -> list[Row]:
    """Rank = position by mean; equal means share it, and a row without one has none."""
    if column is None:
        return list(rows)
    scores = [column.score(row.cells[column.key]) for row in rows if column.key in row.cells]
    return [
        replace(row, rank=1 + sum(score > column.score(row.cells[column.key]) for score in scores))
        if column.key in row.cells
        else row
        for row in rows
    ]


def rank_intervals(cells: Sequence[Cell], column: Column) -> list[tuple[int, int]]:
    """Return the ranks that the data allow each cell: each interval holds the true rank with 95 % or more.

    Lowest: 1 + the number of cells that are significantly better; highest: all but the significantly worse
    ones. A pair that cannot be tested rules out nothing.
    """
    level = rank_level(len(cells))
    spans = []
    for number, cell in enumerate(cells):
        others = [other for index, other in enumerate(cells) if index != number]
        changes = [cell_difference(other, cell, level=level) for other in others]
        gains = [column.gain(change.mean) for change in changes if change.significant]
        spans.append((1 + sum(gain > 0 for gain in gains), len(cells) - sum(gain < 0 for gain in gains)))
    return spans


def rank_level(count: int) -> float:
    """Return the level of each of the K − 1 comparisons of a row: 1 − 0.05 / (K − 1), after Bonferroni."""
    return 1 - (1 - LEVEL) / max(count - 1, 1)


def in_order(rows: Sequence[Row], settings: Sequence[Setting], column: Column | None) -> list[Row]:
    """Base, controls, then the rest: the one with the best row first, its settings together."""
    top: dict[str, float] = defaultdict(lambda: float("-inf"))
    for row in rows:
        if column is not None and row.identity and column.key in row.cells:
            top[row.identity] = max(column.score(row.cells[column.key]), top[row.identity])
    group = {"base": 0, "control": 1, "method": 2, "samples": 2}

    def place(row: Row) -> tuple[int, float, str, int]:
        return group[row.kind], -top[row.identity], row.identity, settings.index(row.setting)

    return sorted(rows, key=place)


# --- tables of one protocol -----------------------------------------------------------------------

ASSET_KINDS = ("reference", "network", "prompts")
"""In the order of labels."""

Parts = Mapping[tuple[int, str], str]
"""{(order, what tables may differ in): words}."""


def own_assets(used: Mapping[str, str], cards: Mapping[str, AssetCard]) -> tuple[str, ...]:
    """Return the assets that are not the file of their card; a card that knows no digest proves nothing."""
    return tuple(
        name
        for name, digest in sorted(used.items())
        if (card := cards.get(name)) is not None and card.sha256 and digest != f"sha256:{card.sha256}"
    )


def labelled(tables: Sequence[Table], cards: Mapping[str, AssetCard]) -> list[Table]:
    """Give every table the words that tell it from its neighbours, in the same order.

    Own files are always named; then, among tables of one page and heading, the values that differ; where no
    record names what differs, the protocol's digest.
    """
    named = [replace(table, label=_own_label(table, cards)) for table in tables]
    for parts_of in (_parts, _digest_part):
        groups = grouped((_heading(table), parts_of(table)) for table in named)
        named = [
            replace(table, label=", ".join(filter(None, [table.label, *words])))
            for table in named
            for words in [_differing(parts_of(table), groups[_heading(table)])]
        ]
    return named


def _own_label(table: Table, cards: Mapping[str, AssetCard]) -> str:
    """`own reference and network`, or nothing."""
    kinds = {cards[name].what for name in table.own_assets}
    return f"own {join(kind for kind in ASSET_KINDS if kind in kinds)}" if kinds else ""


def _heading(table: Table) -> tuple[str, int, str]:
    return table.protocol.name, table.protocol.version, table.heading


def _parts(table: Table) -> Parts:
    return {
        **{(0, name): f"{name} {short(digest)}" for name, digest in table.assets.items()},
        (1, "reference"): f"reference {short(table.reference)}",
        (2, "images"): f"{table.n:,} images",
        (3, "seeds"): f"sampling seeds {', '.join(map(str, table.seeds))}",
        **{(4, role): f"{role} {short(digest)}" for role, digest in table.weights.items()},
    }


def _digest_part(table: Table) -> Parts:
    return {(5, "digest"): f"protocol digest {short(table.protocol.digest)}"}


def _differing(parts: Parts, group: Sequence[Parts]) -> list[str]:
    """Words for what is not the same in the whole group; what a table lacks is `none`."""
    return [
        parts.get(key, f"{key[1]} none")
        for key in sorted({key for other in group for key in other})
        if len({other.get(key) for other in group}) > 1
    ]
