"""Tables and comparisons for programs: plain data, CSV with one line a number, one Markdown table."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import Any

from alignbench.errors import UserError, missing_packages
from alignbench.leaderboard import headline
from alignbench.leaderboard.compare import Comparison
from alignbench.leaderboard.findings import findings
from alignbench.leaderboard.markdown import first_screen, table_lines, text_of
from alignbench.leaderboard.table import Column, Table
from alignbench.leaderboard.warnings import warnings_of
from alignbench.text import field, latex, visible_json


@dataclass(frozen=True)
class Leaderboard:
    """Tables in the forms that people take away; one table for each protocol, reference and model."""

    tables: tuple[Table, ...]

    def markdown(self) -> str:
        """Return headlines, what they say, and the full tables."""
        return text_of([x for table in self.tables for x in (*first_screen(table), *table_lines(table), "")])

    def latex(self) -> str:
        """Return the headlines as tables of booktabs; their marks are symbols of amssymb."""
        return "\n".join(line for table in self.tables for line in latex_lines(table))

    def json(self) -> str:
        """Return headlines, what they say, and all rows as JSON."""
        data = [to_data(table) for table in self.tables]
        return visible_json(json.dumps(data, indent=2, ensure_ascii=False)) + "\n"

    def rows(self) -> list[dict[str, Any]]:
        return [row for table in self.tables for row in to_rows(table)]

    def csv(self) -> str:
        """Return the rows as CSV with a header; None is an empty field, and no text is a formula."""
        text, rows = io.StringIO(), self.rows()
        writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: field(value) for name, value in row.items()} for row in rows)
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


def latex_lines(table: Table) -> list[str]:
    """Return the headline as LaTeX: a `tabular` with its title and legend as comments."""
    header, rows = headline.shown(table)
    if not rows:
        return []
    marks = "".join("l" if name in headline.LEFT else "r" for name in header)
    shown = [[rf"\textbf{{{latex(text)}}}" if bold else latex(text) for text, bold in row] for row in rows]
    return [
        *(f"% {latex(text(table))}" for text in (headline.title, headline.explained, headline.legend)),
        rf"\begin{{tabular}}{{{marks}}}",
        r"\toprule",
        " & ".join(map(latex, header)) + r" \\",
        r"\midrule",
        *(" & ".join(texts) + r" \\" for texts in shown),
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ]


def to_data(table: Table) -> dict[str, Any]:
    """Return a table as plain data: the lines of its headline, its findings and every number."""
    column = table.rank_column
    return {
        "protocol": table.protocol.model_dump(mode="json"),
        "model": table.model_name,
        "title": table.heading,
        "images": table.n,
        "sampling_seeds": table.seeds,
        "headline": [_line_data(line, column) for line in headline.standings(table) if column],
        "findings": findings(table),
        "warnings": [vars(warning) for warning in warnings_of(table)],
        "rows": to_rows(table),
    }


def _line_data(line: headline.Standing, column: Column) -> dict[str, Any]:
    places = {"plain": (line.plain, line.at_plain), "best": (line.best, line.at_best)}
    return {
        "label": line.label,
        "kind": line.row.kind,
        "rank": line.rank,
        "rank_interval": line.span,
        **{
            place: {
                "setting": row.setting.name,
                **vars(row.cells[column.key].interval),
                "minus_base": change and {**vars(change), "verdict": headline.verdict(change, column)},
            }
            for place, (row, change) in places.items()
            if row is not None
        },
        "training_seconds": line.row.cost.seconds if line.row.cost else None,
        "runs": line.row.runs,
    }


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
