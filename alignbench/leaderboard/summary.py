"""What a table says, in sentences made from its numbers and nothing else.

Sentences name losses as plainly as gains: each method against the base at the same setting, and against
the best row of the table, which may be a base model that is merely sampled more sharply.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignbench.leaderboard.ranking import better, cell_difference
from alignbench.leaderboard.table import Column, Comparison, Row, Table, join
from alignbench.metrics.intervals import Difference


def verdict(table: Table) -> list[str]:
    """Return one sentence or two per bullet, in the order of the rows; empty without a ranking metric."""
    column = table.rank_column
    if column is None or not table.rows:
        return []
    sentences = [
        text for comparison in table.comparisons if (text := against_base(table, comparison, column))
    ]
    paired = [comparison.row for comparison in table.comparisons if column.key in comparison.differences]
    for row in table.rows:
        if row.kind == "method" and not any(row is other for other in paired):
            sentences.append(f"{_place(row)}: no base value at this setting to compare with.")
    return [*sentences, *_overall(table, column)]


def against_base(table: Table, comparison: Comparison, column: Column) -> str:
    """Say how a method row stands against the base at the same setting; empty if it has no value."""
    found = comparison.differences.get(column.key)
    if found is None:
        return ""
    row = comparison.row
    base = _base_of(table, row)
    one_set = any(x.cells[column.key].interval.of_one_set for x in (row, base))
    interval = (
        ""
        if found.low is None or found.high is None
        else f", 95 % interval {column.span(found.low, found.high)}"
        f"{' from the sampling error of one image set' if one_set else ''}"
    )
    text = (
        f"{_place(row)}: **{outcome(found, column)}** base at the same setting "
        f"({column.title} {_change(base, row, column)}; difference {column.signed(found.mean)}{interval})."
    )
    return f"{text}{_only_one_run(row)}{_others(table, comparison, column)}"


def outcome(found: Difference, column: Column) -> str:
    """`better than`, `worse than`, `not significantly different from`; by value only where untested."""
    if found.tested and not found.significant:
        return "not significantly different from"
    gain = column.gain(found.mean)
    word = "better than" if gain > 0 else "worse than" if gain < 0 else "equal to"
    return word if found.tested else f"{word} (one value, not tested)"


def _base_of(table: Table, row: Row) -> Row:
    return next(r for r in table.rows if r.kind in {"base", "control"} and r.setting == row.setting)


def _change(base: Row, row: Row, column: Column) -> str:
    before, after = base.cells[column.key].interval.mean, row.cells[column.key].interval.mean
    return f"{column.text(before)} → {column.text(after)}"


def _others(table: Table, comparison: Comparison, skip: Column) -> str:
    """The other metrics, by outcome."""
    groups: dict[str, list[str]] = {}
    for column in table.columns:
        if column.key == skip.key or column.fact.detail:
            continue
        if column.key in comparison.differences:
            mark = "†" if comparison.row.cells[column.key].rewarded else ""
            groups.setdefault(outcome(comparison.differences[column.key], column), []).append(
                column.title + mark
            )
    words = {
        "better than": "better",
        "worse than": "worse",
        "not significantly different from": "no significant difference",
    }
    parts = [f"{words.get(name, name)}: {', '.join(groups[name])}" for name in sorted(groups, key=_order)]
    return f" Other metrics — {'; '.join(parts)}." if parts else ""


def _order(name: str) -> tuple[int, str]:
    known = ["better than", "worse than", "not significantly different from"]
    return (known.index(name) if name in known else len(known), name)


def _only_one_run(row: Row) -> str:
    if len(row.training_seeds) > 1:
        return ""
    seed = row.training_seeds[0] if row.training_seeds else "unknown"
    return f" This is one trained model (seed {seed}): it says nothing about other training seeds."


def _overall(table: Table, column: Column) -> list[str]:
    """Name the best row, what it ties with, and the methods whose own best row is beaten by it."""
    scored = [row for row in table.rows if column.key in row.cells]
    if len(scored) < 2:
        return []
    best = _best(scored, column)
    top = best.cells[column.key]
    ties = [row for row in scored if row is not best and not better(top, row.cells[column.key], column)]
    tied = f", not significantly different from {join(map(_place, ties))}" if ties else ""
    text = f"Best row overall by {column.title}: **{_place(best)}** ({column.shown(top.interval)}){tied}."
    losers = [row for row in _best_of_each(scored, column) if row is not best and row not in ties]
    if losers:
        listed = [f"{_place(row)} at {column.shown(row.cells[column.key].interval)}" for row in losers]
        settings = any(row.kind != "samples" for row in losers)
        text += f" Behind it{', each at its own best setting' if settings else ''}: {'; '.join(listed)}."
    return [text, *_against_best_base(scored, column)]


def _against_best_base(scored: Sequence[Row], column: Column) -> list[str]:
    """Say how each method, at its best setting, stands against the base at its best setting."""
    controls = [row for row in scored if row.kind in {"base", "control"}]
    methods = _best_of_each([row for row in scored if row.kind == "method"], column)
    if len(controls) < 2 or not methods:
        return []
    base = _best(controls, column)
    cell = base.cells[column.key]
    parts = [
        f"{_place(row)} is {outcome(cell_difference(row.cells[column.key], cell), column)} it"
        for row in methods
    ]
    listed = "; ".join(parts)
    return [f"Against the best-sampled base, {_place(base)} ({column.shown(cell.interval)}): {listed}."]


def _best(rows: Sequence[Row], column: Column) -> Row:
    return max(rows, key=lambda row: column.gain(row.cells[column.key].interval.mean))


def _best_of_each(rows: Sequence[Row], column: Column) -> list[Row]:
    """The best setting of every configuration, best first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.identity, []).append(row)
    tops = [_best(group, column) for group in groups.values()]
    return sorted(tops, key=lambda row: -column.gain(row.cells[column.key].interval.mean))


def _place(row: Row) -> str:
    return row.name if row.kind == "samples" else f"{row.name} at {row.setting.title}"
