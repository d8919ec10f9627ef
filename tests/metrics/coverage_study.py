"""How often do intervals for a Fréchet distance cover the true one? Gaussian sets with known distances.

python -m tests.metrics.coverage_study            # the table of docs/evaluators/error-bars.md, some minutes
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np

from alignbench.metrics.bootstrap import frechet_at_infinity, frechet_bootstrap
from alignbench.metrics.frechet import frechet_distance


class Setting(NamedTuple):
    """One row of the table."""

    features: int
    images: int
    shift: float
    """Length of the difference of means, in standard deviations of the widest feature."""
    stretch: float = 1.0
    """Standard deviations of the generated set over those of the reference."""


def study(setting: Setting, *, sets: int, replicates: int, seed: int = 0) -> dict[str, float]:
    """Draw image sets from one law, bootstrap each, and count.

    Returns:
        truth: distance of the laws.
        value, corrected, infinity: means over sets of the plain, corrected and extrapolated distances.
        spread, infinity_spread: standard deviations over sets of `value` and `infinity`.
        sd: mean of the bootstrap's estimates of `spread`.
        percentile, basic, plain, shifted: shares of sets whose interval covers the truth: the 2.5th to 97.5th
            percentile, those mirrored at the plain distance, the plain interval, the corrected one.
        repeated: share of sets whose plain interval covers the mean plain distance of all sets.
    """
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
        found = frechet_bootstrap(drawn, mean, cov, replicates=replicates, seed=number)
        low, high = np.percentile(found.resampled, [2.5, 97.5])
        rows.append(
            {name: getattr(found, name) for name in ("value", "sd", "corrected")}
            | {
                "infinity": frechet_at_infinity(drawn, mean, cov, seed=number),
                "percentile": (low, high),
                "basic": (2 * found.value - high, 2 * found.value - low),
                "plain": found.interval,
                "shifted": found.corrected_interval,
            }
        )
    column = {key: np.array([row[key] for row in rows]) for key in rows[0]}

    def covered(name: str, target: float) -> float:
        low, high = column[name].T
        return float(np.mean((low <= target) & (target <= high)))

    return {
        "truth": truth,
        **{name: float(column[name].mean()) for name in ("value", "corrected", "infinity", "sd")},
        "spread": float(column["value"].std(ddof=1)),
        "infinity_spread": float(column["infinity"].std(ddof=1)),
        **{name: covered(name, truth) for name in ("percentile", "basic", "plain", "shifted")},
        "repeated": covered("plain", float(column["value"].mean())),
    }


SETTINGS = (
    *(Setting(64, 500, shift) for shift in (0.0, 0.3, 1.0)),
    Setting(64, 500, shift=0.0, stretch=1.3),
    Setting(64, 5000, shift=0.3),
    *(Setting(128, images, shift=0.3) for images in (1024, 512, 256, 128, 64)),
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
        numbers = (round(found[name], 3) + 0.0 for name in ("truth", "value", "corrected", "infinity"))
        cells = [str(setting.features), str(setting.images), *(f"{x:.3f}" for x in numbers)]  # no "-0.000"
        cells[-1] += f" ± {found['infinity_spread']:.3f}"
        cells += [f"{found[name]:.3f}" for name in ("spread", "sd")]
        shares = [found[name] for name in ("percentile", "basic", "plain", "shifted", "repeated")]
        lines.append("| " + " | ".join([*cells, *(f"{x:.0%}" for x in shares)]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table(sets=200, replicates=100))
