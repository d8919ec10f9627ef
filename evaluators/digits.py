"""Distance between the distributions of two image sets: Fréchet distances, a class score, precision, recall.

The arithmetic is torch-fidelity's; the features come from a small digit network, so the names carry `digits`
and the numbers are NOT comparable with any Inception-based FID or Inception Score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from alignbench.api import ImageBatch, Measured, Metric, Reference
from alignbench.errors import UserError
from alignbench.files import digest_of
from alignbench.nets import digits

if TYPE_CHECKING:
    from alignbench.hub.verify import AssetFile
    from alignbench.registry.protocol import EvaluatorCard
    from alignbench.registry.schema import Scalar

BLOCK = 4096
"""Rows per block of the distance matrices; bounds memory, does not change the result."""
VERSION = 1
"""Of the arithmetic of `measure`; raised whenever the same image could get other rows."""
UNLABELLED = -1


class DigitsDistribution:
    """Scores a set of generated digits against real ones.

    Columns of the rows: `pixels` [64] grey levels in [-1, 1] of the canonical digit, `penultimate` [D] and
    `logits` [10], all float64; `label` int64, -1 where the image set has no labels; `correct` float64, 1
    where the classifier agrees with the label, else 0.
    """

    def __init__(self, *, network: str, splits: int, shuffle_seed: int, neighbours: int) -> None:
        self.splits = splits
        self.shuffle_seed = shuffle_seed
        self.neighbours = neighbours
        # float64 on the CPU: a number must not depend on batch shapes or on the machine.
        self._net = digits.load(network).double()
        self.identity = digest_of(
            {
                "version": VERSION,
                "network": digits.manifest()["files"][f"{network}.safetensors"]["sha256"],
                "options": [network, splits, shuffle_seed, neighbours],
            }
        )

    @torch.no_grad()
    def measure(self, batch: ImageBatch) -> dict[str, np.ndarray]:
        """Look at each image once.

        Raises:
            UserError: a feature is not finite.
        """
        scaled = batch.images.double() / 127.5 - 1
        pixels = digits.canonical_digits(scaled).flatten(start_dim=1)
        penultimate, logits = self._net(scaled)
        if not all(bool(part.isfinite().all()) for part in (pixels, penultimate, logits)):
            raise UserError(
                f"images {batch.ids[0]} to {batch.ids[-1]}: the digit network's features are not finite"
            )
        labels = batch.labels
        if labels is None:
            labels = torch.full((len(batch),), UNLABELLED, dtype=torch.int64)
        columns = {
            "pixels": pixels,
            "penultimate": penultimate,
            "logits": logits,
            "label": labels,
            "correct": (logits.argmax(dim=1) == labels).double(),
        }
        return {name: column.numpy() for name, column in columns.items()}

    def score(self, samples: Measured, reference: Reference | None) -> list[Metric]:
        """Return all metrics of the card; `class-accuracy` only if all samples carry labels.

        Args:
            samples: rows of the generated images.
            reference: must have the rows of the real images.

        Raises:
            UserError: no real images, or too few images for an estimate.
        """
        if reference is None or reference.measured is None:
            raise UserError(
                "digits are compared with real digits, and there are none",
                fix="use a protocol whose reference is a data set",
            )
        minimum = max(2, self.neighbours + 1)
        self._require("samples", len(samples), max(minimum, self.splits))
        self._require("reference images", len(reference.measured), minimum)
        generated = {name: _column(samples, name) for name in ("pixels", "penultimate", "logits")}
        real = {name: _column(reference.measured, name) for name in ("pixels", "penultimate")}
        values = {
            "fd-digits": frechet_distance(generated["penultimate"], real["penultimate"]),
            "fd-pixels": frechet_distance(generated["pixels"], real["pixels"]),
            "is-digits": class_score(generated["logits"], splits=self.splits, shuffle_seed=self.shuffle_seed),
            **precision_recall(generated["penultimate"], real["penultimate"], neighbours=self.neighbours),
        }
        if (samples.column("label") != UNLABELLED).all():
            values["class-accuracy"] = float(samples.column("correct").mean())
        return [Metric(name=name, value=value, n=len(samples)) for name, value in values.items()]

    def _require(self, what: str, present: int, minimum: int) -> None:
        if present < minimum:
            raise UserError(
                f"{present} {what}: {self.neighbours} neighbours and {self.splits} splits "
                f"need at least {minimum}",
                fix="score more images",
            )


def _column(measured: Measured, name: str) -> Tensor:
    return torch.from_numpy(measured.column(name))


def build(
    card: EvaluatorCard,
    *,
    options: Mapping[str, Scalar],
    assets: Mapping[str, AssetFile],
    device: torch.device,
) -> DigitsDistribution:
    """Build the evaluator from its options; its network ships with the package, so there are no assets.

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
