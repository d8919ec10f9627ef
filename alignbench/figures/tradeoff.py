"""What a metric costs in another one: base and methods over the settings of a protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from alignbench.figures.picture import LOOKS, Look, Picture, Value, error_bars, grid, label_axes, looks
from alignbench.figures.source import INTERVALS, NotDrawnError, plural
from alignbench.leaderboard.cells import names
from alignbench.leaderboard.headline import picture_note, pictured
from alignbench.leaderboard.table import Column, Row, Table, grouped

PAIRS = (("recall", None), ("recall", "precision"))
"""(metric to the right, metric upwards); None is the metric that the table is ranked by."""


def tradeoff(table: Table, name: str = "tradeoff") -> Picture:
    """Draw pairs of metrics at every setting, or the ranking metric over the settings where there is no pair.

    Raises:
        NotDrawnError: the table has a single setting, or no ranking metric.
    """
    if table.rank_column is None:
        raise NotDrawnError(f"{table.protocol.title} has no value of the metric that ranks it")
    series = pictured_series(table)
    settings = list(dict.fromkeys(setting.title for setting in table.settings))
    if len(settings) < 2:
        raise NotDrawnError(f"{table.protocol.title} was measured at one setting only")
    columns = {column.metric: column for column in table.columns}
    pairs = [
        (columns[x], columns[y] if y else table.rank_column)
        for x, y in PAIRS
        if x in columns and (y is None or y in columns)
    ]
    figure, axes = grid(max(len(pairs), 1), columns=2, size=(4.4 if len(pairs) > 1 else 6.6, 3.4))
    chosen = looks(list(series))
    handles = [Line2D([], [], color=x.colour, linestyle=x.line, label=key) for key, x in chosen.items()]
    if pairs:
        markers = {title: LOOKS[number % len(LOOKS)].marker for number, title in enumerate(settings)}
        rows = [_pair(axis, series, chosen, pair, markers) for axis, pair in zip(axes, pairs, strict=True)]
        handles += [Line2D([], [], color="0.3", linestyle="", marker=x, label=t) for t, x in markers.items()]
    else:
        rows = [_over_settings(axes[0], series, chosen, table.rank_column, settings)]
    ncols = _columns([str(handle.get_label()) for handle in handles], figure.get_figwidth())
    deep = -(-len(handles) // ncols)
    figure.set_figheight(figure.get_figheight() + 0.17 * max(deep - 3, 0))
    figure.legend(handles=handles, loc="outside upper center", ncols=ncols, fontsize=8, frameon=False)
    what = " and ".join(f"{y.title} over {x.title}" for x, y in pairs) or table.rank_column.title
    seeds = plural(len(table.seeds), "sampling seed")
    caption = (
        f"{table.model}, {table.protocol.title}: {what} at {len(settings)} sampling settings, {table.n:,} "
        f"images for each of {seeds}. {INTERVALS} A line joins the settings of one row; what lies on the "
        f"base's line can be had without any training, by sampling differently.{left_out(table)}"
    )
    numbers = list(dict.fromkeys(row for part in rows for row in part))
    return Picture(name, caption, figure, ("row", "setting", "metric", "mean", "low", "high"), numbers)


def pictured_series(table: Table) -> dict[str, list[Row]]:
    """`series_of` the rows that a picture has room for."""
    kept = {line.label for line in pictured(table)}
    return {label: rows for label, rows in series_of(table).items() if label in kept}


def left_out(table: Table) -> str:
    """End of a caption: which rows are drawn, where it is not all."""
    return "".join(f" {text}" for text in picture_note(table) if text)


def _columns(texts: Sequence[str], inches: float) -> int:
    """Return how many columns of a legend fit, at most four; a letter takes 0.07 inches, a line 0.6."""
    for columns in (4, 3, 2):
        deep = -(-len(texts) // columns)
        widths = [max(map(len, texts[start : start + deep])) for start in range(0, len(texts), deep)]
        if sum(0.07 * width + 0.6 for width in widths) <= inches:
            return columns
    return 1


def series_of(table: Table) -> dict[str, list[Row]]:
    """Return {short label: rows of one model in the order of the settings}; the base first."""
    called = names(table)
    groups = grouped((called[row.identity], row) for row in table.rows)
    return {
        label: sorted(groups[label], key=lambda row: table.settings.index(row.setting))
        for label in sorted(groups, key=lambda label: (label != called[""], label))
    }


def _numbers(label: str, row: Row, column: Column) -> tuple[Value, ...]:
    span = row.cells[column.key].interval
    return label, row.setting.title, column.metric, span.mean, span.low, span.high


def _pair(
    axis: Axes,
    series: Mapping[str, Sequence[Row]],
    chosen: Mapping[str, Look],
    pair: tuple[Column, Column],
    markers: Mapping[str, str],
) -> list[tuple[Value, ...]]:
    label_axes(axis, *(f"{column.title} {column.arrow}" for column in pair))
    numbers = []
    for label, rows in series.items():
        look = chosen[label]
        having = [row for row in rows if all(column.key in row.cells for column in pair)]
        having.sort(key=lambda row: row.cells[pair[0].key].interval.mean)
        spans = [tuple(row.cells[column.key].interval for column in pair) for row in having]
        axis.plot([x.mean for x, _ in spans], [y.mean for _, y in spans],
                  color=look.colour, linestyle=look.line, linewidth=1)  # fmt: skip
        for row, (x, y) in zip(having, spans, strict=True):
            half = [span.half_width or 0.0 for span in (x, y)]
            axis.errorbar(x.mean, y.mean, xerr=half[0], yerr=half[1], color=look.colour,
                          marker=markers[row.setting.title], markersize=4, linewidth=0.8)  # fmt: skip
            numbers += [_numbers(label, row, column) for column in pair]
    return numbers


def _over_settings(
    axis: Axes,
    series: Mapping[str, Sequence[Row]],
    chosen: Mapping[str, Look],
    column: Column,
    settings: Sequence[str],
) -> list[tuple[Value, ...]]:
    label_axes(axis, "sampling setting", f"{column.title} {column.arrow}")
    axis.set_xticks(range(len(settings)), settings)
    numbers = []
    for number, (label, rows) in enumerate(series.items()):
        shift = (number - len(series) / 2) * 0.04  # so that error bars do not hide each other
        having = [row for row in rows if column.key in row.cells]
        points = [(settings.index(x.setting.title) + shift, x.cells[column.key].interval) for x in having]
        error_bars(axis, points, chosen[label])
        numbers += [_numbers(label, row, column) for row in having]
    return numbers
