"""A picture with its caption and the numbers behind it, and how all pictures look.

Colours are Okabe and Ito's, distinct to the colour-blind; markers, lines and hatches are so in grey.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from alignbench.errors import RunFailed
from alignbench.files import write_atomic
from alignbench.metrics.intervals import Interval
from alignbench.text import cut, field, markdown

DPI = 110
WIDEST = 60
"""Characters of a name in a picture: one that is longer would push the others out of it."""
Value = str | int | float | None


@dataclass(frozen=True)
class Picture:
    """What one figure shows."""

    name: str
    """File name without its ending."""
    caption: str
    """What is seen, of how many, and what error bars mean: one paragraph."""
    figure: Figure
    head: Sequence[str]
    rows: Sequence[Sequence[Value]]
    """Every number that is drawn, under the names in `head`."""

    def csv(self) -> str:
        """Return the numbers as text; an absent one is an empty field, and no text is a formula."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows(map(field, row) for row in [self.head, *self.rows])
        return buffer.getvalue()

    def png(self) -> bytes:
        """Draw; the same numbers give the same bytes with one version of matplotlib."""
        buffer = io.BytesIO()
        _literal(self.figure)
        self.figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        return buffer.getvalue()


def _literal(figure: Figure) -> None:
    """Cut long names, and let their dollars be dollars; powers of ten on logarithmic axes stay."""
    for text in figure.findobj(Text):
        text.set_text(cut(text.get_text(), WIDEST))
        text.set_parse_math(False)
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        for text in axis.get_ticklabels(which="both"):
            text.set_parse_math(axis.get_scale() == "log")


@dataclass(frozen=True)
class Look:
    """How one series is drawn everywhere."""

    colour: str
    line: Any
    marker: str
    hatch: str


LOOKS = tuple(
    Look(*parts)
    for parts in (
        ("#000000", "-", "o", ""),
        ("#0072B2", "--", "s", "///"),
        ("#D55E00", "-.", "^", "\\\\\\"),
        ("#009E73", ":", "D", "..."),
        ("#CC79A7", (0, (5, 1)), "v", "xxx"),
        ("#E69F00", (0, (3, 1, 1, 1)), "P", "---"),
        ("#56B4E9", (0, (1, 1)), "X", "+++"),
        ("#999999", (0, (1, 3)), "*", "ooo"),
    )
)
"""The first one is the base model's; after the last the others start again."""
BASE, REAL = "base", "real images"
"""Labels that look the same in every picture."""
FIXED = {BASE: LOOKS[0], REAL: Look("#B0B0B0", "-", "h", "")}


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """Return a look for each label, in order; black is the base model's, light grey that of real images."""
    again = itertools.cycle(LOOKS[1:])
    return {label: FIXED[label] if label in FIXED else next(again) for label in labels}


def grid(
    panels: int, *, columns: int = 3, size: tuple[float, float] = (3.4, 2.5), frame: bool = True
) -> tuple[Figure, list[Axes]]:
    """Return a figure with as many axes as asked for, each of a size in inches; no frame: for images."""
    columns = min(columns, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[panels:]:
        unused.remove()
    for used in axes[:panels]:
        used.spines[["top", "right"] if frame else list(used.spines)].set_visible(False)
        if not frame:
            used.set(xticks=[], yticks=[])
            continue
        used.grid(color="0.9", linewidth=0.6)
        used.set_axisbelow(True)
        used.tick_params(which="both", labelsize=8)
    return figure, axes[:panels]


def label_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)


def legend(figure: Figure, axes: Sequence[Axes], *, columns: int = 4) -> None:
    """Put one legend for all panels above them."""
    entries: dict[Any, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside upper center",
        ncols=columns,
        fontsize=8,
        frameon=False,
    )


def error_bars(axis: Axes, points: Sequence[tuple[float, Interval]], look: Look, label: str = "") -> None:
    """Draw (x, value) points with vertical error bars, joined; a value without an interval has no bar."""
    means = [span.mean for _, span in points]
    low = [span.mean if span.low is None else span.low for _, span in points]
    high = [span.mean if span.high is None else span.high for _, span in points]
    errors = np.abs(np.array([low, high]) - means)
    axis.errorbar(
        [x for x, _ in points],
        means,
        yerr=errors,
        label=label,
        color=look.colour,
        linestyle=look.line,
        marker=look.marker,
        markersize=4,
        linewidth=1,
        capsize=2,
    )


def write(pictures: Sequence[Picture], absent: Mapping[str, str], out: Path) -> list[Path]:
    """Write `NAME.png` and `NAME.csv` of each, and `figures.md` with all captions.

    Args:
        absent: {what was not drawn: why}.

    Raises:
        RunFailed: the folder cannot be written.
    """
    files: dict[str, bytes | str] = {}
    page = ["# Figures", ""]
    for picture in pictures:
        files |= {f"{picture.name}.png": picture.png(), f"{picture.name}.csv": picture.csv()}
        page += [f"![{picture.name}]({picture.name}.png)", ""]
        page += [f"{markdown(picture.caption)} Numbers: [{picture.name}.csv]({picture.name}.csv).", ""]
    page += [f"- Not drawn: {markdown(f'{name}: {reason}')}." for name, reason in absent.items()]
    files["figures.md"] = "\n".join(page).rstrip() + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomic(out / name, content)
    except OSError as error:
        raise RunFailed(
            f"{out} cannot be written: {error.strerror or error}", fix="choose another --out"
        ) from error
    return [out / name for name in files]
