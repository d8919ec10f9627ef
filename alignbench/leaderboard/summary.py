"""Plain-language summary of a table.

Sentences name losses as plainly as gains: each method against the base at the same setting, and against
the best row of the table, which may be a base model that is merely sampled more sharply.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignbench.leaderboard.ranking import better, cell_difference
from alignbench.leaderboard.table import Column, Row, Table, grouped, join
from alignbench.metrics.intervals import Difference

OUTCOMES = {
    "better than": "better",
    "worse than": "worse",
    "not significantly different from": "no significant difference",
}
"""{outcome: in a list of other metrics}, in the order of that list."""


def sentences(table: Table) -> list[str]:
    """Return one sentence or two per bullet, in the order of the rows; empty without a ranking metric."""
    column = table.rank_column
    if column is None:
        return []
    compared, alone = [], []
    for row in table.rows:
        if row.kind != "method":
            continue
        base = next((x for x in table.rows if x.is_base and x.setting == row.setting), None)
        if base is not None and column.key in base.cells and column.key in row.cells:
            compared.append(_against_base(row, base, column, table))
        else:
            alone.append(f"{_subject(row)}: no base value at this setting to compare with.")
    return [*compared, *alone, *_overall(table, column)]


def outcome(change: Difference, column: Column) -> str:
    """`better than`, `worse than`, `not significantly different from`; by value only where untested."""
    if change.tested and not change.significant:
        return "not significantly different from"
    gain = column.gain(change.mean)
    word = "better than" if gain > 0 else "worse than" if gain < 0 else "equal to"
    return word if change.tested else f"{word} (one value, not tested)"


def _against_base(row: Row, base: Row, column: Column, table: Table) -> str:
    before, after = base.cells[column.key], row.cells[column.key]
    change = cell_difference(after, before)
    span = column.span(change)
    interval = f", 95 % interval {span}" if span else ""
    if span and (before.interval.of_one_set or after.interval.of_one_set):
        interval += " from the sampling error of one image set"
    text = (
        f"{_subject(row)}: **{outcome(change, column)}** base at the same setting "
        f"({column.title} {column.text(before.interval.mean)} → {column.text(after.interval.mean)}; "
        f"difference {column.signed(change.mean)}{interval})."
    )
    return text + _other_metrics(row, base, column, table)


def _other_metrics(row: Row, base: Row, ranking: Column, table: Table) -> str:
    results: list[tuple[str, str]] = []
    for column in table.columns:
        if column.key == ranking.key or column.fact.detail:
            continue
        if column.key in row.cells and column.key in base.cells:
            cell = row.cells[column.key]
            result = outcome(cell_difference(cell, base.cells[column.key]), column)
            results.append((result, column.title + ("†" if cell.rewarded else "")))
    groups = grouped(results)
    names = [*OUTCOMES, *sorted(groups.keys() - OUTCOMES.keys())]
    parts = [f"{OUTCOMES.get(name, name)}: {', '.join(groups[name])}" for name in names if name in groups]
    return f" Other metrics — {'; '.join(parts)}." if parts else ""


def _overall(table: Table, column: Column) -> list[str]:
    """Name the best row, what it ties with, and the methods whose own best row is beaten by it."""
    scored = [row for row in table.rows if column.key in row.cells]
    if len(scored) < 2:
        return []
    best = _best(scored, column)
    top = best.cells[column.key]
    ties = [row for row in scored if row is not best and not better(top, row.cells[column.key], column)]
    tied = f", not significantly different from {join(map(_subject, ties))}" if ties else ""
    text = f"Best row overall by {column.title}: **{_subject(best)}** ({column.shown(top.interval)}){tied}."
    losers = [row for row in _best_of_each(scored, column) if row is not best and row not in ties]
    if losers:
        listed = [f"{_subject(row)} at {column.shown(row.cells[column.key].interval)}" for row in losers]
        settings = any(row.kind != "samples" for row in losers)
        text += f" Behind it{', each at its own best setting' if settings else ''}: {'; '.join(listed)}."
    return [text, *_against_best_base(scored, column)]


def _against_best_base(scored: Sequence[Row], column: Column) -> list[str]:
    """Say how each method, at its best setting, stands against the base at its best setting."""
    controls = [row for row in scored if row.is_base]
    methods = _best_of_each([row for row in scored if row.kind == "method"], column)
    if len(controls) < 2 or not methods:
        return []
    base = _best(controls, column)
    cell = base.cells[column.key]
    found = [(row, outcome(cell_difference(row.cells[column.key], cell), column)) for row in methods]
    parts = "; ".join(f"{_subject(row)} is {result} it" for row, result in found)
    return [f"Against the best-sampled base, {_subject(base)} ({column.shown(cell.interval)}): {parts}."]


def _best(rows: Sequence[Row], column: Column) -> Row:
    return max(rows, key=lambda row: column.score(row.cells[column.key]))


def _best_of_each(rows: Sequence[Row], column: Column) -> list[Row]:
    """The best setting of every configuration, best first."""
    tops = [_best(group, column) for group in grouped((row.identity, row) for row in rows).values()]
    return sorted(tops, key=lambda row: -column.score(row.cells[column.key]))


def _subject(row: Row) -> str:
    return row.name if row.kind == "samples" else f"{row.name} at {row.setting.title}"
