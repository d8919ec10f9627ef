"""Distance between the distributions of two image sets: Fréchet distances, a class score, precision, recall.

The features come from a small digit network, so the names carry `digits` and the numbers are NOT comparable
with any Inception-based FID or Inception Score.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from alignbench.api import ImageBatch, Measured, Metric, Reference
from alignbench.errors import UserError
from alignbench.files import digest_of
from alignbench.metrics.frechet import frechet_distance
from alignbench.metrics.inception_score import inception_score
from alignbench.metrics.moments import moments_of
from alignbench.metrics.precision_recall import precision_recall
from alignbench.nets import digits
from alignbench.registry.protocol import EvaluatorCard
from alignbench.registry.schema import Scalar

VERSION = 1
"""Of the arithmetic of `measure`; raised whenever the same image could get other rows."""
UNLABELLED = -1


class DigitsDistribution:
    """Scores a set of generated digits against real ones.

    Columns of the rows: `pixels` [64] grey levels in [-1, 1] of the canonical digit, `penultimate` [D] and
    `logits` [10], all float64; `label` int64, -1 where the image set has no labels; `correct` float64, 1
    where the classifier agrees with the label, else 0; `recognised` int64 and its `probability`; `requested`,
    the probability of the label, only where the image set has labels.
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
            "recognised": logits.argmax(dim=1),
            "probability": logits.softmax(dim=1).amax(dim=1),
        }
        if batch.labels is not None:
            asked = torch.arange(logits.shape[1]) == labels[:, None]
            columns["requested"] = (logits.softmax(dim=1) * asked).sum(dim=1)
        return {name: column.numpy() for name, column in columns.items()}

    def score(self, samples: Measured, reference: Reference | None) -> list[Metric]:
        """Return all metrics of the card; `class-accuracy` only if all samples carry labels.

        Raises:
            UserError: no real images, or too few images for an estimate.
        """
        if reference is None or reference.measured is None:
            raise UserError(
                "digits are compared with real digits, and there are none",
                fix="use a protocol whose reference is a data set",
            )
        minimum = max(2, self.neighbours + 1)
        for what, count, needed in (
            ("samples", len(samples), max(minimum, self.splits)),
            ("reference images", len(reference.measured), minimum),
        ):
            if count < needed:
                options = f"{self.neighbours} neighbours and {self.splits} splits"
                raise UserError(f"{count} {what}: {options} need at least {needed}", fix="score more images")
        score, _ = inception_score(
            samples.column("logits"), splits=self.splits, order="shuffled", seed=self.shuffle_seed
        )
        near = precision_recall(
            samples.column("penultimate"), reference.measured.column("penultimate"), k=self.neighbours
        )
        values = {
            "fd-digits": _distance(samples, reference.measured, "penultimate"),
            "fd-pixels": _distance(samples, reference.measured, "pixels"),
            "is-digits": score,
            # torch-fidelity, which made the published records, averages in float32.
            "precision": float(np.float32(near.precision)),
            "recall": float(np.float32(near.recall)),
        }
        if (samples.column("label") != UNLABELLED).all():
            values["class-accuracy"] = float(samples.column("correct").mean())
        return [Metric(name=name, value=value, n=len(samples)) for name, value in values.items()]


def _distance(samples: Measured, real: Measured, column: str) -> float:
    ours, theirs = (moments_of([measured.column(column)]) for measured in (samples, real))
    return frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)


def build(card: EvaluatorCard, *, options: Mapping[str, Scalar], **unused: object) -> DigitsDistribution:
    """Build the evaluator from its options; its network ships with the package, so there are no assets.

    The device is unused: the network has 37 kB, and on the CPU the number is the same on every machine.
    """
    return DigitsDistribution(
        network=str(options["network"]),
        splits=int(options["splits"]),
        shuffle_seed=int(options["shuffle_seed"]),
        neighbours=int(options["neighbours"]),
    )
