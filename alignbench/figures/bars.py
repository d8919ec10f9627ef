"""Bars of a protocol's tasks and of classes: what an overall score is made of."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from alignbench.figures.picture import Look, Picture, Value, error_bars, grid, label_axes, legend, looks
from alignbench.figures.source import INTERVALS, NotDrawnError, at_most, plural
from alignbench.figures.tradeoff import left_out, pictured_series
from alignbench.leaderboard.cells import MOST
from alignbench.leaderboard.table import Column, Table
from alignbench.metrics.intervals import Interval, wilson

OVERALL = "-overall"
"""End of the name of a metric that is the mean of others whose names start alike."""


def tasks(table: Table, name: str = "tasks", setting: str = "") -> Picture:
    """Draw the tasks behind the ranking metric, a group of bars each.

    Args:
        setting: name or title of a sampling setting; empty: the first one.

    Raises:
        NotDrawnError: the ranking metric has no tasks, or there is no such setting.
    """
    overall = table.rank_column
    if overall is None or not overall.metric.endswith(OVERALL):
        raise NotDrawnError(f"{table.protocol.title} is not ranked by the mean of several tasks")
    start = overall.metric.removesuffix(OVERALL) + "-"
    columns = [x for x in table.columns if x.metric.startswith(start) and not x.fact.detail]
    settings = {x.name: x.title for x in table.settings}
    title = settings.get(setting, setting) if setting else next(iter(settings.values()))
    if title not in settings.values():
        raise NotDrawnError(f"no row was measured at {setting!r}, only at {', '.join(settings)}")
    found = {
        label: {x.title: row.cells[x.key].interval for x in columns if x.key in row.cells}
        for label, members in pictured_series(table).items()
        for row in members
        if row.setting.title == title
    }
    what = (
        f"{table.model}, {table.protocol.title} at {title}, {table.n:,} images for each of "
        f"{plural(len(table.seeds), 'sampling seed')}. {INTERVALS}{left_out(table)}"
    )
    return grouped_bars(
        name, [_short(x, overall) for x in columns], [x.title for x in columns], found, "score", what
    )


def _short(column: Column, overall: Column) -> str:
    """Return a title without the protocol's name, which all of them begin with."""
    if column.key == overall.key:
        return "overall"
    return column.title.removeprefix(overall.title.split()[0]).strip() or column.title


def classes(
    judged: Mapping[str, tuple[np.ndarray, np.ndarray]],
    titles: Mapping[int, str],
    what: str,
    name: str = "classes",
) -> Picture:
    """Draw the share of each class's images that a classifier takes for that class.

    Args:
        judged: {label of a set: (class of each image, whether it is recognised)}, [n] each.
        titles: {class id: name} of the classes that are shown.
        what: beginning of the caption: which images, which classifier.

    Raises:
        NotDrawnError: more classes or sets than one picture shows.
    """
    at_most(MOST, len(titles), "classes")
    at_most(MOST, len(judged), "sets of images")
    found = {
        label: {titles[key]: _share(right[of == key]) for key in titles if (of == key).any()}
        for label, (of, right) in judged.items()
    }
    caption = f"{what} Error bars are 95 % Wilson intervals over images, not over training seeds."
    shown = [textwrap.fill(title, 12) for title in titles.values()]
    return grouped_bars(name, shown, list(titles.values()), found, "share recognised", caption)


def _share(right: np.ndarray) -> Interval:
    share = float(right.mean())
    return Interval(share, *wilson(share, len(right)), len(right), "images of one set")


def grouped_bars(
    name: str,
    titles: Sequence[str],
    keys: Sequence[str],
    found: Mapping[str, Mapping[str, Interval]],
    unit: str,
    caption: str,
) -> Picture:
    """Draw a group of bars for each key, a bar for each row.

    Args:
        titles: below the groups.
        keys: of the groups.
        found: {label of a row: {key: value}}.
    """
    figure, (axis,) = grid(1, size=(max(6.0, 1.1 * len(keys)), 3.2))
    width = 0.8 / max(len(found), 1)
    rows: list[tuple[Value, ...]] = []
    for number, (label, look) in enumerate(looks(list(found)).items()):
        values = [(at, found[label][key]) for at, key in enumerate(keys) if key in found[label]]
        place = [at + (number - (len(found) - 1) / 2) * width for at, _ in values]
        axis.bar(place, [span.mean for _, span in values], width * 0.92, label=label, hatch=look.hatch,
                 facecolor=look.colour, edgecolor="white", linewidth=0.5)  # fmt: skip
        known = [(x, span) for x, (_, span) in zip(place, values, strict=True) if span.low is not None]
        error_bars(axis, known, Look("0.35", "", "", ""))
        rows += [(label, keys[at], span.mean, span.low, span.high) for at, span in values]
    axis.set_xticks(range(len(keys)), titles)
    label_axes(axis, "", unit)
    legend(figure, [axis])
    return Picture(name, caption, figure, ("row", "group", "mean", "low", "high"), rows)
