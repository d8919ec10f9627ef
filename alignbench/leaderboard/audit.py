"""Published numbers beside the numbers measured here, for the same model, method and setting.

Nothing is ranked and nothing is tested against the paper: papers print no error, so all that can be said is
whether a printed number lies inside the interval of ours, and what the two protocols do differently.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from alignbench.leaderboard.markdown import MARKER, bullets, decimals, grid, section, text_of
from alignbench.leaderboard.rows import counts
from alignbench.leaderboard.table import Board, Cell, Column, Row, Table, grouped, join, number, short
from alignbench.record import RunRecord
from alignbench.text import markdown

if TYPE_CHECKING:
    from alignbench.registry.protocol import Setting
    from alignbench.registry.tables import Counterpart, PublishedCard, PublishedRow, PublishedTable

Outcome = Literal["equal", "inside", "outside", "no interval", "not comparable"]
STATED = {"cfg": "cfg_scale", "temperature": "temperature", "top_k": "top_k", "top_p": "top_p"}
"""{what a paper states of its sampling: field of a setting}."""
HARMLESS = {"method.fidelity"}
"""Changes of a recipe that leave a row the paper's: paper and released program disagree there."""


@dataclass(frozen=True)
class Compared:
    """One published number and one measured row."""

    where: str
    """Card and table of the published number."""
    model: str
    method: str
    """As printed."""
    row: str
    """As measured: title, recipe and changed keys."""
    column: Column
    published: float
    """In our unit."""
    scale: float
    """What the printed number was multiplied with."""
    places: int
    """Decimals that were printed, in our unit."""
    cell: Cell
    obstacles: tuple[str, ...]
    """Differences of protocol that make the two numbers incomparable."""
    remarks: tuple[str, ...]
    """Other differences, and what the paper does not state."""

    @property
    def difference(self) -> float:
        """Measured minus published, in our unit."""
        return self.cell.interval.mean - self.published

    @property
    def outcome(self) -> Outcome:
        """`equal` but for rounding in print; `inside` or `outside` of our 95 % interval, widened by it."""
        low, high, rounding = self.cell.interval.low, self.cell.interval.high, 0.5 * 10**-self.places
        if self.obstacles:
            return "not comparable"
        if abs(self.difference) <= rounding:
            return "equal"
        if low is None or high is None:
            return "no interval"
        return "inside" if low - rounding <= self.published <= high + rounding else "outside"


@dataclass(frozen=True)
class Audit:
    """Everything that could be joined, and how much could not."""

    compared: tuple[Compared, ...]
    missing: Mapping[str, int]
    """{card and table: published numbers that have a counterpart here which is not measured}."""


def audit(board: Board, published: Mapping[str, PublishedCard]) -> Audit:
    """Join published rows with the measured rows of the same model, method and setting."""
    found: list[Compared] = []
    missing: dict[str, int] = {}
    records = {record.id: record for record in board.records}
    for _, card in sorted(published.items()):
        for printed in card.tables:
            where = f"{card.title}, {printed.id}"
            for row in printed.rows:
                how = printed.measured
                if how is None or not row.run or row.model not in how.at:
                    continue  # nothing here measures it
                joined = list(_joined(where, printed, row, how, board, records))
                found += joined
                left = {key for key in row.values if key in how.metrics}
                left -= {key for key in left if any(how.metrics[key] == x.column.metric for x in joined)}
                missing[where] = missing.get(where, 0) + len(left)
    return Audit(tuple(found), {where: count for where, count in missing.items() if count})


def _joined(
    where: str,
    printed: PublishedTable,
    row: PublishedRow,
    how: Counterpart,
    board: Board,
    records: Mapping[str, RunRecord],
) -> Iterator[Compared]:
    for table in board.tables:
        for measured in table.rows if table.model_name == row.model else ():
            if measured.setting.name != how.at[row.model]:
                continue
            changed = _changed(row, measured, records)
            if changed is None:
                continue
            obstacles, remarks = _differences(printed, row, how, table, measured.setting)
            for key, value in changed.items():
                (remarks if key in HARMLESS else obstacles).append(f"{key} = {value}")
            for name, metric in how.metrics.items():
                column = next((column for column in table.columns if column.metric == metric), None)
                if name not in row.values or column is None or column.key not in measured.cells:
                    continue
                scale = how.scale.get(name, 1.0)
                places = decimals(printed)[name] - round(math.log10(scale))
                yield Compared(
                    where, row.model, row.method, measured.name, column, row.values[name] * scale, scale,
                    places, measured.cells[column.key], tuple(obstacles), tuple(remarks),
                )  # fmt: skip


def _changed(row: PublishedRow, measured: Row, records: Mapping[str, RunRecord]) -> dict[str, Any] | None:
    """{key: value} that a measured row changes and the printed one does not; None: it is another method."""
    if measured.is_base or row.run == "base":
        return {} if measured.is_base and row.run == "base" else None
    record = records[measured.runs[0]]
    recipe = record.recipe.name if record.recipe else ""
    if record.method is None or record.method.name != row.run or (row.recipe and recipe != row.recipe):
        return None
    values = {f"method.{key}": value for key, value in record.method.options.items()}
    more = {key: change.value for key, change in sorted(record.changed.items()) if counts(key)}
    more = {key: value for key, value in more.items() if key not in row.changed}
    other = any(key.startswith("method.") and key not in HARMLESS for key in more)
    return None if other or any(values.get(key) != value for key, value in row.changed.items()) else more


def _differences(
    printed: PublishedTable, row: PublishedRow, how: Counterpart, table: Table, setting: Setting
) -> tuple[list[str], list[str]]:
    """Compare what the paper states with what was done: (what forbids a comparison, the rest)."""
    obstacles = [f"own file for {asset}" for asset in table.own_assets]
    if table.protocol.name != how.protocol:
        obstacles.append(f"protocol {table.protocol.name} instead of {how.protocol}")
    if (samples := printed.setting.get("samples", table.n)) != table.n:
        obstacles.append(f"{table.n:,} images instead of {samples:,}")
    weights = [f"{role} {short(digest)}" for role, digest in table.weights.items()]
    remarks = [*how.differences, f"Measured from the weights {', '.join(weights)}."]
    for name, field in STATED.items():
        stated, here = row.values.get(name, printed.setting.get(name)), getattr(setting, field)
        if isinstance(stated, str):
            remarks.append(f"{name} {stated}, here {here:g}")
        elif stated is not None and stated != here:
            obstacles.append(f"{name} {here:g} instead of {stated:g}")
    return obstacles, remarks


# --- the page -------------------------------------------------------------------------------------

INTRODUCTION = (
    "Published numbers beside those measured by alignbench for the same model, method and sampling setting. "
    "*inside* and *outside* say whether the printed number lies in the 95 % interval of the measured one, "
    "which knows nothing of the paper's own seeds; *equal* is equal but for rounding in print. Where the "
    "protocols differ in something that moves the number there is no verdict. Printed raw cosines are "
    "multiplied by 100, as ours are shown."
)
NOTHING = "**Nothing could be compared yet: no row of a published model and method was measured here.**"


def page(found: Audit) -> str:
    """Return the text of `audit.md`."""
    lines = [MARKER, "", "# Audit: published against measured", "", INTRODUCTION, ""]
    if not found.compared:
        lines += [NOTHING, ""]
    for where, items in grouped((x.where, x) for x in found.compared).items():
        lines += section(where, table_lines(items))
        remarks = dict.fromkeys(remark for x in items for remark in x.remarks)
        lines += [*bullets(map(markdown, remarks)), ""] if remarks else []
    left = [f"{where}: {count} numbers" for where, count in found.missing.items()]
    return text_of([*lines, *section("Published, can be measured, not measured", bullets(left))])


def table_lines(items: Sequence[Compared]) -> list[str]:
    """Return a Markdown table of comparisons."""
    numbers = ["published", "measured", "difference"]
    header = ["model", "published as", "measured as", "metric", *numbers, "verdict"]
    return grid(header, [line_of(x) for x in items], right=numbers)


def line_of(x: Compared) -> list[str]:
    """Return the cells of a comparison: model, row in print and here, metric, the numbers, verdict."""
    column, times = x.column, f" (printed ×{x.scale:g})" if x.scale != 1.0 else ""
    why = f": {join(x.obstacles)}" if x.obstacles else ""
    return [
        x.model,
        x.method,
        markdown(x.row),
        f"{column.title} {column.arrow}{times}",
        number(x.published, max(x.places, 0)),
        column.shown(x.cell.interval),
        column.signed(x.difference),
        markdown(f"{x.outcome}{why}"),
    ]


def to_data(found: Audit) -> dict[str, Any]:
    """Return plain data: what `alignbench audit --json` prints."""
    compared = [
        {
            **vars(x),
            "column": x.column.metric,
            "cell": vars(x.cell.interval),
            "difference": x.difference,
            "outcome": x.outcome,
        }
        for x in found.compared
    ]
    return {"compared": compared, "missing": dict(found.missing)}
