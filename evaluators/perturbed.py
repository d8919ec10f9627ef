"""pFID: how far reconstructions with slightly wrong codes are from their originals (arXiv:2509.12474).

A generator's codes are not those that the encoder would have chosen. For each share α and each number δ of
near codes, a share α of the codes is replaced by random ones of the δ nearest, and the Fréchet distance of
what is then decoded to the originals is taken; pFID is the mean over all pairs (α, δ). δ is meant for 16,384
codes and is proportional to the size of the codebook.

The paper leaves open whether a code is among its own nearest, how a share is drawn and how many images count.
Here it is not, each code is drawn for itself, and all images of the protocol count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from alignbench.api import ImageBatch, Measured, Metric, Reference
from alignbench.errors import RunFailed, UserError
from alignbench.evaluators.inception import WEIGHTS
from alignbench.files import digest_of
from alignbench.hub.verify import AssetFile
from alignbench.metrics.bootstrap import Bootstrap, WeightedFrechet, frechet_bootstrap
from alignbench.metrics.frechet import frechet_distance
from alignbench.metrics.moments import Moments, moments_of
from alignbench.nets import digits, inception
from alignbench.registry.protocol import EvaluatorCard
from alignbench.registry.schema import Scalar

VERSION = 1
"""Of the arithmetic below: rows of another version are not used."""
CODES = 16_384
"""Size of the codebook that δ is given for."""
REAL = "real"
"""Column of the reference images' features; those of perturbed images are named by their pair."""


@dataclass(frozen=True)
class Frechet:
    """A Fréchet distance exactly as one evaluator of generated images computes it."""

    features: Callable[[Tensor], np.ndarray]
    """[n, 3, H, W] uint8 → [n, D]."""
    moments: Callable[[Measured], Moments]
    """Of column `real`."""
    distance: Callable[[np.ndarray, Moments], Bootstrap]
    """Of rows [N, D]; without resamples where that evaluator has no interval."""


class PerturbedReconstruction:
    """The mean of the distances of all pairs; one metric."""

    def __init__(
        self, metric: str, frechet: Frechet, pairs: Mapping[str, tuple[float, float]], **identity: object
    ) -> None:
        """Take pairs of (share α, δ over the size of the codebook) by the name of their column."""
        self.identity = digest_of(
            {"evaluator": "pfid", "version": VERSION, "pairs": [*pairs.values()], **identity}
        )
        self._metric, self._frechet, self._pairs = metric, frechet, pairs

    def measure(self, batch: ImageBatch) -> dict[str, np.ndarray]:
        """Return features [n, D] of the perturbed images by pair, or of reference images as `real`.

        Raises:
            RunFailed: a feature is not finite.
        """
        if batch.perturbed is None:
            return {REAL: self._features(batch, batch.images)}
        return {name: self._features(batch, batch.perturbed(*pair)) for name, pair in self._pairs.items()}

    def _features(self, batch: ImageBatch, images: Tensor) -> np.ndarray:
        rows = self._frechet.features(images)
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any():
            raise RunFailed(f"image {batch.ids[int(bad.argmax())]}: the network's features are not finite")
        return rows

    def score(self, samples: Measured, reference: Reference | None) -> list[Metric]:
        """Return the mean; its resamples draw the same images for all pairs.

        Raises:
            UserError: no original images, or too few for a covariance.
        """
        if reference is None or reference.measured is None:
            raise UserError(
                f"{self._metric} compares with the original images, and there are none",
                fix="use a protocol whose reference is a data set",
            )
        real = self._frechet.moments(reference.measured)
        found = [self._frechet.distance(samples.column(name), real) for name in self._pairs]
        drawn = zip(*(one.resampled for one in found), strict=True)
        # `mean` is exact: equal distances have that mean, bit for bit.
        whole = Bootstrap(mean(one.value for one in found), tuple(map(mean, drawn)))
        interval = whole.interval if whole.resampled else None
        return [Metric(self._metric, whole.value, len(samples), interval, whole.resampled)]


def pairs_of(options: Mapping[str, Scalar]) -> dict[str, tuple[float, float]]:
    """Return (α, δ over the size of the codebook) for all pairs of two lists, by name.

    Raises:
        UserError: a list that is empty or holds something else than numbers in its range.
    """
    lists = {}
    for name, highest in (("shares", 1.0), ("nearest", float(CODES - 1))):
        try:
            values = [float(part) for part in str(options[name]).split(",")]
        except ValueError:
            values = [math.nan]
        if not all(0 <= value <= highest for value in values):
            raise UserError(
                f"{name} = {options[name]!r} is no list of numbers from 0 to {highest:g} with commas"
            )
        lists[name] = values
    shares, nearest = lists["shares"], lists["nearest"]
    return {f"{share:g}-{near:g}": (share, near / CODES) for share in shares for near in nearest}


@torch.no_grad()
def build_digits(
    card: EvaluatorCard, *, options: Mapping[str, Scalar], **unused: object
) -> PerturbedReconstruction:
    """Build the evaluator of `reconstruction-pfid-digits`, on the features of `fd-digits`."""
    network = str(options["network"])
    net = digits.load(network).double()

    @torch.no_grad()
    def features(images: Tensor) -> np.ndarray:
        rows: np.ndarray = net(images.double() / 127.5 - 1)[0].numpy()
        return rows

    def distance(rows: np.ndarray, real: Moments) -> Bootstrap:
        ours = Moments.of(rows)
        return Bootstrap(frechet_distance(ours.mean, ours.covariance, real.mean, real.covariance), ())

    frechet = Frechet(features, lambda measured: Moments.of(measured.column(REAL)), distance)
    sha256 = digits.manifest()["files"][f"{network}.safetensors"]["sha256"]
    return PerturbedReconstruction("pfid-digits", frechet, pairs_of(options), network=sha256)


def build_inception(
    card: EvaluatorCard,
    *,
    options: Mapping[str, Scalar],
    assets: Mapping[str, AssetFile],
    device: torch.device,
) -> PerturbedReconstruction:
    """Build the evaluator of `reconstruction-pfid-inception`, on the features of `fid`.

    Raises:
        UserError: the weights file is not the FID Inception network.
    """
    file = assets[WEIGHTS]
    net = inception.load(file.path, device)
    batch, replicates, seed = (int(options[name]) for name in ("batch", "bootstrap", "bootstrap_seed"))
    place = torch.device("cpu") if device.type == "mps" else device  # Apple's GPUs know no float64

    def distance(rows: np.ndarray, real: Moments) -> Bootstrap:
        target = real.mean, real.covariance
        if replicates < 2:
            whole = WeightedFrechet(rows, *target, device=place).distance(np.ones(len(rows)))
            return Bootstrap(whole, ())
        return frechet_bootstrap(rows, *target, replicates=replicates, seed=seed, device=place)

    frechet = Frechet(
        lambda images: net.rows(images, batch=batch)["pool"],
        lambda measured: moments_of(measured.shards(REAL), place),
        distance,
    )
    return PerturbedReconstruction(
        "pfid", frechet, pairs_of(options), weights=file.sha256, bootstrap=[replicates, seed]
    )
