"""What the first table of a board says, in a few sentences made from its numbers; plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alignbench.leaderboard.headline import Standing, base_of, several_settings, standings, value, verdict
from alignbench.leaderboard.ranking import cell_difference, rank_level
from alignbench.leaderboard.table import Column, Row, Table, grouped, join

AGAINST = {"better": "better", "not significant": "not significantly different", "worse": "worse"}
"""{verdict: its words}, in the order of a sentence."""

FEW = 10
"""Up to so many lines a sentence repeats the differences that the table has."""


def findings(table: Table) -> list[str]:
    """Return who is first, who beats the base, who merely sharpens, and what gets worse; may be nothing."""
    column, lines = table.rank_column, standings(table)
    if column is None or len(lines) < 2:
        return []
    base, several = base_of(lines), several_settings(table)
    plain = f" at {table.settings[0].title}" if several else ""
    verdicts = {line.label: verdict(line.at_plain, column) for line in lines}
    gained = [line for line in lines if verdicts[line.label] == "better"]
    changed = {_changed(line, column): word for line, word in zip(lines, verdicts.values(), strict=True)}
    changed = changed if len(lines) <= FEW else verdicts
    said = _first(lines, column, plain)
    if base is not None and base.plain is not None:
        said += _against(changed, f"the base{plain} ({value(base.plain, column)})")
        if several and base.best is not None:
            said += _at_their_best(lines, base.best, column)
            said += _independent(lines, column)
            said += _sharpened(gained, base.plain, base.best, column)
        said += _got_worse(gained, base.plain, table, plain)
    return said


def _first(lines: Sequence[Standing], column: Column, plain: str) -> list[str]:
    """Say which row is first at the plain setting, and which rows the data cannot tell from it."""
    held = [(line.label, line.plain) for line in lines if line.plain is not None]
    if len(held) < 2:
        return []
    (label, row), *rest = held
    first = f"{label} is first by {column.title}{plain} ({value(row, column)})"
    return [f"{first}; {_behind(row, rest, column)}."]


def _behind(first: Row, others: Sequence[tuple[str, Row]], column: Column) -> str:
    """Say which rows the data cannot tell from the first, with room for the number of rows."""
    level, top = rank_level(len(others) + 1), first.cells[column.key]
    changes = [(label, cell_difference(row.cells[column.key], top, level=level)) for label, row in others]
    tied = [label for label, change in changes if change.tested and not change.significant]
    untested = [label for label, change in changes if not change.tested]
    parts = [f"{join(tied)} cannot be told from it"] if tied else []
    parts += [f"not tested (single values): {join(untested)}"] if untested else []
    return "; ".join(parts or ["all others are significantly behind"])


def _changed(line: Standing, column: Column) -> str:
    """A label, with the difference from the base at the plain setting where that is significant."""
    change = line.at_plain
    if change is None or not change.significant:
        return line.label
    return f"{line.label} ({column.signed(change.mean)})"


def _against(verdicts: Mapping[str, str], what: str) -> list[str]:
    groups = grouped((word, label) for label, word in verdicts.items() if word)
    words = AGAINST | {word: word for word in sorted(groups.keys() - AGAINST.keys())}
    parts = [f"{words[word]}: {join(groups[word])}" for word in words if word in groups]
    nobody = ["better: none"] if "better" not in groups else []
    return [f"Against {what} – {'; '.join([*nobody, *parts])}."] if parts else []


def _at_their_best(lines: Sequence[Standing], base: Row, column: Column) -> list[str]:
    """Say who is first where every model is sampled at its best, and who beats the base then."""
    scored = [(line.label, line.best) for line in lines if line.best is not None]
    (label, row), *rest = sorted(scored, key=lambda one: -column.score(one[1].cells[column.key]))
    verdicts = {line.label: verdict(line.at_best, column) for line in lines}
    said = f"Each at its own best setting, {label} is first ({_where(row, column)}); "
    said += f"{_behind(row, rest, column)}."
    return [" ".join([said, *_against(verdicts, f"the base's best ({_where(base, column)})")])]


def _independent(lines: Sequence[Standing], column: Column) -> list[str]:
    """Where some methods were rewarded by what ranks them: say which of the others beat the base's best."""
    methods = [line for line in lines if line.best is not None and not line.row.is_base]
    others = [line for line in methods if line.best and not line.best.cells[column.key].rewarded]
    if not others or len(others) == len(methods):
        return []
    better = [line.label for line in others if verdict(line.at_best, column) == "better"]
    who = f"{join(better)} {'is' if len(better) == 1 else 'are'}" if better else "none is"
    return [
        f"Of the methods whose rewards share no network with {column.title} (no †), {who} better than the "
        "base's best."
    ]


def _where(row: Row | None, column: Column) -> str:
    return f"{value(row, column)} at {row.setting.title}" if row else ""


def _sharpened(gained: Sequence[Standing], plain: Row, best: Row, column: Column) -> list[str]:
    """Name the methods whose gain is no more than what sampling the base differently gives."""
    only = [line.label for line in gained if verdict(line.at_best, column) in ("not significant", "worse")]
    if not only or best is plain:
        return []
    verb, their = ("sharpens", "its") if len(only) == 1 else ("sharpen", "their")
    return [
        f"As far as {column.title} tells, {join(only)} only {verb}: better than the base at "
        f"{plain.setting.title}, but at {their} best not better than the base at {best.setting.title}, which "
        "takes no training."
    ]


def _got_worse(gained: Sequence[Standing], base: Row, table: Table, plain: str) -> list[str]:
    """Say what the methods that gain by the ranking metric lose by others, at the plain setting."""
    ranking = table.rank_column
    losses = [
        (column.title, line.label)
        for column in table.columns
        if ranking is not None and column.key != ranking.key and not column.fact.detail
        for line in gained
        if line.plain is not None and column.key in line.plain.cells and column.key in base.cells
        if verdict(cell_difference(line.plain.cells[column.key], base.cells[column.key]), column) == "worse"
    ]
    if not gained or len(table.columns) < 2:
        return []
    parts = [f"{title} ({join(labels)})" for title, labels in grouped(losses).items()]
    what = f"these get worse: {'; '.join(parts)}" if parts else "no other metric gets significantly worse"
    return [f"Where a method is better than the base{plain}, {what}."]
