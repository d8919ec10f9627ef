"""How often do intervals for a Fréchet distance cover the true one? Gaussian sets with known distances.

    python -m tests.coverage_study            # the table of docs/evaluators/error-bars.md, some minutes
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from alignbench.metrics.bootstrap import Z95, WeightedFrechet
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
    value: float
    """Mean of the plain distances."""
    corrected: float
    """Mean of the corrected ones."""
    spread: float
    """Standard deviation of the plain distances over sets."""
    sd: float
    """Mean of the bootstrap's estimates of it."""
    percentile: float
    """Share of sets whose interval from the 2.5th to the 97.5th percentile covers the truth."""
    basic: float
    """The same with the percentiles mirrored at the plain distance."""
    plain: float
    """The same of value ± 1.96 sd."""
    shifted: float
    """The same of the corrected interval."""


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
    for _ in range(sets):
        shape = (setting.images, setting.features)
        drawn = rng.normal(size=shape) * scales * setting.stretch + there
        rows.append(_intervals(WeightedFrechet(drawn, mean, cov), replicates, rng))
    values, sds, corrected = (np.array([row[key] for row in rows]) for key in ("value", "sd", "corrected"))

    def covered(name: str) -> float:
        return float(np.mean([row[name][0] <= truth <= row[name][1] for row in rows]))

    return Coverage(
        truth=truth,
        value=float(values.mean()),
        corrected=float(corrected.mean()),
        spread=float(values.std(ddof=1)),
        sd=float(sds.mean()),
        percentile=covered("percentile"),
        basic=covered("basic"),
        plain=covered("plain"),
        shifted=covered("shifted"),
    )


def _intervals(frechet: WeightedFrechet, replicates: int, rng: np.random.Generator) -> dict:
    count = len(frechet)
    value = frechet.distance(np.ones(count))
    share = np.full(count, 1 / count)
    drawn = [frechet.distance(rng.multinomial(count, share)) for _ in range(replicates)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    sd = np.std(drawn, ddof=1)
    corrected = 2 * value - np.mean(drawn)
    return {
        "value": value,
        "sd": sd,
        "corrected": corrected,
        "percentile": (low, high),
        "basic": (2 * value - high, 2 * value - low),
        "plain": (value - Z95 * sd, value + Z95 * sd),
        "shifted": (corrected - Z95 * sd, corrected + Z95 * sd),
    }


SETTINGS = (
    Setting(features=64, images=500, shift=0.0),
    Setting(features=64, images=500, shift=0.3),
    Setting(features=64, images=500, shift=1.0),
    Setting(features=64, images=500, shift=0.0, stretch=1.3),
    Setting(features=64, images=5000, shift=0.3),
    Setting(features=256, images=2000, shift=0.3),
    Setting(features=256, images=200, shift=0.3),
    Setting(features=256, images=100, shift=1.0),
)


def table(sets: int, replicates: int) -> str:
    """The whole table as Markdown."""
    lines = [
        "| features | images | true | plain | corrected | sd | estimated sd "
        "| percentile | basic | plain ± 1.96 sd | corrected ± 1.96 sd |",
        "| --: " * 11 + "|",
    ]
    for setting in SETTINGS:
        found = study(setting, sets=sets, replicates=replicates)
        numbers = [found.truth, found.value, found.corrected, found.spread, found.sd]
        shares = [found.percentile, found.basic, found.plain, found.shifted]
        cells = [str(setting.features), str(setting.images), *(f"{x:.3f}" for x in numbers)]
        lines.append("| " + " | ".join([*cells, *(f"{x:.0%}" for x in shares)]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table(sets=100, replicates=100))
