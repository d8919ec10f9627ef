"""A leaderboard folder as one page: the first screen of every table, all rows, their trade-offs and runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignbench.html.render import render
from alignbench.leaderboard import cells, headline, markdown
from alignbench.leaderboard.findings import findings
from alignbench.leaderboard.table import Board, Cell, Column, Row, Table, grouped
from alignbench.leaderboard.warnings import warnings_of
from alignbench.metrics.intervals import Interval
from alignbench.record import RunRecord

FILE_NAME = "index.html"
RIGHT = "recall"
"""Metric that the picture shows to the right where a table has it: gains at its cost are sharpening."""


def page(board: Board, grids: Mapping[str, str]) -> str:
    """Return the page; the same board and pictures give the same bytes.

    Args:
        grids: {run: its sample grid, as an address that a page may hold}; runs without one show none.
    """
    records = {record.id: record for record in board.records}
    tables = [
        _table(table, f"table-{number}", records, grids) for number, table in enumerate(board.tables, start=1)
    ]
    left_out = [{"id": item.id, "reason": item.reason} for item in board.unranked]
    options = {
        "model": sorted({table["model"] for table in tables}),
        "method": sorted({row["method"] for table in tables for row in table["rows"]}),
        "protocol": sorted({table["protocol"] for table in tables}),
        "setting": list(dict.fromkeys(text for table in tables for text in table["settings"])),
    }
    return render("board.html", title="Leaderboards", tables=tables, filters=options, left_out=left_out)


def _table(
    table: Table, name: str, records: Mapping[str, RunRecord], grids: Mapping[str, str]
) -> dict[str, Any]:
    settings = list(dict.fromkeys(x.title for x in table.settings))
    # The base has the first colour, then the lines as they are ranked.
    ranked = [line.row.identity for line in headline.standings(table)] + [x.identity for x in table.rows]
    order = sorted(dict.fromkeys(ranked), key=lambda identity: identity != "")
    return {
        "id": name,
        "model": table.heading,
        "protocol": table.protocol.title,
        "title": headline.title(table),
        "explained": headline.explained(table),
        "legend": headline.legend(table),
        "head": headline.columns(table),
        "words": headline.LEFT,
        "lines": _lines(table, order),
        "findings": findings(table),
        "warnings": [warning.text for warning in warnings_of(table)],
        "settings": settings,
        "metrics": cells.heads(table.columns),
        "costs": cells.COST_HEADERS,
        "rows": [_row(row, table, order) for row in _by_rank(table)],
        "notes": markdown.notes(table),
        "runs": [_run(records[run]) for run in sorted({run for row in table.rows for run in row.runs})],
        "data": _data(table, order, settings, records, grids),
    }


# --- the first table ------------------------------------------------------------------------------


def _lines(table: Table, order: list[str]) -> list[dict[str, Any]]:
    column = table.rank_column
    return [
        {
            "series": order.index(line.row.identity),
            "method": line.row.title,
            "verdict": headline.verdict(line.at_plain, column),
            "bar": bar,
        }
        for line, bar in zip(headline.standings(table), _bars(table), strict=True)
        if column is not None
    ]


def _bars(table: Table) -> list[dict[str, float] | None]:
    """Return for each line where its plain mean and interval lie, in percent of a common scale."""
    column, lines = table.rank_column, headline.standings(table)
    if column is None:
        return []
    spans = [line.plain.cells[column.key].interval if line.plain else None for line in lines]
    ends = [end for span in spans if span for end in _ends(span)]
    low, width = min(ends, default=0.0), (max(ends, default=1.0) - min(ends, default=0.0)) or 1.0

    def place(value: float) -> float:
        return round(2 + 96 * (value - low) / width, 2)

    base = headline.base_of(lines)
    at = base.plain.cells[column.key].interval.mean if base and base.plain else None
    shared = {} if at is None else {"base": place(at)}
    bars: list[dict[str, float] | None] = []
    for span in spans:
        if span is None:
            bars.append(None)
            continue
        first, last = map(place, _ends(span))
        bars.append({"low": first, "high": last, "mean": place(span.mean), **shared})
    return bars


def _ends(span: Interval) -> tuple[float, float]:
    return (
        span.mean if span.low is None else span.low,
        span.mean if span.high is None else span.high,
    )


# --- all rows -------------------------------------------------------------------------------------


def _by_rank(table: Table) -> list[Row]:
    return sorted(table.rows, key=lambda row: row.rank or len(table.rows) + 1)


def _row(row: Row, table: Table, order: list[str]) -> dict[str, Any]:
    return {
        "series": order.index(row.identity),
        "setting": row.setting.title,
        "rank": row.rank,
        "method": row.title,
        "detail": row.detail,
        "external": row.external,
        "cells": [_text(row, column) for column in table.columns],
        "unit": cells.unit(row),
        "cost": cells.cost(row),
        "seconds": row.cost.seconds[0] if row.cost else None,
    }


def _text(row: Row, column: Column) -> dict[str, Any]:
    cell = row.cells.get(column.key)
    return {
        "text": cells.metric(row, column, bold=False),
        "best": cell is not None and cell.best,
        "value": cell.interval.mean if cell else None,
    }


def _run(record: RunRecord) -> dict[str, str]:
    made = record.environment
    return {
        "id": record.id,
        "command": record.command,
        "where": f"alignbench {made.alignbench}, torch {made.torch}, {made.device}",
        "finished": record.finished or "",
    }


# --- for the picture and the panel ----------------------------------------------------------------


def _data(
    table: Table,
    order: list[str],
    settings: list[str],
    records: Mapping[str, RunRecord],
    grids: Mapping[str, str],
) -> dict[str, Any]:
    called, groups = cells.names(table), grouped((row.identity, row) for row in table.rows)
    ranking = table.rank_column
    keys = [column.key for column in table.columns]
    metrics = [column.metric for column in table.columns]
    return {
        "settings": settings,
        "metrics": [
            {"title": f"{x.title} {x.arrow}", "digits": x.fact.digits, "lower": x.fact.direction == "lower"}
            for x in table.columns
        ],
        "x": metrics.index(RIGHT) if RIGHT in metrics and ranking and ranking.metric != RIGHT else -1,
        "y": keys.index(ranking.key) if ranking else 0,
        "series": [
            {"label": called[identity], **_series(groups[identity], records, grids)} for identity in order
        ],
        "points": [
            {
                "series": order.index(row.identity),
                "setting": settings.index(row.setting.title),
                "cells": [_point(row.cells.get(key)) for key in keys],
                "texts": [cells.metric(row, column, bold=False) for column in table.columns],
            }
            for row in table.rows
        ],
    }


def _series(rows: list[Row], records: Mapping[str, RunRecord], grids: Mapping[str, str]) -> dict[str, Any]:
    first = rows[0]
    run = next((run for row in rows for run in row.runs), "")
    grid = next((grids[run] for row in rows for run in row.runs if run in grids), "")
    return {
        "method": first.title,
        "detail": first.detail,
        "base": first.is_base,
        "run": run,
        "command": records[run].command if run else "",
        "grid": grid,
        "cost": f"training {headline.cost(first.cost)}" if first.cost else "",
    }


def _point(cell: Cell | None) -> list[float] | None:
    return None if cell is None else [float(f"{x:.6g}") for x in (cell.interval.mean, *_ends(cell.interval))]
