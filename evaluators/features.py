"""Distances of two image sets in the features of a frozen network: FD, precision, recall, density, coverage,
CMMD, MIND.

One pass over the images leaves one row of features for each. `build_*` are the networks; which distances are
computed of their features is decided there, too. What is equal to the original programs and what is not
stands in docs/evaluators/features.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from alignbench.api import ImageBatch, Measured, Metric, Reference
from alignbench.errors import RunFailed, UserError
from alignbench.evaluators.distances import (
    FeatureComparison,
    FrechetOf,
    KernelOf,
    ManifoldsOf,
    Resampling,
    SlicedOf,
)
from alignbench.files import digest_of
from alignbench.hub.verify import AssetFile
from alignbench.nets import clip, digits, dinov2, inception
from alignbench.nets.precision import full_precision
from alignbench.registry.protocol import EvaluatorCard
from alignbench.registry.schema import Scalar

VERSION = 1
"""Of the arithmetic here and of the networks' input: rows and results of another version are not used."""
COLUMN = "features"

Features = Callable[[Tensor], Tensor]
"""[n, 3, H, W] uint8 → [n, D] floating-point features."""


class FeatureDistances:
    """Compares a set of images with real ones by the features of one network."""

    def __init__(
        self,
        features: Features,
        distances: Sequence[FeatureComparison],
        *,
        options: Mapping[str, Scalar],
        weights: str,
    ) -> None:
        """Take the network, by its function and the SHA-256 of its weights, and what is computed of it."""
        self._features, self._distances = features, distances
        self._batch, self._k = int(options["batch"]), int(options.get("neighbours", 0))
        made_of = {name: value for name, value in options.items() if name != "batch"}
        self.identity = digest_of({"version": VERSION, "weights": weights, **made_of})

    def measure(self, batch: ImageBatch) -> dict[str, np.ndarray]:
        """Return one column, `features` [n, D], in the network's own precision.

        Raises:
            RunFailed: a feature is not finite.
        """
        parts = [self._features(part) for part in batch.images.split(self._batch)]
        rows = torch.cat(parts).cpu().numpy()
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any():
            raise RunFailed(f"image {batch.ids[int(bad.argmax())]}: the network's features are not finite")
        return {COLUMN: rows}

    def score(self, samples: Measured, reference: Reference | None) -> list[Metric]:
        """Return the metrics of the card.

        Raises:
            UserError: no real images, or too few images on a side.
        """
        if reference is None or reference.measured is None:
            raise UserError(
                "features are compared with those of real images, and there are none",
                fix="use a protocol whose reference is a data set or has images",
            )
        minimum = max(2, self._k + 1)
        for count, what in ((len(samples), "images"), (len(reference.measured), "reference images")):
            if count < minimum:
                raise UserError(f"{count} {what} are too few", fix=f"use {minimum} or more")
        ours, theirs = samples.column(COLUMN), reference.measured.column(COLUMN)
        return [metric for distance in self._distances for metric in distance(ours, theirs)]


# --- the networks -----------------------------------------------------------------------------------


def build_dinov2(
    card: EvaluatorCard,
    *,
    options: Mapping[str, Scalar],
    assets: Mapping[str, AssetFile],
    device: torch.device,
) -> FeatureDistances:
    """Build FD-DINOv2 with precision, recall, density and coverage; the card has the network's metrics.

    Raises:
        UserError: the asset's files are no DINOv2.
    """
    (file,) = assets.values()
    (name,) = (name for name in card.metrics if name.startswith("fd-") and not card.metrics[name].detail)
    draws = _resampling(options, device)
    manifolds = ManifoldsOf(
        name.removeprefix("fd"), int(options["neighbours"]), int(options["manifold_images"]), draws
    )
    distances: list[FeatureComparison] = [FrechetOf(name, draws, corrected=f"{name}-corrected"), manifolds]
    network = dinov2.load(file.path, device)
    return FeatureDistances(network.features, distances, options=options, weights=file.sha256)


def build_cmmd(
    card: EvaluatorCard,
    *,
    options: Mapping[str, Scalar],
    assets: Mapping[str, AssetFile],
    device: torch.device,
) -> FeatureDistances:
    """Build CMMD on the projected image features of CLIP.

    Raises:
        UserError: open_clip is not installed, or the file does not fit the architecture.
    """
    (file,) = assets.values()
    model = clip.load(file.path, str(options["architecture"]))
    pictures, network = clip.pil_pictures(model), model.network.to(device)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        with full_precision():
            return F.normalize(network.encode_image(pictures(images.cpu()).to(device)), dim=-1)

    distance = KernelOf("cmmd", _resampling(options, device))
    return FeatureDistances(features, [distance], options=options, weights=file.sha256)


def build_mind(
    card: EvaluatorCard,
    *,
    options: Mapping[str, Scalar],
    assets: Mapping[str, AssetFile],
    device: torch.device,
) -> FeatureDistances:
    """Build MIND on the pooled features of FID's network.

    Raises:
        UserError: the weights file is not the FID Inception network.
    """
    (file,) = assets.values()
    network = inception.load(file.path, device)
    distance = _sliced("mind", options, _resampling(options, device))
    return FeatureDistances(
        lambda images: network.features(images).pool, [distance], options=options, weights=file.sha256
    )


def build_digits(card: EvaluatorCard, *, options: Mapping[str, Scalar], **unused: object) -> FeatureDistances:
    """Build all of them on the classifier of the digits, in float64 on the CPU, as `distribution-digits`."""
    network = digits.load("digits-features-a").double()
    draws = _resampling(options, torch.device("cpu"))
    distances: list[FeatureComparison] = [
        FrechetOf("frechet-digits", draws),
        ManifoldsOf("-digits", int(options["neighbours"]), int(options["manifold_images"]), draws),
        KernelOf("mmd-digits", draws),
        _sliced("mind-digits", options, draws),
    ]
    weights = digits.manifest()["files"]["digits-features-a.safetensors"]["sha256"]
    return FeatureDistances(
        lambda images: network.penultimate(images.double() / 127.5 - 1),
        distances,
        options=options,
        weights=weights,
    )


def _resampling(options: Mapping[str, Scalar], device: torch.device) -> Resampling:
    # Apple's GPUs know no float64.
    where = torch.device("cpu") if device.type == "mps" else device
    return Resampling(int(options["bootstrap"]), int(options["bootstrap_seed"]), where)


def _sliced(name: str, options: Mapping[str, Scalar], draws: Resampling) -> SlicedOf:
    return SlicedOf(name, int(options["directions"]), int(options["directions_seed"]), draws)
