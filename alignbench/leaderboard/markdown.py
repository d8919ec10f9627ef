"""Boards as Markdown: a page per protocol, an index. The same records give the same bytes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from alignbench.leaderboard import cells, headline
from alignbench.leaderboard.findings import findings
from alignbench.leaderboard.table import Board, Row, Table, Unranked, grouped, short
from alignbench.leaderboard.warnings import Warning, warnings_of
from alignbench.record import RunRecord
from alignbench.text import markdown, markdown_code

if TYPE_CHECKING:
    from alignbench.registry.schema import RewardCard
    from alignbench.registry.tables import PublishedCard, PublishedTable

MARKER = "<!-- Made by `alignbench leaderboard` from records/*.json; do not edit. -->"


def grid(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = ()) -> list[str]:
    """Return the lines of a pipe table; the columns titled in `right` are aligned right."""
    return [_line(texts) for texts in (header, ["--:" if name in right else ":--" for name in header], *rows)]


def _line(texts: Sequence[str]) -> str:
    # A line break would end the row, a bar the cell.
    escaped = [re.sub(r"(?<!\\)\|", r"\|", text).replace("\n", " ") for text in texts]
    return f"| {' | '.join(escaped)} |"


def bullets(texts: Iterable[str]) -> list[str]:
    return [f"- {text}" for text in texts]


def section(title: str, body: Sequence[str], *, level: int = 2) -> list[str]:
    """Return a heading with its lines; nothing without lines."""
    return [f"{'#' * level} {title}", "", *body, ""] if body else []


def text_of(lines: Sequence[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


# --- pages ----------------------------------------------------------------------------------------


def page_name(table: Table) -> str:
    return f"{_stem(table)}.md"


def _stem(table: Table) -> str:
    return f"{table.protocol.name}-v{table.protocol.version}"


def picture_name(table: Table) -> str:
    """Return the file of a table's picture; nothing where there is nothing to draw."""
    if table.rank_column is None or not headline.several_settings(table):
        return ""
    label = re.sub(r"[^A-Za-z0-9.]+", "-", table.label)
    return f"{'-'.join(filter(None, (_stem(table), table.model_name, label)))[:200]}.png"


def pictures(board: Board) -> dict[str, Table]:
    """Return {file name: the table that is drawn there}."""
    return {name: table for table in board.tables if (name := picture_name(table))}


def pages(board: Board) -> dict[str, str]:
    """Return {file name: text} of every protocol."""
    groups = grouped((page_name(table), table) for table in board.tables)
    return {name: _page(tables, board) for name, tables in sorted(groups.items())}


def _page(tables: Sequence[Table], board: Board) -> str:
    lines = [
        MARKER,
        "",
        f"# {markdown(tables[0].protocol.title)}",
        "",
        "Rows are compared within one table only: one protocol digest, one reference, one starting model. "
        "Numbers printed in papers are in [published.md](published.md) and are not ranked here.",
        "",
    ]
    for table in tables:
        body = [*first_screen(table, picture_name(table)), *_folded(table, board)]
        lines += section(markdown(table.heading), body[:-1])
    digests = {table.protocol.digest for table in tables}
    left_out = [item for item in board.unranked if digests.intersection(item.protocols)]
    return text_of([*lines, *section("Not ranked", _unranked_lines(left_out))])


def first_screen(table: Table, picture: str = "") -> list[str]:
    """Return the lines that most readers need: what is ranked, the headline, its picture, what it says."""
    header, rows = headline.shown(table)
    title, explained, legend = (x(table) for x in (headline.title, headline.explained, headline.legend))
    lines = [f"**{markdown(title)}**", "", *([markdown(explained), ""] if explained else [])]
    if rows:
        right = {markdown(name) for name in header if name not in headline.LEFT}
        texts = [[f"**{markdown(text)}**" if bold else markdown(text) for text, bold in row] for row in rows]
        lines += [*grid([markdown(name) for name in header], texts, right=right), "", markdown(legend), ""]
    lines += [f"![trade-off]({picture})", "", *headline.picture_note(table)] if picture else []
    return [*lines, *bullets(map(markdown, findings(table))), "", *warned(warnings_of(table))]


def warned(warnings: Sequence[Warning]) -> list[str]:
    """Return warnings below each other, folded where they are many; nothing without one."""
    texts = bullets(markdown(warning.text) for warning in warnings)
    if len(texts) > 4:
        return details(f"{len(texts)} warnings: {', '.join(warning.kind for warning in warnings)}", texts)
    return ["**Warnings**", "", *texts, ""] if texts else []


def notes(table: Table) -> list[str]:
    """Return how the numbers were made and what they mean."""
    return [*cells.footnotes(table), *_provenance(table), *_files(table)]


def _folded(table: Table, board: Board) -> list[str]:
    runs = _run_lines(table, board.records)
    return [
        *details("All settings, all metrics, costs", table_lines(table)),
        *details("Statistics, runs and commands", [*bullets(notes(table)), "", *runs]),
    ]


def details(summary: str, body: Sequence[str]) -> list[str]:
    """Return a part that is folded until it is asked for; GitHub renders its Markdown between blank lines."""
    return [f"<details><summary>{summary}</summary>", "", *body, "", "</details>", ""]


def _files(table: Table) -> list[str]:
    """Digests of the table, where there is another table or another file that it could be taken for."""
    if not (table.assets or table.label):
        return []
    parts = [f"Protocol digest `{short(table.protocol.digest)}`", _reference(table)]
    assets = [
        f"{markdown(name)} `{short(digest)}`{' (own file)' if name in table.own_assets else ''}"
        for name, digest in table.assets.items()
    ]
    parts += [f"made with {', '.join(assets)}"] if assets else []
    return ["; ".join(parts) + "."]


def _reference(table: Table) -> str:
    return f"reference `{short(table.reference)}`" if table.reference else "no reference"


def provenance(table: Table) -> str:
    """Return one sentence that names protocol, sample size, seeds and reference."""
    protocol = table.protocol
    seeds = ", ".join(map(str, table.seeds))
    return (
        f"Protocol `{protocol.name}` version {protocol.version}, digest `{short(protocol.digest)}`; "
        f"{table.n:,} images for each sampling seed ({seeds}); {_reference(table)}."
    )


def table_lines(table: Table) -> list[str]:
    metrics = list(map(markdown, cells.heads(table.columns)))
    header = ["rank", "row", "setting", cells.EXTERNAL, *metrics, "n", *cells.COST_HEADERS]
    right = {"rank", *metrics, *cells.COST_HEADERS} - {"device"}
    ordered = sorted(table.rows, key=lambda row: row.rank or len(table.rows) + 1)
    return grid(header, [_row(row, table) for row in ordered], right=right)


def _row(row: Row, table: Table) -> list[str]:
    title, detail = markdown(row.title), markdown(row.detail)
    name = f"**{title}** ({detail})" if detail else title
    return [
        str(row.rank or ""),
        f"{name}, control" if row.kind == "control" else name,
        markdown(row.setting.title),
        row.external,
        *(cells.metric(row, column) for column in table.columns),
        cells.unit(row),
        *map(markdown, cells.cost(row)),
    ]


def _provenance(table: Table) -> list[str]:
    weights = ", ".join(f"{markdown(role)} `{short(digest)}`" for role, digest in table.weights.items())
    start = f"Starting model `{table.model_name}`: {weights or 'random weights'}."
    return [
        provenance(table),
        start if table.model_name else "The images were given, not made by alignbench.",
        f"Evaluated by {markdown(', '.join(sorted({column.evaluator for column in table.columns})))}.",
    ]


def _unranked_lines(items: Iterable[Unranked]) -> list[str]:
    return bullets(f"{markdown_code(item.id)}: {markdown(item.reason)}" for item in items)


def _run_lines(table: Table, records: Sequence[RunRecord]) -> list[str]:
    shown = {run for row in table.rows for run in row.runs}
    rows = []
    for record in records:
        if record.id in shown:
            made = record.environment
            versions = f"alignbench {made.alignbench}, torch {made.torch}, {made.device}"
            names = [markdown_code(record.id), markdown_code(record.command)]
            rows.append([*names, markdown(versions), record.finished or ""])
    return grid(["run", "command", "where", "finished"], rows) if rows else []


def index(board: Board, *, published: bool) -> str:
    """Return the text of `README.md`: what there is, and what is not ranked and why."""
    lines = [
        MARKER,
        "",
        "# Leaderboards",
        "",
        "Made from the run records in `records/` by `alignbench leaderboard`; "
        "`alignbench leaderboard --check` makes them again and reports any difference.",
        "",
    ]
    rows = [
        [
            f"[{markdown(table.protocol.title)}]({page_name(table)})",
            markdown(table.heading),
            str(len({row.identity for row in table.rows if not row.is_base})),
            table.rank_column.title if table.rank_column else "",
            _leader(table),
            f"`{short(table.protocol.digest)}`",
        ]
        for table in board.tables
    ]
    header = ["protocol", "model", "methods", "ranked by", "first", "digest"]
    lines += [*(grid(header, rows, right={"methods"}) if rows else ["No run is ranked yet."]), ""]
    if published:
        lines += ["Numbers printed in papers, never ranked with ours: [published.md](published.md).", ""]
        lines += ["Those of them that can be held against measured rows: [audit.md](audit.md).", ""]
    return text_of([*lines, *section("Not ranked", _unranked_lines(board.unranked))])


def _leader(table: Table) -> str:
    """The first line of the headline."""
    column, lines = table.rank_column, headline.standings(table)
    if column is None or not lines or lines[0].plain is None:
        return ""
    first, row = lines[0], lines[0].plain
    return markdown(f"{first.label}, {row.setting.title}: {headline.value(row, column)}, rank {first.ranks}")


# --- published numbers ----------------------------------------------------------------------------


def published_page(cards: Mapping[str, PublishedCard], rewards: Mapping[str, RewardCard]) -> str:
    """Return the text of `published.md`; the cards of rewards tell those from outside the image."""
    lines = [
        MARKER,
        "",
        "# Published numbers",
        "",
        "As printed by the authors of each paper, with the table they stand in. Nothing here was measured by "
        "alignbench, and no row is ranked with rows that were: protocols differ in ways papers do not state.",
        "",
    ]
    for _, card in sorted(cards.items()):
        lines += section(card.title, [f"*published* · {card.paper}" if card.paper else "*published*"])
        for table in card.tables:
            header, rows, right = published_table(card, table, rewards)
            body = [f"*published*, not ranked. Setting as stated: {table.stated}.", ""]
            body += grid(header, rows, right=right)
            lines += section(f"{table.id}: {table.caption}", body, level=3)
        disagreeing = [f"{item.what}: {' / '.join(item.values)}" for item in card.inconsistencies]
        lines += section("Where the paper disagrees with itself", bullets(disagreeing), level=3)
        lines += section("Notes", bullets(card.notes), level=3)
    return text_of(lines)


def decimals(table: PublishedTable) -> dict[str, int]:
    """Return {column: decimals of its longest value}: a paper prints a column with equally many."""
    digits: dict[str, int] = {}
    for row in table.rows:
        for name, value in row.values.items():
            exponent = Decimal(str(value)).normalize().as_tuple().exponent
            digits[name] = max(-int(exponent), digits.get(name, 0))
    return digits


def published_table(
    card: PublishedCard, table: PublishedTable, rewards: Mapping[str, RewardCard]
) -> tuple[list[str], list[list[str]], Collection[str]]:
    """Return header, rows and the titles of columns of numbers; numbers are in italics."""
    digits = decimals(table)
    columns: dict[str, list[str]] = {"method": [f"*{row.method}*" for row in table.rows]}
    columns["model"] = [row.model for row in table.rows]
    trained = [card.rewards.get(row.run or row.method) for row in table.rows]
    columns[cells.EXTERNAL] = ["" if names is None else cells.external(names, rewards) for names in trained]
    for name, places in digits.items():
        columns[name] = [f"*{x.values[name]:.{places}f}*" if name in x.values else "" for x in table.rows]
    columns["note"] = [row.note for row in table.rows]
    columns = {title: texts for title, texts in columns.items() if any(texts)}
    return list(columns), [list(texts) for texts in zip(*columns.values(), strict=True)], digits
