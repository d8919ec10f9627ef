"""How often do intervals for a Fréchet distance cover the true one? Gaussian sets with known distances.

python -m tests.metrics.coverage_study            # the table of docs/evaluators/error-bars.md, some minutes
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignbench.metrics.bootstrap import frechet_at_infinity, frechet_bootstrap
from alignbench.metrics.frechet import frechet_distance


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    features: int
    images: int
    shift: float
    """Length of the difference of means, in standard deviations of the widest feature."""
    stretch: float = 1.0
    """Standard deviations of the generated set over those of the reference."""


@dataclass(frozen=True)
class Coverage:
    """What many image sets from one law say."""

    truth: float
    """Distance of the laws."""
    value: float
    """Mean of the plain distances."""
    corrected: float
    """Mean of the corrected ones."""
    infinity: float
    """Mean of the extrapolated ones."""
    spread: float
    """Standard deviation over sets of the plain distances."""
    infinity_spread: float
    """The same of the extrapolated ones."""
    sd: float
    """Mean of the bootstrap's estimates of `spread`."""
    percentile: float
    """Share of sets whose 2.5th to 97.5th percentile covers the truth."""
    basic: float
    """The same of those percentiles mirrored at the plain distance."""
    plain: float
    """The same of the plain interval."""
    shifted: float
    """The same of the corrected interval."""
    repeated: float
    """Share of sets whose plain interval covers the mean plain distance of all sets."""


def study(setting: Setting, *, sets: int, replicates: int, seed: int = 0) -> Coverage:
    """Draw image sets, bootstrap each, and count."""
    rng = np.random.default_rng(seed)
    # Spectrum of network features: a few wide directions, many narrow ones.
    scales = 1 / np.sqrt(1 + np.arange(setting.features))
    mean, cov = np.zeros(setting.features), np.diag(scales**2)
    there = mean.copy()
    there[0] = setting.shift
    truth = frechet_distance(there, cov * setting.stretch**2, mean, cov)
    rows = []
    for number in range(sets):
        shape = (setting.images, setting.features)
        drawn = rng.normal(size=shape) * scales * setting.stretch + there
        rows.append(_row(drawn, mean, cov, replicates, number))
    column = {key: np.array([row[key] for row in rows]) for key in rows[0]}

    def covered(name: str, target: float) -> float:
        low, high = column[name].T
        return float(np.mean((low <= target) & (target <= high)))

    return Coverage(
        truth=truth,
        **{name: float(column[name].mean()) for name in ("value", "corrected", "infinity", "sd")},
        spread=float(column["value"].std(ddof=1)),
        infinity_spread=float(column["infinity"].std(ddof=1)),
        **{name: covered(name, truth) for name in ("percentile", "basic", "plain", "shifted")},
        repeated=covered("plain", float(column["value"].mean())),
    )


def _row(drawn: np.ndarray, mean: np.ndarray, cov: np.ndarray, replicates: int, seed: int) -> dict[str, Any]:
    """What one image set says."""
    found = frechet_bootstrap(drawn, mean, cov, replicates=replicates, seed=seed)
    low, high = np.percentile(found.resampled, [2.5, 97.5])
    return {
        "value": found.value,
        "sd": found.sd,
        "corrected": found.corrected,
        "infinity": frechet_at_infinity(drawn, mean, cov, seed=seed),
        "percentile": (low, high),
        "basic": (2 * found.value - high, 2 * found.value - low),
        "plain": found.interval,
        "shifted": found.corrected_interval,
    }


SETTINGS = (
    Setting(features=64, images=500, shift=0.0),
    Setting(features=64, images=500, shift=0.3),
    Setting(features=64, images=500, shift=1.0),
    Setting(features=64, images=500, shift=0.0, stretch=1.3),
    Setting(features=64, images=5000, shift=0.3),
    Setting(features=128, images=1024, shift=0.3),
    Setting(features=128, images=512, shift=0.3),
    Setting(features=128, images=256, shift=0.3),
    Setting(features=128, images=128, shift=0.3),
    Setting(features=128, images=64, shift=0.3),
)


def table(sets: int, replicates: int) -> str:
    """The whole table as Markdown."""
    lines = [
        "| features | images | true | plain | corrected | extrapolated | sd | estimated sd "
        "| percentile | basic | plain | corrected | plain, of its mean |",
        "| --: " * 13 + "|",
    ]
    for setting in SETTINGS:
        found = study(setting, sets=sets, replicates=replicates)
        numbers = [found.truth, found.value, found.corrected, found.infinity]
        shares = [found.percentile, found.basic, found.plain, found.shifted, found.repeated]
        cells = [
            str(setting.features),
            str(setting.images),
            *(f"{round(x, 3) + 0.0:.3f}" for x in numbers),
        ]  # no "-0.000"
        cells[-1] += f" ± {found.infinity_spread:.3f}"
        cells += [f"{x:.3f}" for x in (found.spread, found.sd)]
        lines.append("| " + " | ".join([*cells, *(f"{x:.0%}" for x in shares)]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table(sets=200, replicates=100))
