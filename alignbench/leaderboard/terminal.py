"""Tables and comparisons on a terminal, through rich."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from alignbench.leaderboard import cells, headline
from alignbench.leaderboard.audit import INTRODUCTION, NOTHING, Audit, line_of
from alignbench.leaderboard.compare import Comparison, MetricDifference
from alignbench.leaderboard.findings import findings
from alignbench.leaderboard.markdown import published_table
from alignbench.leaderboard.summary import sentences
from alignbench.leaderboard.table import Table, grouped, join, short
from alignbench.leaderboard.warnings import Warning
from alignbench.text import aligned, visible, wrapped

if TYPE_CHECKING:
    from alignbench.registry.schema import RewardCard
    from alignbench.registry.tables import PublishedCard

NARROW = 80
"""Columns of a terminal that has no more."""
MANY = 12
"""Rows that a terminal shows one by one."""


def rich_table(table: Table) -> RenderableType:
    """Return one table, narrow enough for 80 columns, with its summary below; files hold the rest.

    Metrics that are mere detail are left out; of a table of many rows the headline is shown.
    """
    if len(table.rows) > MANY and table.rank_column is not None:
        return _headline(table)
    titles_do = len({row.title for row in table.rows}) == len({row.name for row in table.rows})
    columns = [column for column in table.columns if not column.fact.detail]
    # Arrow and half-width on a line of their own: six metrics then fit a narrow terminal.
    metrics = [f"{column.title}\n{column.arrow}" for column in columns]
    left = {"#": [str(row.rank or "") for row in table.rows]}
    left["model"] = [row.title if titles_do else row.name for row in table.rows]
    title = f"{table.protocol.title} · {table.heading} · {short(table.protocol.digest)}"
    if len({row.setting.title for row in table.rows}) > 1:
        left["sampling"] = [row.setting.title for row in table.rows]
    else:
        title += f" · {table.rows[0].setting.title}"
    texts = [
        (head, [cells.metric(row, column).replace(" ± ", "\n±") for row in table.rows])
        for head, column in zip(metrics, columns, strict=True)
    ]
    grids = []
    for part in _fitting(left, texts):
        header, shown = zip(*left.items(), *part, strict=True)
        right = ["#", *(head for head, _ in part)]
        made = zip(*shown, strict=True)
        grids.append(grid(title, header, made, right=right, gap=0, caption=_caption(table)))
    said = [sentence.replace("**", "").split(" Other metrics")[0] for sentence in sentences(table)]
    if titles_do:  # what is changed stands in the plan above, and in the files
        longest = sorted(table.rows, key=lambda row: -len(row.name))
        said = [_replaced(text, {row.name: row.title for row in longest}) for text in said]
    return Group(*grids, *bullets(said))


def _fitting(
    left: Mapping[str, Sequence[str]], right: Iterable[tuple[str, Sequence[str]]]
) -> list[list[tuple[str, Sequence[str]]]]:
    """Share columns of numbers among as few tables as fit 80 columns, each with all columns of words."""
    parts: list[list[tuple[str, Sequence[str]]]] = [[]]
    taken = start = 2 + sum(_longest([name, *texts]) + 1 for name, texts in left.items())
    for name, texts in right:
        width = _longest([name, *texts]) + 1
        if taken + width > NARROW and parts[-1]:
            parts.append([])
            taken = start
        parts[-1].append((name, texts))
        taken += width
    return parts


def _longest(texts: Iterable[str]) -> int:
    """Letters of the longest word, but no more than a column of words may take."""
    return min(24, max(len(word) for text in texts for word in text.split() or [""]))


def _headline(table: Table) -> RenderableType:
    header, rows = headline.shown(table)
    right = [name for name in header if name not in headline.LEFT]
    marked = [[f"**{text}**" if bold else text for text, bold in row] for row in rows]
    shorter = {" ± ": "\n±", **{f", {word}": f" {mark}" for word, mark in headline.MARKS.items()}}
    texts = [[*(_replaced(x, shorter) for x in row[:-1]), row[-1].replace(" ", "\n", 1)] for row in marked]
    made = grid(headline.title(table), header, texts, right=right, gap=1, caption=headline.legend(table))
    return Group(made, *bullets(findings(table)))


def rich_warnings(warnings: Sequence[Warning]) -> RenderableType:
    """Return warnings below each other; nothing without one."""
    return Group(
        *([Text(), Text("Warnings", "bold")] if warnings else []), *bullets(x.text for x in warnings)
    )


def _replaced(text: str, words: Mapping[str, str]) -> str:
    for old, new in words.items():
        text = text.replace(old, new)
    return text


def _caption(table: Table) -> str:
    units = {cells.unit(row) for row in table.rows if any(cell.interval.n > 1 for cell in row.cells.values())}
    texts = [f"± is half of a 95 % interval over {' or '.join(sorted(units))}"] if units else []
    if cells.one_set(table):
        texts.append("‡ sampling error of one image set, not training luck")
    return "; ".join(texts)


def grid(
    title: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[str],
    gap: int,
    caption: str = "",
) -> RenderableType:
    """Return a table whose words and numbers stay whole; cells written `**text**` are bold.

    Args:
        right: headings of the columns that are aligned right.
        gap: spaces between columns, beside those of the frame.
    """
    made = Grid(
        title=Text(visible(title)) if title else None,
        caption=Text(visible(caption)) if caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        padding=(0, gap, 0, 0),
        pad_edge=False,
    )
    table = [list(map(visible, texts)) for texts in rows]
    for at, name in enumerate(map(visible, header)):
        if name in right:
            widest = min(max(map(len, name.split())), 16)  # a number is never that long
            made.add_column(Text(name), justify="right", overflow="fold", min_width=widest)
        else:  # no word of it is broken
            width = _longest([name, *(texts[at].strip("*") for texts in table)])
            made.add_column(Text(name), overflow="fold", min_width=width)
    bold = re.compile(r"\*\*(.+)\*\*", re.DOTALL)
    for texts in table:
        pairs = [(text, bold.fullmatch(text)) for text in texts]
        made.add_row(*(Text(marked[1], "bold") if marked else Text(text) for text, marked in pairs))
    return made


def bullets(texts: Iterable[str]) -> list[Text]:
    """Return one line, or more, for each text."""
    return [Text(f"· {visible(text)}") for text in texts]


def published_lines(card: PublishedCard, rewards: Mapping[str, RewardCard], width: int) -> list[str]:
    """Return the tables of a paper as aligned text, `width` characters wide if no number is wider: rows by
    model, and what is the same in every row said once."""
    lines = []
    for table in card.tables:
        header, rows, right = published_table(card, table, rewards)
        columns = {title: [row[at].strip("*") for row in rows] for at, title in enumerate(header)}
        alike = {x: texts[0] for x, texts in columns.items() if x not in right and len(set(texts)) == 1}
        models = columns.pop("model", [""] * len(rows))
        shown = {title: texts for title, texts in columns.items() if title not in alike}
        head, *made = aligned(list(shown), zip(*shown.values(), strict=True), width - 2, right)
        said = [f"as stated: {table.stated}"]
        said += [f"in every row: {', '.join(f'{x} {text}' for x, text in alike.items())}"] if alike else []
        texts = [head]
        for number, (model, row) in enumerate(zip(models, made, strict=True)):
            if "model" not in alike and model != (models[number - 1] if number else ""):
                texts.append(model)
            texts.append(row)
        lines += wrapped(f"{table.id}: {table.caption}", width)
        lines += [line for text in said for line in wrapped(text, width, "    ", "  ")]
        lines += [f"  {line}" for text in texts for line in text.splitlines()] + [""]
    return lines


def rich_audit(found: Audit) -> RenderableType:
    """Return published numbers beside measured ones, a table for each published one."""
    parts: list[RenderableType] = [Text(INTRODUCTION.replace("*", ""))]
    if not found.compared:
        parts.append(Text(NOTHING.strip("*")))
    numbers = ["published", "measured", "difference"]
    for where, items in grouped((x.where, x) for x in found.compared).items():
        rows = []
        for model, printed, measured, metric, published, value, difference, verdict in map(line_of, items):
            row = f"{model}, {printed}\nhere: {measured}"
            rows.append([row, metric, published, value.replace(" ± ", "\n±"), difference, verdict])
        header = ["row", "metric", *numbers, "verdict"]
        parts += [Text(), grid(where, header, rows, right=numbers, gap=0)]
        parts += bullets(dict.fromkeys(remark for x in items for remark in x.remarks))
    left = [f"published, can be measured, not measured: {x}, {n} numbers" for x, n in found.missing.items()]
    return Group(*parts, *bullets(left))


# --- comparisons ----------------------------------------------------------------------------------

CAUTION = "training luck is in no interval here: nothing is said about other training seeds"
METHOD = "95 % intervals, no correction for the number of comparisons; difference is B minus A"


def rich_comparison(comparison: Comparison) -> RenderableType:
    """Return tables, one a setting, with sentences below; narrow enough for 80 columns."""
    sides = {"A": comparison.a, "B": comparison.b}
    parts: list[RenderableType] = [Text(f"{letter} {x.title} ({x.record.id})") for letter, x in sides.items()]
    groups = grouped(
        (f"{item.protocol.title} · {item.setting.title} · {short(item.protocol.digest)}", item)
        for item in comparison.metrics
    )
    numbers = ["A", "B", "difference"]
    for title, items in groups.items():
        made = grid(title, ["metric", *numbers, "evidence"], map(_row, items), right=numbers, gap=1)
        outcomes = grouped((item.outcome, item.column.title) for item in items)
        said = [f"{join(titles)}: {outcome}." for outcome, titles in outcomes.items()]
        parts += [Text(), made, *bullets(said)]
    return Group(*parts, Text(), *bullets(_notes(comparison)))


def _row(item: MetricDifference) -> list[str]:
    column, change = item.column, item.difference
    return [
        f"{column.title} {column.arrow}",
        column.text(item.a.interval.mean),
        column.text(item.b.interval.mean),
        f"{column.signed(change.mean)}\n{column.span(change)}".rstrip(),
        f"{item.evidence}\n{item.detail}",
    ]


def _notes(comparison: Comparison) -> list[str]:
    sides = comparison.a, comparison.b
    notes = [METHOD]
    if "method" in {side.subject for side in sides}:
        notes.append(CAUTION)
    reasons = grouped((item.why, item.column.title) for item in comparison.metrics if item.why)
    notes += [
        f"{join(dict.fromkeys(titles))}: not compared image by image, {why}"
        for why, titles in reasons.items()
    ]
    notes += [
        f"{side.record.id} is {side.record.status}" for side in sides if side.record.status != "complete"
    ]
    return [*notes, *(f"not compared: {reason}" for reason in comparison.left_out)]
