"""The words of a row that every format shows alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alignbench.leaderboard.table import Column, Row, Table, number

SET_NOTE = (
    "‡: ± is the sampling error of one set of images, 95 %, as its evaluator estimates it (bootstrap, for "
    "example); it is not training luck."
)

COST_HEADERS = ("train s", "sequences", "device", "peak GiB", "trained")


def rank(row: Row) -> str:
    """`1`, `2=` for a tie, empty without a rank."""
    return "" if row.rank is None else f"{row.rank}{'=' if row.tied else ''}"


def metric(row: Row, column: Column) -> str:
    """Mean ± half-width, ‡ for the error of one set, † for a network that was a reward; empty if missing."""
    cell = row.cells.get(column.key)
    if cell is None:
        return ""
    marks = ("‡" if cell.interval.of_one_set else "") + ("†" if cell.rewarded else "")
    return column.shown(cell.interval) + marks


def is_best(row: Row, column: Column) -> bool:
    cell = row.cells.get(column.key)
    return cell is not None and cell.best


def unit(row: Row) -> str:
    """`3 training seeds`: what the ± was taken over."""
    cell = next(iter(row.cells.values()), None)
    if cell is None:
        return ""
    interval = cell.interval
    if interval.of_one_set or (row.kind == "samples" and interval.n == 1):
        return "1 image set"
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


def one_set(table: Table) -> bool:
    """Whether a number of the table has the error of a single image set."""
    return any(cell.interval.of_one_set for row in table.rows for cell in row.cells.values())


def over_seeds(table: Table) -> bool:
    """Whether a number of the table is a mean over seeds."""
    return any(cell.interval.n > 1 for row in table.rows for cell in row.cells.values())


def footnotes(table: Table) -> list[str]:
    """How to read one table."""
    sets = one_set(table)
    notes = []
    if over_seeds(table) or not sets:
        notes.append(
            "± is half of a 95 % Student-t interval over the values named under n: over training seeds, each "
            "counted once by its mean over sampling seeds, or over the sampling seeds of one model."
        )
    if sets:
        notes.append(SET_NOTE)
    test = "95 %; Welch over seeds; single sets ‡ by common resamples, else normal" if sets else "Welch, 95 %"
    notes.append(
        "Bold: best of its column, or not significantly different from the best "
        f"({test}, no correction for the number of comparisons)."
    )
    if table.rank_column is not None:
        alone = "a single value without ‡" if sets else "a single value"
        notes.append(
            f"Rank: 1 + the number of rows that are significantly better by {table.rank_column.title}; "
            f"= marks ties. Where a row has {alone} nothing can be tested and values decide."
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
