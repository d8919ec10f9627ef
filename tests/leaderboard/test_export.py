"""Tables on a terminal and for programs hold the same numbers as pages."""

from __future__ import annotations

import csv
import io

from rich.console import Console

from alignbench.leaderboard import export, markdown, terminal
from alignbench.leaderboard.board import build
from alignbench.leaderboard.summary import sentences
from alignbench.leaderboard.table import Table
from tests.leaderboard.records import FACTS, detailed, one_seed, only, stored


def printed(table: Table, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(terminal.rich_table(table))
    return console.export_text()


def test_the_terminal_shows_the_same_cells() -> None:
    text = printed(only(stored()), 240)
    for part in ("0.800", "±0.025", "±0.298†", "3 training seeds", "better than base"):
        assert part in text
    assert "**" not in text
    own = only(build([detailed(one_seed(2.2, 0.1))], FACTS, sift=False))
    text = printed(own, 100)
    assert "Colours" not in text and "Colours" not in " ".join(sentences(own)) and "±0.100‡" in text
    assert "sampling error of one image set, not training luck" in " ".join(text.split())


def test_tables_for_programs_hold_the_same_numbers() -> None:
    table = only(stored())
    cells = {
        (x.kind, x.setting.name, x.name, metric): cell
        for x in table.rows
        for (metric, _), cell in x.cells.items()
    }
    rows = export.to_rows(table)
    lines = list(csv.DictReader(io.StringIO(export.Leaderboard((table,)).csv())))
    assert len(rows) == len(lines) == len(cells) == 9
    for entry, line in zip(rows, lines, strict=True):
        cell = cells[line["kind"], line["setting"], line["row"], line["metric"]]
        assert float(line["mean"]) == entry["mean"] == cell.interval.mean
        assert (line["best"], line["reward_network"]) == (str(cell.best), str(cell.rewarded))
        assert (entry["low"], entry["unit"]) == (cell.interval.low, cell.interval.kind)
    assert export.Leaderboard((table,)).markdown().splitlines()[2:] == markdown.table_lines(table)
