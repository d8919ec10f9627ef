"""Whether images are too smooth or too rough: power over spatial frequency, and the Laplacian's energy."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np

from alignbench.figures.picture import Picture, Value, grid, label_axes, legend, looks
from alignbench.figures.source import at_most
from alignbench.leaderboard.cells import MOST
from alignbench.metrics.intervals import Interval, mean_interval
from alignbench.metrics.sharpness import laplacian_energy, luminance, power_spectrum


def sharpness(images: Mapping[str, np.ndarray], what: str, name: str = "sharpness") -> Picture:
    """Draw the mean spectrum of each set of images, uint8 [n, 3, H, W], and its mean sharpness.

    Raises:
        NotDrawnError: too many sets.
    """
    at_most(MOST, len(images), "sets of images")
    figure, (left, right) = grid(2, size=(4.6, 3.4))
    rows: list[tuple[Value, ...]] = []
    for place, (label, look) in enumerate(looks(list(images)).items()):
        grey = luminance(images[label])
        frequencies, power = power_spectrum(grey)
        spans = [_mean(column) for column in power.T]
        left.plot(frequencies, [x.mean for x in spans], color=look.colour, linestyle=look.line,
                  marker=look.marker, markersize=3, markevery=0.15, linewidth=1.2, label=label)  # fmt: skip
        low, high = zip(*map(_ends, spans), strict=True)
        left.fill_between(frequencies, low, high, color=look.colour, alpha=0.15)
        for frequency, span in zip(frequencies, spans, strict=True):
            rows.append((label, "power", float(frequency), span.mean, span.low, span.high))
        span = _mean(laplacian_energy(grey))
        right.barh(place, span.mean, 0.75, facecolor=look.colour, hatch=look.hatch, edgecolor="white")
        right.hlines(place, *_ends(span), color="0.35", linewidth=1.5)
        rows.append((label, "sharpness", None, span.mean, span.low, span.high))
    left.set_yscale("log")
    label_axes(left, "spatial frequency [cycles/pixel]", "power of the luminance")
    right.set_yticks(range(len(images)), [textwrap.fill(label, 26) for label in images])
    right.set_ylim(max(len(images), 5) - 0.5, -0.5)  # two bars are no blocks
    label_axes(right, "mean squared Laplacian", "")
    legend(figure, [left], columns=3)
    caption = (
        f"{what} Left: power of the luminance by spatial frequency, averaged over directions (mean taken "
        "off, Hann window). Right: mean square of the 4-neighbour Laplacian of the luminance in [0, 1]; less "
        "than real images is over-smoothed, more is noise. Bands and bars are 95 % Student intervals over "
        "the images of a set: they say nothing of other training seeds."
    )
    head = ("set", "quantity", "cycles/pixel", "mean", "low", "high")
    return Picture(name, caption, figure, head, rows)


def _mean(values: np.ndarray) -> Interval:
    return mean_interval(values.tolist(), kind="images of one set")


def _ends(span: Interval) -> tuple[float, float]:
    """Return an interval's ends; both the mean where one image has none."""
    low, high = (span.mean if end is None else end for end in (span.low, span.high))
    return low, high
