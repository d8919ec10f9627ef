"""Where real and generated images lie in an evaluator's feature space: PCA with densities, and t-SNE."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from alignbench.figures.picture import REAL, Look, Picture, Value, grid, label_axes, looks
from alignbench.figures.source import NotDrawnError, at_most

COLUMNS = ("penultimate", "pool")
"""Of evaluators' rows: what they compare sets by."""
MOST_SETS = 8
"""Sets of contours that can be told apart."""
MASSES = (0.9, 0.5)
"""Shares of a set that lie inside its contours."""
POINTS = 300
"""Of a set in the t-SNE."""
PERPLEXITY = 30.0


def embedding(features: Mapping[str, np.ndarray], what: str, name: str = "embedding") -> Picture:
    """Draw sets of features, [n, D] each, in two maps of two axes.

    Args:
        features: {label of a set: its rows}; real images under `REAL`.
        what: beginning of the caption: which images, which features.

    Raises:
        NotDrawnError: no real images, too many sets, or sets too small or too alike for a density.
    """
    at_most(MOST_SETS, len(features), "sets of images")
    if REAL not in features:
        raise NotDrawnError("there are no real images to fit the axes to")
    projected, shares = pca(features)
    figure, (left, right) = grid(2, size=(4.4, 3.9))
    chosen = looks(list(features))
    _contours(left, projected, chosen)
    label_axes(left, *(f"principal axis {number}: {x:.0%}" for number, x in enumerate(shares, start=1)))
    mapped = tsne({label: rows[:POINTS] for label, rows in features.items()})
    for label, points in mapped.items():
        look, size = chosen[label], 5 if label == REAL else 3  # the others lie on real images
        right.plot(*points.T, look.marker, color=look.colour, markersize=size, alpha=0.6, markeredgewidth=0)
    label_axes(right, "t-SNE 1", "t-SNE 2")
    handles = [
        Line2D([], [], color=x.colour, linestyle=x.line, marker=x.marker, markersize=4, label=label)
        for label, x in chosen.items()
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=3, fontsize=8, frameon=False, handlelength=3.5
    )
    numbers: list[tuple[Value, ...]] = [
        (kind, label, number, float(x), float(y))
        for kind, maps in (("pca", projected), ("t-sne", mapped))
        for label, points in maps.items()
        for number, (x, y) in enumerate(points)
    ]
    caption = (
        f"{what} Left: the two principal axes of the real images, with their share of the variance of these; "
        f"lines hold {MASSES[1]:.0%} (thick) and {MASSES[0]:.0%} (thin) of the mass of a Gaussian kernel "
        "density of each set (Scott's bandwidth), marks are means. Right: t-SNE of all sets together, "
        f"perplexity {_perplexity(mapped):.0f}, at most {POINTS} images a set; its distances and areas have "
        "no meaning."
    )
    return Picture(name, caption, figure, ("map", "set", "image", "x", "y"), numbers)


def pca(features: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return ({label: coordinates [n, 2]}, the axes' share of the variance [2]); fitted to `REAL` alone."""
    real = features[REAL].astype(np.float64)
    mean = real.mean(axis=0)
    _, sizes, axes = np.linalg.svd(real - mean, full_matrices=False)
    if len(sizes) < 2 or not sizes[1]:
        raise NotDrawnError("the features of the real images do not spread over two axes")
    return {label: (x - mean) @ axes[:2].T for label, x in features.items()}, (sizes**2 / sum(sizes**2))[:2]


def tsne(features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return {label: coordinates [n, 2]} of all sets in one map, from a fixed seed."""
    from sklearn.manifold import TSNE

    made = TSNE(2, perplexity=_perplexity(features), init="pca", random_state=0)
    mapped = made.fit_transform(np.concatenate(list(features.values())).astype(np.float64))
    ends = np.cumsum([len(rows) for rows in features.values()])[:-1]
    return dict(zip(features, np.split(mapped, ends), strict=True))


def _perplexity(features: Mapping[str, np.ndarray]) -> float:
    return min(PERPLEXITY, sum(map(len, features.values())) / 4)


def mass_levels(density: np.ndarray) -> list[float]:
    """Return the heights above which `MASSES` of a density on a regular grid lie."""
    ordered = np.sort(density.ravel())[::-1]
    held = np.cumsum(ordered) / ordered.sum()
    return [float(ordered[np.searchsorted(held, mass)]) for mass in MASSES]


def _contours(axis: Axes, sets: Mapping[str, np.ndarray], chosen: Mapping[str, Look]) -> None:
    from scipy.stats import gaussian_kde

    everything = np.concatenate(list(sets.values()))
    low, high = everything.min(axis=0), everything.max(axis=0)
    margin = 0.3 * (high - low)
    places = [np.linspace(low[i] - margin[i], high[i] + margin[i], 120) for i in range(2)]
    across, up = np.meshgrid(*places)
    for label, points in sets.items():
        try:
            density = gaussian_kde(points.T)(np.stack([across.ravel(), up.ravel()])).reshape(across.shape)
        except (np.linalg.LinAlgError, ValueError):
            raise NotDrawnError(f"the features of {label} are too few or too alike for a density") from None
        look = chosen[label]
        axis.contour(across, up, density, mass_levels(density), colors=look.colour,
                     linestyles=[look.line], linewidths=(0.8, 1.8))  # fmt: skip
        axis.plot(*points.mean(axis=0), look.marker, color=look.colour, markersize=6, markeredgecolor="white")
