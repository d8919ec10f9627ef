"""Numbers printed in papers, as Markdown: italic, sourced, never ranked with measured rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from alignbench.render.markdown import MARKER, bullets, grid

if TYPE_CHECKING:
    from alignbench.registry.protocol import PublishedCard, PublishedTable


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
