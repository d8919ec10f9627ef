"""Boards for programs: JSON with everything in a row, CSV with one line a number."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from alignbench.leaderboard.summary import verdict
from alignbench.leaderboard.table import Board, Cell, Row, Table

PLACE = ("protocol", "version", "protocol_digest", "reference", "model", "kind", "row", "setting")
NUMBERS = ("mean", "low", "high", "n", "unit", "best", "reward_network")
CSV_HEADER = (*PLACE, "metric", "evaluator", "direction", *NUMBERS, "rank")


def as_data(board: Board) -> dict[str, Any]:
    """Return the board as plain data."""
    return {
        "tables": [_table(table) for table in board.tables],
        "unranked": [{"id": item.id, "reason": item.reason} for item in board.unranked],
    }


def to_json(board: Board) -> str:
    """Return the board as JSON text."""
    return json.dumps(as_data(board), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _table(table: Table) -> dict[str, Any]:
    return {
        "protocol": table.protocol.model_dump(mode="json"),
        "label": table.label,
        "reference": table.reference,
        "assets": dict(table.assets),
        "own_assets": list(table.own_assets),
        "n": table.n,
        "seeds": list(table.seeds),
        "model": {"name": table.model_name, "title": table.model, "weights": dict(table.weights)},
        "ranked_by": table.rank_column.metric if table.rank_column else None,
        "rows": [_row(row) for row in table.rows],
        "verdict": verdict(table),
        "notes": list(table.notes),
    }


def _row(row: Row) -> dict[str, Any]:
    spent = row.cost
    return {
        "kind": row.kind,
        "title": row.title,
        "detail": row.detail,
        "setting": row.setting.model_dump(mode="json"),
        "rank": row.rank,
        "tied": row.tied,
        "training_seeds": list(row.training_seeds),
        "runs": list(row.runs),
        "metrics": [
            {"metric": metric, "evaluator": evaluator, **_cell(cell)}
            for (metric, evaluator), cell in row.cells.items()
        ],
        "cost": None
        if spent is None
        else {
            "seconds": list(spent.seconds),
            "sequences": list(spent.sequences),
            "devices": list(spent.devices),
            "peak_memory_gib": spent.peak_memory_gib,
            "trainable_parameters": spent.trainable_parameters,
        },
    }


def _cell(cell: Cell) -> dict[str, Any]:
    interval = cell.interval
    return {
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "n": interval.n,
        "unit": interval.kind,
        "best": cell.best,
        "reward_network": cell.rewarded,
    }


def to_csv(board: Board) -> str:
    """Return one line a number, under `CSV_HEADER`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for table in board.tables:
        place = [table.protocol.name, table.protocol.version, table.protocol.digest, table.reference]
        for row in table.rows:
            for column in table.columns:
                cell = row.cells.get(column.key)
                if cell is None:
                    continue
                who = [table.model_name, row.kind, row.name, row.setting.name]
                what = [column.metric, column.evaluator, column.fact.direction]
                numbers = _cell(cell).values()
                writer.writerow([*place, *who, *what, *numbers, row.rank or ""])
    return text.getvalue()
