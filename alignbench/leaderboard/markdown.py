"""Boards as Markdown: a page per protocol, an index. The same records give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alignbench.leaderboard import cells
from alignbench.leaderboard.summary import verdict
from alignbench.leaderboard.table import Board, Row, Table, Unranked, short
from alignbench.record import RunRecord

if TYPE_CHECKING:
    from alignbench.registry.protocol import PublishedCard, PublishedTable


MARKER = "<!-- Made by `alignbench leaderboard` from records/*.json; do not edit. -->"


def grid(header: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Sequence[bool]) -> list[str]:
    """Return the lines of a pipe table; columns marked numeric are aligned right."""
    lines = [line(header), line(["--:" if right else ":--" for right in numeric])]
    return lines + [line(row) for row in rows]


def line(texts: Sequence[str]) -> str:
    escaped = [text.replace("|", "\\|").replace("\n", " ") for text in texts]
    return f"| {' | '.join(escaped)} |"


def bullets(texts: Iterable[str]) -> list[str]:
    return [f"- {text}" for text in texts]


def page_name(table: Table) -> str:
    """File of a table's protocol."""
    return f"{table.protocol.name}-v{table.protocol.version}.md"


def pages(board: Board) -> dict[str, str]:
    """Return {file name: text} of every protocol."""
    groups: dict[str, list[Table]] = {}
    for table in board.tables:
        groups.setdefault(page_name(table), []).append(table)
    return {name: _page(tables, board) for name, tables in sorted(groups.items())}


def _page(tables: Sequence[Table], board: Board) -> str:
    protocol = tables[0].protocol
    lines = [MARKER, "", f"# {protocol.title}", ""]
    lines += [
        "Rows are compared within one table only: one protocol digest, one reference, one starting model. "
        "Numbers printed in papers are in [published.md](published.md) and are not ranked here.",
        "",
    ]
    for table in tables:
        lines += [f"## {table.heading}", "", *_header(table), *table_lines(table), ""]
        lines += _section("What the table says", bullets(verdict(table)))
        lines += _section("How to read it", bullets([*cells.footnotes(table), *_provenance(table)]))
    digests = {table.protocol.digest for table in tables}
    left_out = [item for item in board.unranked if digests.intersection(item.protocols)]
    lines += _section("Not ranked", unranked_lines(left_out), level=2)
    lines += _section("Runs", _run_lines(tables, board.records), level=2)
    return "\n".join(lines).rstrip() + "\n"


def _header(table: Table) -> list[str]:
    """Digests before the table, where there is another table or another file that it could be taken for."""
    if not (table.assets or table.label):
        return []
    parts = [f"Protocol digest `{short(table.protocol.digest)}`", _reference(table)]
    own = set(table.own_assets)
    assets = [
        f"{name} `{short(digest)}`{' (own file)' if name in own else ''}"
        for name, digest in table.assets.items()
    ]
    parts += [f"made with {', '.join(assets)}"] if assets else []
    return ["; ".join(parts) + ".", ""]


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


def _section(title: str, body: Sequence[str], *, level: int = 3) -> list[str]:
    return [f"{'#' * level} {title}", "", *body, ""] if body else []


def table_lines(table: Table) -> list[str]:
    """Return the lines of the ranked table."""
    metrics = [f"{column.title} {column.arrow}" for column in table.columns]
    header = ["rank", "row", "setting", *metrics, "n", *cells.COST_HEADERS]
    numeric = [True, False, False, *[True] * len(metrics), False, True, True, False, True, True]
    return grid(header, [_row(row, table) for row in table.rows], numeric=numeric)


def _row(row: Row, table: Table) -> list[str]:
    metrics = []
    for column in table.columns:
        text = cells.metric(row, column)
        metrics.append(f"**{text}**" if cells.is_best(row, column) else text)
    name = f"**{row.title}** ({row.detail})" if row.detail else row.title
    label = f"{name}, control" if row.kind == "control" else name
    return [cells.rank(row), label, row.setting.title, *metrics, cells.unit(row), *cells.cost(row)]


def _provenance(table: Table) -> list[str]:
    weights = ", ".join(f"{role} `{short(digest)}`" for role, digest in table.weights.items())
    start = f"Starting model `{table.model_name}`: {weights or 'random weights'}."
    return [
        provenance(table),
        start if table.model_name else "The images were given, not made by alignbench.",
        f"Evaluated by {', '.join(sorted({column.evaluator for column in table.columns}))}.",
    ]


def unranked_lines(items: Iterable[Unranked]) -> list[str]:
    return bullets(f"`{item.id}`: {item.reason}" for item in items)


def _run_lines(tables: Sequence[Table], records: Sequence[RunRecord]) -> list[str]:
    shown = {run for table in tables for row in table.rows for run in row.runs}
    rows = []
    for record in records:
        if record.id in shown:
            place = record.environment
            versions = f"alignbench {place.alignbench}, torch {place.torch}, {place.device}"
            rows.append([f"`{record.id}`", f"`{record.command}`", versions, record.finished or ""])
    return grid(["run", "command", "where", "finished"], rows, numeric=[False] * 4) if rows else []


def index(board: Board, *, published: bool) -> str:
    """Return the text of `README.md`: what there is, and what is not ranked and why."""
    lines = [MARKER, "", "# Leaderboards", ""]
    lines += [
        "Made from the run records in `records/` by `alignbench leaderboard`; "
        "`alignbench leaderboard --check` makes them again and reports any difference.",
        "",
    ]
    rows = [
        [
            f"[{table.protocol.title}]({page_name(table)})",
            table.heading,
            str(len(table.rows)),
            table.rank_column.title if table.rank_column else "",
            _leader(table),
            f"`{short(table.protocol.digest)}`",
        ]
        for table in board.tables
    ]
    header = ["protocol", "model", "rows", "ranked by", "first", "digest"]
    if rows:
        lines += [*grid(header, rows, numeric=[False, False, True, False, False, False]), ""]
    else:
        lines += ["No run is ranked yet.", ""]
    if published:
        lines += ["Numbers printed in papers, never ranked with ours: [published.md](published.md).", ""]
    lines += _section("Not ranked", unranked_lines(board.unranked), level=2)
    return "\n".join(lines).rstrip() + "\n"


def _leader(table: Table) -> str:
    """The rows of rank 1."""
    column = table.rank_column
    if column is None:
        return ""
    first = [row for row in table.rows if row.rank == 1]
    return "; ".join(
        f"{row.name}, {row.setting.title}: {column.shown(row.cells[column.key].interval)}" for row in first
    )


def published_page(cards: Mapping[str, PublishedCard]) -> str:
    """Return the text of `published.md`."""
    lines = [MARKER, "", "# Published numbers", ""]
    lines += [
        "As printed by the authors of each paper, with the table they stand in. Nothing here was measured by "
        "alignbench, and no row is ranked with rows that were: protocols differ in ways papers do not state.",
        "",
    ]
    for _, card in sorted(cards.items()):
        lines += [f"## {card.title}", "", _source(card), ""]
        for table in card.tables:
            lines += _table(table)
        if card.inconsistencies:
            texts = (f"{item.what}: {' / '.join(item.values)}" for item in card.inconsistencies)
            lines += ["### Where the paper disagrees with itself", "", *bullets(texts), ""]
        if card.notes:
            lines += ["### Notes", "", *bullets(card.notes), ""]
    return "\n".join(lines).rstrip() + "\n"


def _source(card: PublishedCard) -> str:
    return f"*published* · {card.paper}" if card.paper else "*published*"


def _table(table: PublishedTable) -> list[str]:
    names = _in_order(name for row in table.rows for name in row.values)
    with_model = any(row.model for row in table.rows)
    with_note = any(row.note for row in table.rows)
    digits = {name: max(map(_decimals, _column(table, name))) for name in names}
    header = ["method", *["model"] * with_model, *names, *["note"] * with_note]
    rows = []
    for row in table.rows:
        values = [f"*{row.values[name]:.{digits[name]}f}*" if name in row.values else "" for name in names]
        model, note = [row.model] * with_model, [row.note] * with_note
        rows.append([f"*{row.method}*", *model, *values, *note])
    numeric = [False, *[False] * with_model, *[True] * len(names), *[False] * with_note]
    setting = ", ".join(f"{key} = {_text(value)}" for key, value in table.setting.items())
    return [
        f"### {table.id}: {table.caption}",
        "",
        f"*published*, not ranked. Setting as stated: {setting or 'none'}.",
        "",
        *grid(header, rows, numeric=numeric),
        "",
    ]


def _column(table: PublishedTable, name: str) -> list[float]:
    return [row.values[name] for row in table.rows if name in row.values]


def _decimals(value: float) -> int:
    """Digits after the point; columns are printed with those of their longest value, as papers do."""
    return len(f"{value:.6f}".rstrip("0").partition(".")[2])


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
