"""The words of a row that every format shows alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alignbench.tables import Column, Row, Table, number

COST_HEADERS = ("train s", "sequences", "device", "peak GiB", "trained")


def rank(row: Row) -> str:
    """`1`, `2=` for a tie, empty without a rank."""
    return "" if row.rank is None else f"{row.rank}{'=' if row.tied else ''}"


def metric(row: Row, column: Column) -> str:
    """Mean ± half-width, with † where the metric's network was a reward; empty if missing."""
    cell = row.cells.get(column.key)
    return "" if cell is None else column.shown(cell.interval) + ("†" if cell.rewarded else "")


def is_best(row: Row, column: Column) -> bool:
    cell = row.cells.get(column.key)
    return cell is not None and cell.best


def unit(row: Row) -> str:
    """`3 training seeds`: what the ± was taken over."""
    cell = next(iter(row.cells.values()), None)
    if cell is None:
        return ""
    interval = cell.interval
    return f"{interval.n} {interval.kind.removesuffix('s') if interval.n == 1 else interval.kind}"


def cost(row: Row) -> tuple[str, ...]:
    """Cells under `COST_HEADERS`; blank for the base, which costs nothing."""
    if row.cost is None:
        return ("",) * len(COST_HEADERS)
    spent = row.cost
    same_device = len(spent.devices) == 1
    peak = spent.peak_memory_gib
    return (
        _seconds(spent.seconds, pooled=same_device),
        f"{round(math.fsum(spent.sequences) / len(spent.sequences)):,}",
        ", ".join(spent.devices),
        "" if peak is None else number(peak, 2),
        f"{spent.trainable_parameters:,}",
    )


def _seconds(values: Sequence[float], *, pooled: bool) -> str:
    """Mean over seeds; a range where the devices differ, because their mean means nothing."""
    if pooled or len(values) == 1:
        return number(math.fsum(values) / len(values), 1)
    return f"{number(min(values), 1)} – {number(max(values), 1)}"


def footnotes(table: Table) -> list[str]:
    """How to read one table."""
    notes = [
        "± is half of a 95 % Student-t interval over the values named under n: over training seeds, each "
        "counted once by its mean over sampling seeds, or over the sampling seeds of one model.",
        "Bold: best of its column, or not significantly different from the best "
        "(Welch, 95 %, no correction for the number of comparisons).",
    ]
    if table.rank_column is not None:
        notes.append(
            f"Rank: 1 + the number of rows that are significantly better by {table.rank_column.title}; "
            "= marks ties. Where a row has a single value nothing can be tested and values decide."
        )
    if any(len(row.training_seeds) > 1 for row in table.rows):
        notes.append(
            "All rows share the sampling seeds, so an error that a seed gives to every model alike is not in "
            "an interval over training seeds."
        )
    if any(cell.rewarded for row in table.rows for cell in row.cells.values()):
        notes.append("†: a network behind this metric was also a training reward of this row.")
    if any(row.kind == "method" for row in table.rows):
        notes.append(
            "Costs are means over training seeds (peak memory: the largest) and leave evaluation out."
        )
    return [*notes, *table.notes]
