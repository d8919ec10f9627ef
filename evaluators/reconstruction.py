"""How far reconstructions are from their originals, image by image: PSNR, SSIM, squared error, and LPIPS.

Every metric is the plain mean of one column of rows, so two tokenizers can be compared image by image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from alignbench.api import ImageBatch, Measured, Metric, Reference
from alignbench.errors import RunFailed, UserError
from alignbench.files import digest_of
from alignbench.hub.verify import AssetFile
from alignbench.metrics import image_quality
from alignbench.metrics.intervals import Z95
from alignbench.nets import lpips
from alignbench.nets.precision import full_precision
from alignbench.registry.protocol import EvaluatorCard, MetricFact
from alignbench.registry.schema import Scalar

VERSION = 1
"""Of the arithmetic below: rows of another version are not used."""
TRUNK = "lpips-vgg16-trunk"
LPIPS_MIN_SIDE = 16
"""VGG-16 halves four times before its last layer."""


class _Comparison:
    _metrics: Mapping[str, MetricFact]

    def score(self, samples: Measured, reference: Reference | None) -> list[Metric]:
        """Return the means over independent images; the reference is not looked at.

        The interval is that of the central limit theorem, where values differ.
        """
        means = []
        for name, fact in self._metrics.items():
            values = samples.column(fact.column).astype(np.float64)
            mean, interval = float(values.mean()), None
            if (values != values[0]).any():
                half = Z95 * float(values.std(ddof=1)) / math.sqrt(len(values))
                interval = (mean - half, mean + half)
            means.append(Metric(name, mean, len(values), interval))
        return means


class PixelComparison(_Comparison):
    """PSNR, SSIM and squared error; no network."""

    def __init__(self, metrics: Mapping[str, MetricFact], device: torch.device) -> None:
        self.identity = digest_of({"evaluator": "reconstruction-pixels", "version": VERSION})
        self._metrics = metrics
        # Apple's GPUs know no float64.
        self._device = torch.device("cpu") if device.type == "mps" else device

    def measure(self, batch: ImageBatch) -> dict[str, np.ndarray]:
        """Return float64 columns [n]: psnr (finite), ssim, ssim_range2, mse (white is 1), exact (0 or 1).

        Raises:
            UserError: images without originals, or smaller than SSIM's window.
        """
        images, originals = _pair(batch, image_quality.WINDOW, self._device)
        error = image_quality.mean_squared_error(images, originals)
        columns = {
            "psnr": image_quality.psnr(images, originals),
            "ssim": image_quality.ssim(images, originals),
            "ssim_range2": image_quality.ssim(images, originals, data_range=2 * image_quality.LEVELS),
            "mse": error / image_quality.LEVELS**2,
            "exact": (error == 0).double(),
        }
        return {name: values.cpu().numpy() for name, values in columns.items()}


class LpipsComparison(_Comparison):
    """LPIPS v0.1 on VGG-16."""

    def __init__(
        self,
        metrics: Mapping[str, MetricFact],
        distance: lpips.FeatureDistance,
        *,
        weights: str,
        batch: int,
        device: torch.device,
    ) -> None:
        """Take a loaded distance; `batch` images go through the network at once, which bounds memory."""
        self.identity = digest_of(
            {
                "evaluator": "reconstruction-lpips",
                "version": VERSION,
                "trunk": weights,
                "heads": lpips.heads_digest("vgg"),
            }
        )
        self._metrics, self._distance, self._batch, self._device = metrics, distance, batch, device

    @torch.no_grad()
    def measure(self, batch: ImageBatch) -> dict[str, np.ndarray]:
        """Return one float64 column [n], lpips, computed in float32 without TF32.

        Raises:
            UserError: images without originals, or too small for the network.
            RunFailed: a distance is not finite.
        """
        images, originals = _pair(batch, LPIPS_MIN_SIDE, self._device)
        pairs = zip(images.split(self._batch), originals.split(self._batch), strict=True)
        with full_precision():
            values = torch.cat([self._apart(*pair) for pair in pairs]).cpu().numpy().astype(np.float64)
        bad = ~np.isfinite(values)
        if bad.any():
            first = batch.ids[int(bad.argmax())]
            raise RunFailed(f"image {first}: its LPIPS is not finite", fix=f"check the file of {TRUNK}")
        return {"lpips": values}

    def _apart(self, images: Tensor, originals: Tensor) -> Tensor:
        prepared = self._distance.prepare(originals.float() / 127.5 - 1)
        return self._distance.distance(images.float() / 127.5 - 1, prepared, repeats=1)


def _pair(batch: ImageBatch, min_side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return images and originals on the device, uint8."""
    if batch.originals is None:
        raise UserError(
            "these images are no reconstructions: nothing says what their originals are",
            fix="alignbench evaluate --reconstruction",
        )
    side = min(batch.images.shape[-2:])
    if side < min_side:
        raise UserError(f"images of {side} px are too small to compare: at least {min_side} px are needed")
    return batch.images.to(device), batch.originals.to(device)


def build_pixels(card: EvaluatorCard, *, device: torch.device, **unused: object) -> PixelComparison:
    """Build the evaluator of `reconstruction-pixels`."""
    return PixelComparison(card.metrics, device)


def build_lpips(
    card: EvaluatorCard,
    *,
    options: Mapping[str, Scalar],
    assets: Mapping[str, AssetFile],
    device: torch.device,
) -> LpipsComparison:
    """Build the evaluator of `reconstruction-lpips`.

    Raises:
        UserError: the asset's file is not torchvision's VGG-16.
    """
    file = assets[TRUNK]
    trunk = lpips.load_trunk("vgg", file.path)
    distance = lpips.FeatureDistance(trunk, lpips.heads("vgg"), module=trunk)
    distance.to(device)
    return LpipsComparison(
        card.metrics, distance, weights=file.sha256, batch=int(options["batch"]), device=device
    )
