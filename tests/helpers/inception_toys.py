"""Small images, and a randomly initialised Inception network: saved as a weights file, in an evaluator."""

from __future__ import annotations

import atexit
import functools
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from alignbench.api import ImageBatch
from alignbench.evaluators.inception import InceptionDistribution, Options
from alignbench.hub.verify import AssetFile
from alignbench.nets import inception
from alignbench.nets.inception import Inception
from alignbench.registry.lookup import Registry, import_target

ASSET = "inception-2015-12-05"


def pictures(count: int, seed: int, *, side: int = 24, cells: int = 5) -> np.ndarray:
    """[N, side, side, 3] uint8: smooth colour patches, so that features differ between images."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, cells, cells, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in small]
    )


def batch_of(pixels: np.ndarray) -> ImageBatch:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return ImageBatch(ids=range(len(pixels)), images=images)


def save_pngs(folder: Path, pixels: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(pixels):
        Image.fromarray(one).save(folder / f"{number:05d}.png")
    return folder


def save_random(path: Path, *, seed: int = 0) -> None:
    """Write a randomly initialised network in the form of the weights file.

    Its batch normalisation is set by a few random images, since features would hardly differ between images
    otherwise. Numbers computed with such a network mean nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = inception.untrained("2048")
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            elif isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        images = nn.functional.interpolate(torch.rand(4, 3, 6, 6) * 255, size=75, mode="bicubic")
        net.train()
        with torch.no_grad():
            net(images.clamp(0, 255).to(torch.uint8))
        torch.save(net.state_dict(), path)


@functools.cache
def random_weights() -> Path:
    """Save one random network for all tests of this process."""
    folder = Path(tempfile.mkdtemp(prefix="alignbench-inception-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    save_random(folder / "weights.pth")
    return folder / "weights.pth"


@functools.cache
def network() -> Inception:
    """Load it once."""
    return inception.load(random_weights(), torch.device("cpu"))


def options_of(changes: dict[str, int | str]) -> dict[str, Any]:
    options = Registry.default().evaluator("distribution-inception").options
    return {key: option.default for key, option in options.items()} | changes


def scorer(*, net: Inception | None = None, **changes: int | str) -> InceptionDistribution:
    """Build the evaluator with some options changed; without a network it can only score."""
    options = Options(**options_of(changes))
    return InceptionDistribution(net, options, weights="0" * 64, device=torch.device("cpu"))  # type: ignore[arg-type]


def evaluator(weights: Path, *, device: str = "cpu", **changes: int | str) -> InceptionDistribution:
    """Build the evaluator of the card from a file, with some options changed."""
    card = Registry.default().evaluator("distribution-inception")
    options = options_of(changes)
    file = AssetFile(ASSET, weights, hashlib.sha256(weights.read_bytes()).hexdigest())
    built: InceptionDistribution = import_target(card.target)(
        card, options=options, assets={ASSET: file}, device=torch.device(device)
    )
    return built
