"""The first table of a board: one line for each configuration and one for the base model.

Every model is shown at the plain setting, the protocol's first, and at its own best one; the base at its best
is what a method has to beat, as nothing has to be trained for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from alignbench.leaderboard import cells
from alignbench.leaderboard.cells import names
from alignbench.leaderboard.ranking import cell_difference, rank_intervals
from alignbench.leaderboard.summary import outcome
from alignbench.leaderboard.table import Column, Cost, Row, Table, grouped, number
from alignbench.metrics.intervals import Difference

VERDICTS = {
    "better than": "better", "worse than": "worse", "not significantly different from": "not significant",
}  # fmt: skip
MARKS = {"better": "▲", "worse": "▼", "not significant": "≈"}
"""{verdict against the base at the plain setting: its mark}; what was not tested has none."""

PICTURED = 7
"""Methods in a picture; more would look alike."""
LEFT = {"rank (95 %)", "method", "images", "seeds"}
"""Columns of words, aligned left."""
Shown = tuple[str, bool]
"""A text of a table, and whether it is bold."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One configuration, the base model, or one set of given images."""

    row: Row
    """Any of its rows: what they have in common."""
    label: str
    plain: Row | None
    """At the plain setting; None where it has no value of the ranking metric there."""
    best: Row | None
    """At the setting that is best for it; None without any value."""
    rank: int | None = None
    """Position by mean at the plain setting."""
    span: tuple[int, int] | None = None
    """Ranks that the data allow; see `ranking.rank_intervals`."""
    at_plain: Difference | None = None
    """From the base at the plain setting; None for the base, or where either has no value."""
    at_best: Difference | None = None
    """Best from the base's best."""

    @property
    def ranks(self) -> str:
        """`2 (1–3)`, or nothing without a rank."""
        if self.rank is None or self.span is None:
            return ""
        low, high = self.span
        return f"{self.rank} ({low}–{high})" if high > low else f"{self.rank} ({low})"


def standings(table: Table) -> list[Standing]:
    """Return the lines in order of the plain mean, those without one last; none without a ranking metric."""
    column = table.rank_column
    if column is None:
        return []
    called = names(table)
    lines = []
    for identity, rows in grouped((row.identity, row) for row in table.rows).items():
        scored = [row for row in rows if column.key in row.cells]
        at_plain = [row for row in scored if row.kind == "samples" or row.setting == table.settings[0]]
        best = max(scored, key=lambda row: column.score(row.cells[column.key]), default=None)
        plain = at_plain[0] if at_plain else None
        lines.append(Standing(row=rows[0], label=called[identity], plain=plain, best=best))

    def place(line: Standing) -> tuple[float, str]:
        return (-column.score(line.plain.cells[column.key]) if line.plain else math.inf), line.label

    return _against_base(_ranked(sorted(lines, key=place), column), column)


def pictured(table: Table) -> list[Standing]:
    """Return the lines of a picture: the base, and the methods that are best at their own best setting."""
    column, lines = table.rank_column, standings(table)
    scores = {
        id(line): column.score(line.best.cells[column.key])
        for line in lines
        if column is not None and line.best is not None and not line.row.is_base
    }
    kept = sorted(scores, key=lambda key: -scores[key])[:PICTURED]
    return [line for line in lines if line.row.is_base or id(line) in kept]


def picture_note(table: Table) -> list[str]:
    """Return what the picture leaves out, as a paragraph; nothing where it shows all."""
    if len(pictured(table)) == len(standings(table)):
        return []
    return [f"Drawn: the base and the {PICTURED} methods that are best at their own best setting.", ""]


def _ranked(lines: Sequence[Standing], column: Column) -> list[Standing]:
    held = [line.plain.cells[column.key] for line in lines if line.plain]
    scores = [column.score(cell) for cell in held]
    spans = rank_intervals(held, column)
    ranked = [
        replace(line, rank=1 + sum(other > score for other in scores), span=span)
        for line, score, span in zip(lines, scores, spans, strict=False)  # those without a value are last
    ]
    return [*ranked, *lines[len(ranked) :]]


def _against_base(lines: Sequence[Standing], column: Column) -> list[Standing]:
    base = base_of(lines)
    if base is None:
        return list(lines)

    def change(row: Row | None, other: Row | None) -> Difference | None:
        if row is None or other is None:
            return None
        return cell_difference(row.cells[column.key], other.cells[column.key])

    return [
        line if line is base else
        replace(line, at_plain=change(line.plain, base.plain), at_best=change(line.best, base.best))
        for line in lines
    ]  # fmt: skip


def base_of(lines: Sequence[Standing]) -> Standing | None:
    return next((line for line in lines if line.row.is_base), None)


def verdict(change: Difference | None, column: Column) -> str:
    """`better`, `worse`, `not significant`, `better (one value, not tested)`; empty without a difference."""
    if change is None:
        return ""
    text = outcome(change, column)
    return VERDICTS.get(text) or text.replace(" than", "").replace(" to", "")


def value(row: Row | None, column: Column) -> str:
    """Mean ± half-width with its marks."""
    return cells.metric(row, column, bold=False) if row else ""


def several_settings(table: Table) -> bool:
    return len(table.settings) > 1 and bool(table.model_name)


# --- as a table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadColumn:
    """One column of the table."""

    title: str
    texts: tuple[Shown, ...]
    values: tuple[float | str | None, ...]
    """What its texts are sorted by; None comes last."""


def columns(table: Table) -> list[HeadColumn]:
    """Return the columns, at most seven, or none without a ranking metric; bold is a column's best mean."""
    column, lines = table.rank_column, standings(table)
    if column is None:
        return []
    base, several = base_of(lines), several_settings(table)
    head = f"{column.title} {column.arrow}"
    plain = [value(line.plain, column) for line in lines]
    marks = [MARKS.get(verdict(line.at_plain, column), "") if several else "" for line in lines]
    marked = [f"{text} {mark}".rstrip() for text, mark in zip(plain, marks, strict=True)]
    ranks = [line.rank for line in lines]
    means = [_mean(line.plain, column) for line in lines]
    names = [line.label for line in lines]
    made = [
        _column("rank (95 %)", [line.ranks for line in lines], ranks),
        _column("method" if table.model_name else "images", names, names),
        _column(f"plain {head}" if several else head, marked, means, bold=[rank == 1 for rank in ranks]),
    ]
    if several:
        best = [_mean(line.best, column) for line in lines]
        texts = [f"{value(x, column)} ({x.setting.title})" if x else "" for x in (y.best for y in lines)]
        leading = max((mean for mean in best if mean is not None), key=column.gain, default=None)
        made.append(_column("own best (setting)", texts, best, bold=[mean == leading for mean in best]))
    if base is not None and base.best is not None and len(lines) > 1:
        than = column.text(base.best.cells[column.key].interval.mean)
        texts = [_change(line, column) for line in lines]
        values = [line.at_best.mean if line.at_best else None for line in lines]
        made.append(_column(f"against base's {'best, ' if several else ''}{than}", texts, values))
    costs = [line.row.cost for line in lines]
    if any(costs):
        seconds = [math.fsum(x.seconds) / len(x.seconds) if x else None for x in costs]
        made.append(_column("training", [cost(spent) for spent in costs], seconds))
    seeds = [_seeds(line) for line in lines]
    return [*made, _column("seeds", seeds, seeds)]


def _column(
    title: str,
    texts: Sequence[str],
    values: Sequence[float | str | None],
    *,
    bold: Sequence[bool] = (),
) -> HeadColumn:
    marked = zip(texts, bold or [False] * len(texts), strict=True)
    return HeadColumn(title, tuple(marked), tuple(values))


def _mean(row: Row | None, column: Column) -> float | None:
    return row.cells[column.key].interval.mean if row else None


def shown(table: Table) -> tuple[list[str], list[list[Shown]]]:
    """Return header and rows of `columns`."""
    made = columns(table)
    return [x.title for x in made], [list(texts) for texts in zip(*(x.texts for x in made), strict=True)]


def _change(line: Standing, column: Column) -> str:
    if line.at_best is None:
        return ""
    mark = "†" * (line.best is not None and line.best.cells[column.key].rewarded)
    span = column.span(line.at_best).strip("[]").replace(", ", " to ")
    size = f"{column.signed(line.at_best.mean)}{mark}{span and f' ({span})'}"
    return f"{size}, {verdict(line.at_best, column)}"


def cost(spent: Cost | None) -> str:
    """Mean time over the training seeds, and the device; nothing without a cost."""
    if spent is None:
        return ""
    seconds, devices = spent.seconds, ", ".join(spent.devices)
    if len(spent.devices) > 1 and len(seconds) > 1:  # a mean over different devices means nothing
        return f"{duration(min(seconds))} – {duration(max(seconds))}, {devices}"
    return f"{duration(math.fsum(seconds) / len(seconds))}, {devices}"


def duration(seconds: float) -> str:
    """`4.3 s`, `25 min`, `3.1 h`."""
    size, unit = (1, "s") if seconds < 120 else (60, "min") if seconds < 7200 else (3600, "h")
    return f"{number(seconds / size, 0 if seconds / size >= 10 else 1)} {unit}"


def _seeds(line: Standing) -> str:
    row, trained = line.plain or line.best or line.row, line.row.kind == "method"
    return f"{len(row.training_seeds)} training" if trained else cells.unit(row).removesuffix(" seeds")


# --- around the table -----------------------------------------------------------------------------


def title(table: Table) -> str:
    """Return what is ranked by what, on how many images."""
    column = table.rank_column
    by = f"{column.title}, {column.fact.direction} is better" if column else "no value of the ranking metric"
    images = f"{len(table.seeds)} sampling seed{'s' if len(table.seeds) > 1 else ''} × {table.n:,} images"
    return " · ".join((table.protocol.title, table.heading, by, images))


def explained(table: Table) -> str:
    """Return what the metric is, and what plain and best mean where there are several settings."""
    column = table.rank_column
    texts = [f"{column.title}: {column.fact.doc}"] if column and column.fact.doc else []
    if several_settings(table):
        settings = "; ".join(setting.title for setting in table.settings)
        texts.append(
            f"Plain is {table.settings[0].title}, the protocol's first setting; own best is, for each model, "
            f"the best of its {len(table.settings)} settings ({settings}), chosen on the images shown here."
        )
    return " ".join(texts)


def legend(table: Table) -> str:
    """Return how to read the table, in one paragraph."""
    lines, column = standings(table), table.rank_column
    if column is None:
        return ""
    texts = ["Rank: position by mean; in brackets the ranks that the data allow, 95 % for each row."]
    if base_of(lines) is not None and several_settings(table):
        texts.append(
            "Against the base at the plain setting: ▲ better, ▼ worse, ≈ not significantly different (95 %). "
            "A method adds something to the base only if its best is better than the base's best; otherwise, "
            "as far as these numbers tell, sampling the base differently does as well without training. The "
            "ranks allow for the number of rows, the marks do not, so a row with a mark may share ranks with "
            "the base."
        )
    kinds = {line.row.kind == "method" for line in lines if line.row.kind != "samples"}
    seeds = "the seeds in the last column"
    both = ": a method is trained again for each, the base only sampled again" if len(kinds) > 1 else ""
    texts += cells.intervals(table, seeds + both)
    held = [row.cells[column.key] for row in table.rows if column.key in row.cells]
    texts += [cells.REWARDED] if any(cell.rewarded for cell in held) else []
    texts += ["Training: time of one run."] if True in kinds else []
    return " ".join([*texts, "Bold: best mean."])
