"""How often do intervals for the difference of two Fréchet distances cover it, with and without pairs?

python -m tests.metrics.paired_study            # the table of docs/evaluators/comparing.md, some minutes
"""

from __future__ import annotations

import numpy as np

from alignbench.metrics.bootstrap import frechet_bootstrap
from alignbench.metrics.intervals import Z95, resampled_difference

FEATURES, IMAGES = 64, 500


def study(
    correlation: float, stretch: float, *, sets: int, replicates: int, seed: int = 0
) -> dict[str, float]:
    """Draw pairs of sets whose images belong together, and count.

    Args:
        correlation: between the features of image i of one set and of the other.
        stretch: standard deviations of the second set over those of the reference; the first has 1.1.
        sets: pairs of sets.
        replicates: resamples of each.
        seed: of the images.

    Returns:
        difference, spread: mean and standard deviation over pairs of the plain distances' difference, second
            set minus first.
        paired_sd, unpaired_sd: mean of what paired resamples, and the two sets' own errors, say `spread` is.
        paired, unpaired: shares of pairs whose interval covers `difference`.
        found: share of pairs whose paired interval leaves out 0.
    """
    rng = np.random.default_rng(seed)
    scales = 1 / np.sqrt(1 + np.arange(FEATURES))
    target = (np.zeros(FEATURES), np.diag(scales**2))
    rows = []
    for number in range(sets):
        first = rng.normal(size=(IMAGES, FEATURES))
        fresh = rng.normal(size=(IMAGES, FEATURES))
        second = correlation * first + np.sqrt(1 - correlation**2) * fresh
        a, b = (
            frechet_bootstrap(part, *target, replicates=replicates, seed=number)
            for part in (first * scales * 1.1, second * scales * stretch)
        )
        one = resampled_difference(b.value, a.value, b.resampled, a.resampled)
        apart = float(np.hypot(a.sd, b.sd))
        paired_sd = float(np.std(np.subtract(b.resampled, a.resampled), ddof=1))
        rows.append((b.value - a.value, one.low, one.high, apart, one.significant, paired_sd))
    values, low, high, apart, found, paired = np.array(rows, dtype=float).T
    mean = values.mean()
    return {
        "difference": float(mean),
        "spread": float(values.std(ddof=1)),
        "paired_sd": float(paired.mean()),
        "unpaired_sd": float(apart.mean()),
        "paired": float(np.mean((low <= mean) & (mean <= high))),
        "unpaired": float(np.mean(np.abs(values - mean) <= Z95 * apart)),
        "found": float(found.mean()),
    }


def table(sets: int = 200, replicates: int = 50) -> str:
    lines = [
        "| correlation | difference | sd | paired sd | unpaired sd | paired covers | unpaired covers "
        "| differs from 0 |",
        "| --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for stretch in (1.1, 1.12):
        for correlation in (0.0, 0.5, 0.9):
            one = study(correlation, stretch, sets=sets, replicates=replicates)
            numbers = [f"{one[name]:.4f}" for name in ("difference", "spread", "paired_sd", "unpaired_sd")]
            shares = [f"{one[name]:.0%}" for name in ("paired", "unpaired", "found")]
            lines.append(f"| {' | '.join([str(correlation), *numbers, *shares])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())  # noqa: T201
