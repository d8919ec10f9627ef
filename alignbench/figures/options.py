"""A metric over an option that runs differ in: the curves of a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter

from alignbench.figures.picture import Picture, Value, error_bars, grid, label_axes, legend, looks
from alignbench.figures.source import INTERVALS, NotDrawnError, Run, at_most
from alignbench.leaderboard.cells import MOST
from alignbench.leaderboard.rows import counts
from alignbench.leaderboard.table import Cell, Column, Table, grouped

Point = tuple[float, Mapping[tuple[str, str], Cell]]


def options(
    runs: Sequence[Run],
    table: Table,
    name: str = "options",
    *,
    metrics: Sequence[str] = (),
    setting: str = "",
) -> Picture:
    """Draw metrics over the numeric option that runs differ in most, a line for each choice of the others.

    Args:
        metrics: names; default: the ranking metric and the next ones, four in all.
        setting: name of a sampling setting; default: the table's first.

    Raises:
        NotDrawnError: no such setting or metric, or no numeric option with three values among the runs.
    """
    records = {run.record.id: run.record for run in runs}
    setting = setting or table.settings[0].name
    if setting not in (names := [x.name for x in table.settings]):
        raise NotDrawnError(f"no row was measured at {setting!r}, only at {', '.join(names)}")
    rows = [row for row in table.rows if row.kind == "method" and row.setting.name == setting]
    changed = {
        row.identity: {key: x.value for key, x in records[row.runs[0]].changed.items() if counts(key)}
        for row in rows
    }
    axis = _axis(changed.values())
    lines: dict[str, list[Point]] = grouped(
        (_line(row.title, changed[row.identity], axis), (float(str(changed[row.identity][axis])), row.cells))
        for row in rows
        if axis in changed[row.identity]
    )
    at_most(MOST, len(lines), "lines")
    places = [x for points in lines.values() for x, _ in points]
    columns = _columns(table, metrics)
    figure, panels = grid(len(columns), columns=2, size=(3.8, 2.7))
    numbers: list[tuple[Value, ...]] = []
    base = next((row for row in table.rows if row.is_base and row.setting.name == setting), None)
    for panel, column in zip(panels, columns, strict=True):
        label_axes(panel, axis, f"{column.title} {column.arrow}")
        if min(places) > 0 and max(places) > 20 * min(places):
            panel.set_xscale("log")
        if base is not None and column.key in base.cells:
            mean = base.cells[column.key].interval.mean
            panel.axhline(mean, color="black", linewidth=0.8, label="base")
            numbers.append(("base", None, column.metric, mean, None, None))
        for label, look in looks(list(lines)).items():
            points = sorted(lines[label], key=itemgetter(0))
            spans = [(x, cells[column.key].interval) for x, cells in points if column.key in cells]
            error_bars(panel, spans, look, label)
            numbers += [(label, x, column.metric, span.mean, span.low, span.high) for x, span in spans]
    legend(figure, panels)
    caption = (
        f"{table.model}, {table.protocol.title} at {rows[0].setting.title}: metrics over {axis}. {INTERVALS} "
        "The black line is the base."
    )
    return Picture(name, caption, figure, ("line", axis, "metric", "mean", "low", "high"), numbers)


def _axis(changed: Iterable[Mapping[str, object]]) -> str:
    """Return the option with most numeric values; of several the first by name."""
    values: dict[str, set[float]] = {}
    for changes in changed:
        for key, value in changes.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault(key, set()).add(float(value))
    best = min(values, key=lambda key: (-len(values[key]), key), default=None)
    if best is None or len(values[best]) < 3:
        raise NotDrawnError("no option has three values among these runs")
    return best


def _line(title: str, changes: Mapping[str, object], axis: str) -> str:
    """Name a line by its method and by what else its runs changed."""
    others = [f"{key.rpartition('.')[2]} {value}" for key, value in sorted(changes.items()) if key != axis]
    return f"{title} ({', '.join(others)})" if others else title


def _columns(table: Table, metrics: Sequence[str]) -> list[Column]:
    shown = [column for column in table.columns if not column.fact.detail]
    if unknown := set(metrics) - {column.metric for column in shown}:
        raise NotDrawnError(f"no metric {min(unknown)}, but {', '.join(x.metric for x in shown)}")
    if metrics:
        return [column for column in shown if column.metric in metrics]
    first = [column for column in shown if column == table.rank_column]
    return [*first, *(column for column in shown if column not in first)][:4]
