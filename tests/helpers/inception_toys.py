"""Small images, and a randomly initialised Inception network saved as a weights file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from alignbench.evaluators.inception import InceptionDistribution
from alignbench.hub.verify import AssetFile
from alignbench.registry.lookup import Registry, import_target

ASSET = "inception-2015-12-05"


def pictures(count: int, seed: int, *, side: int = 24, cells: int = 5) -> np.ndarray:
    """[N, side, side, 3] uint8: smooth colour patches, so that features differ between images."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, cells, cells, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in small]
    )


def save_pngs(folder: Path, pixels: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(pixels):
        Image.fromarray(one).save(folder / f"{number:05d}.png")
    return folder


def evaluator(weights: Path, *, device: str = "cpu", **changes: int | str) -> InceptionDistribution:
    """Build the evaluator of the card with some options changed."""
    card = Registry.default().evaluator("distribution-inception")
    options = {key: option.default for key, option in card.options.items()} | changes
    file = AssetFile(ASSET, weights, hashlib.sha256(weights.read_bytes()).hexdigest())
    built: InceptionDistribution = import_target(card.target)(
        card, options=options, assets={ASSET: file}, device=torch.device(device)
    )
    return built
