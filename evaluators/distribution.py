"""Distance between the distributions of two image sets: Fréchet distances, a class score, precision, recall.

The arithmetic is torch-fidelity's; the features come from a small digit network, so the names carry `digits`
and the numbers are NOT comparable with any Inception-based FID or Inception Score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from alignbench.api import ImageSet, Metric
from alignbench.errors import UserError
from alignbench.nets import digits

if TYPE_CHECKING:
    from alignbench.registry.schema import EvaluatorCard, Scalar

BLOCK = 4096
"""Rows per block of the distance matrices; bounds memory, does not change the result."""


@dataclass(frozen=True)
class Features:
    """What one pass over an image set leaves behind, all float64 on the CPU."""

    pixels: Tensor
    """[N, 64] grey levels in [-1, 1] of the canonical digit."""
    penultimate: Tensor
    """[N, D]."""
    logits: Tensor
    """[N, 10]."""


class DigitsDistribution:
    """Scores a set of generated digits against real ones."""

    def __init__(self, *, network: str, splits: int, shuffle_seed: int, neighbours: int) -> None:
        self.splits = splits
        self.shuffle_seed = shuffle_seed
        self.neighbours = neighbours
        # float64 on the CPU: a number must not depend on batch shapes or on the machine.
        self._net = digits.load(network).double()
        self._references: dict[str, Features] = {}

    def score(self, samples: ImageSet, reference: ImageSet) -> list[Metric]:
        """Return all metrics of the card; `class-accuracy` only if the samples carry labels.

        Args:
            samples: the generated images.
            reference: the real images; their features are kept for the next call with the same digest.

        Raises:
            UserError: too few images for an estimate, or a value that is not finite.
        """
        minimum = max(2, self.neighbours + 1)
        self._require("samples", len(samples), max(minimum, self.splits))
        self._require("reference images", len(reference), minimum)
        if reference.digest not in self._references:
            self._references[reference.digest] = self.features(reference)
        real = self._references[reference.digest]
        generated = self.features(samples)
        values = {
            "fd-digits": frechet_distance(generated.penultimate, real.penultimate),
            "fd-pixels": frechet_distance(generated.pixels, real.pixels),
            "is-digits": class_score(generated.logits, splits=self.splits, shuffle_seed=self.shuffle_seed),
            **precision_recall(generated.penultimate, real.penultimate, neighbours=self.neighbours),
        }
        labels = samples.labels()
        if labels is not None:
            values["class-accuracy"] = (generated.logits.argmax(dim=1) == labels).double().mean().item()
        return [Metric(name=name, value=value, n=len(samples)) for name, value in values.items()]

    @torch.no_grad()
    def features(self, images: ImageSet) -> Features:
        """Read an image set once.

        Raises:
            UserError: a feature is not finite.
        """
        parts = []
        for batch in images.images():
            scaled = batch.double() / 127.5 - 1
            parts.append((digits.canonical_digits(scaled).flatten(start_dim=1), *self._net(scaled)))
        found = Features(*(torch.cat(batches) for batches in zip(*parts, strict=True)))
        if not all(part.isfinite().all() for part in (found.pixels, found.penultimate, found.logits)):
            raise UserError(f"image set {images.digest}: the digit network's features are not finite")
        return found

    def _require(self, what: str, present: int, minimum: int) -> None:
        if present < minimum:
            raise UserError(
                f"{present} {what}: {self.neighbours} neighbours and {self.splits} splits "
                f"need at least {minimum}",
                fix="score more images",
            )


def build(card: EvaluatorCard, options: Mapping[str, Scalar], device: torch.device) -> DigitsDistribution:
    """Build the evaluator from its card's options.

    `device` is unused: the network has 37 kB, and on the CPU the number is the same on every machine.
    """
    return DigitsDistribution(
        network=str(options["network"]),
        splits=int(options["splits"]),
        shuffle_seed=int(options["shuffle_seed"]),
        neighbours=int(options["neighbours"]),
    )


def frechet_distance(generated: Tensor, real: Tensor) -> float:
    """Squared 2-Wasserstein distance of the Gaussians with the sets' means and (n-1) covariances.

    Args:
        generated, real: [N, D] and [M, D] float64, N, M ≥ 2.

    Returns:
        The distance; identical sets can give a negative number of rounding size.
    """
    moments = [fid_features_to_statistics(rows) for rows in (generated, real)]
    return fid_statistics_to_metric(*moments, verbose=False)[KEY_METRIC_FID]


def class_score(logits: Tensor, *, splits: int, shuffle_seed: int) -> float:
    """Inception Score's formula on any classifier: exp of the mean KL of the rows to their split's mean.

    Args:
        logits: [N, C] float64, N ≥ splits.
        splits: the score is the mean over this many parts.
        shuffle_seed: rows are shuffled first, since sets sorted by class would score near 1.
    """
    scores = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=shuffle_seed)
    return scores[KEY_METRIC_ISC_MEAN]


def precision_recall(generated: Tensor, real: Tensor, *, neighbours: int) -> dict[str, float]:
    """Improved precision and recall (arXiv:1904.06991): shares of one set inside the other's k-nearest balls.

    Args:
        generated, real: [N, D] and [M, D] float64, N, M > neighbours.

    Returns:
        `precision`: share of generated rows near real ones; `recall`: share of real rows near generated ones.
    """
    found = prc_features_to_metric(
        generated,  # torch-fidelity's order: generated first
        real,
        prc_neighborhood=neighbours,
        prc_batch_size=BLOCK,
        save_cpu_ram=True,
        verbose=False,
    )
    return {"precision": found[KEY_METRIC_PRECISION], "recall": found[KEY_METRIC_RECALL]}
