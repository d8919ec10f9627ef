"""Tables and comparisons for programs: plain data, CSV with one line a number, one Markdown table."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

from alignbench.errors import UserError, missing_packages
from alignbench.leaderboard.compare import Comparison
from alignbench.leaderboard.markdown import table_lines
from alignbench.leaderboard.table import Table


@dataclass(frozen=True)
class Leaderboard:
    """Tables in the forms that people take away; one table for each protocol, reference and model."""

    tables: tuple[Table, ...]

    def markdown(self) -> str:
        """Return the ranked tables, each under its protocol and model."""
        lines: list[str] = []
        for table in self.tables:
            title = f"**{table.protocol.name}** · {table.model} · {table.n:,} images"
            lines += [title, "", *table_lines(table), ""]
        return "\n".join(lines)

    def rows(self) -> list[dict[str, Any]]:
        return [row for table in self.tables for row in to_rows(table)]

    def csv(self) -> str:
        """Return the rows as CSV with a header; None is an empty field."""
        text, rows = io.StringIO(), self.rows()
        writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def frame(self) -> Any:
        """Return the rows as a pandas data frame.

        Raises:
            UserError: pandas is not installed.
        """
        missing, command = missing_packages(["pandas"])
        if missing:
            raise UserError("a data frame needs pandas, not installed here", fix=command)
        import pandas

        return pandas.DataFrame(self.rows())


def to_rows(table: Table) -> list[dict[str, Any]]:
    """Return one flat dict a number, as `pandas.DataFrame` takes them."""
    protocol = table.protocol
    return [
        {
            "protocol": protocol.name,
            "version": protocol.version,
            "protocol_digest": protocol.digest,
            "reference": table.reference,
            "model": table.model_name,
            "kind": row.kind,
            "row": row.name,
            "setting": row.setting.name,
            "metric": column.metric,
            "evaluator": column.evaluator,
            "direction": column.fact.direction,
            "mean": cell.interval.mean,
            "low": cell.interval.low,
            "high": cell.interval.high,
            "n": cell.interval.n,
            "unit": cell.interval.kind,
            "best": cell.best,
            "reward_network": cell.rewarded,
            "rank": row.rank,
        }
        for row in table.rows
        for column in table.columns
        if (cell := row.cells.get(column.key)) is not None
    ]


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as plain data: what `alignbench compare --json` prints."""
    sides = {
        letter: {"run": side.record.id, "subject": side.subject, "title": side.title}
        for letter, side in (("a", comparison.a), ("b", comparison.b))
    }
    metrics = [
        {
            "protocol": item.protocol.model_dump(mode="json"),
            "metric": item.column.metric,
            "evaluator": item.column.evaluator,
            "direction": item.column.fact.direction,
            "setting": item.setting.model_dump(mode="json"),
            "a": item.a.interval.mean,
            "b": item.b.interval.mean,
            "difference": item.difference.mean,
            "low": item.difference.low,
            "high": item.difference.high,
            "significant": item.difference.significant,
            "tested": item.difference.tested,
            "evidence": item.evidence,
            "behind": item.detail,
            "why_not_paired": item.why,
            "verdict": item.outcome,
        }
        for item in comparison.metrics
    ]
    return {**sides, "metrics": metrics, "left_out": list(comparison.left_out)}
