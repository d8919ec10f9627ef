"""Small classifiers of handwritten digits: the feature networks of the embedded default.

`digits-features-a` belongs to the evaluator, `digits-features-b` (another architecture, another seed) to the
perceptual reward, so that no method is trained on the network that scores it. Neither has seen a test image.
Training them is the business of `alignbench.pretrain`.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as parse_safetensors
from torch import Tensor, nn
from torch.nn import functional as F

from alignbench.errors import UserError, suggest

SIDE = 8
"""Side of the canonical digit, in pixels."""
NUM_CLASSES = 10
FOLDER = "weights/llamagen-tiny"
"""Where the shipped files lie, relative to the package."""


@dataclass(frozen=True)
class Architecture:
    """Geometry of a digit network: 3×3 convolutions, one dense feature layer, one classifier."""

    channels: tuple[int, ...]
    """Output channels of each convolution."""
    strides: tuple[int, ...]
    width: int
    """Length of the penultimate feature, D."""
    activation: Callable[[Tensor], Tensor]


ARCHITECTURES: dict[str, Architecture] = {
    "digits-features-a": Architecture(channels=(16, 32), strides=(1, 2), width=32, activation=F.relu),
    "digits-features-b": Architecture(channels=(12, 24, 32), strides=(1, 2, 2), width=48, activation=F.silu),
}


def canonical_digits(images: Tensor) -> Tensor:
    """Reduce images to what the networks and the pixel metrics look at.

    Args:
        images: [N, 3, H, W] float, about [-1, 1], not clamped; H, W ≥ 8.

    Returns:
        [N, 1, 8, 8] of the same dtype: the mean of the channels, averaged over areas. An 8×8 grey digit shown
        larger by repeating pixels comes back unchanged.

    Raises:
        ValueError: another shape.
    """
    if images.dim() != 4 or images.shape[1] != 3 or min(images.shape[2:]) < SIDE:
        raise ValueError(f"digit networks take [N, 3, H, W] with H, W ≥ {SIDE}, not {list(images.shape)}")
    return F.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), SIDE)


class DigitsNet(nn.Module):
    """A digit classifier that also shows its layers."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.activation = architecture.activation
        widths = (1, *architecture.channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(widths[layer], widths[layer + 1], kernel_size=3, stride=stride, padding=1)
            for layer, stride in enumerate(architecture.strides)
        )
        side = SIDE
        for stride in architecture.strides:
            side = -(-side // stride)
        self.dense = nn.Linear(widths[-1] * side * side, architecture.width)
        self.classify = nn.Linear(architecture.width, NUM_CLASSES)

    def features(self, images: Tensor) -> list[Tensor]:
        """[N, 3, H, W] in [-1, 1] → the map after each convolution and activation, [N, C_l, H_l, W_l]."""
        maps = [canonical_digits(images)]
        for conv in self.convs:
            maps.append(self.activation(conv(maps[-1])))
        return maps[1:]

    def penultimate(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] → [N, D], the input of the classifier layer."""
        return self.activation(self.dense(self.features(images)[-1].flatten(start_dim=1)))

    def logits(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] → [N, 10]."""
        logits: Tensor = self(images)[1]
        return logits

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3, H, W] in [-1, 1] → (penultimate [N, D], logits [N, 10]) from one pass."""
        penultimate = self.penultimate(images)
        return penultimate, self.classify(penultimate)


def build(name: str) -> DigitsNet:
    """Return an untrained network.

    Raises:
        UserError: unknown name.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"no digit network named {name!r}.{suggest(name, ARCHITECTURES)}")
    return DigitsNet(ARCHITECTURES[name])


def load(name: str, device: torch.device | str = "cpu") -> DigitsNet:
    """Return a shipped network: frozen, float32, in evaluation mode.

    Raises:
        UserError: unknown name; the file is missing or differs from the one in the manifest.
    """
    net = build(name)
    net.load_state_dict(parse_safetensors(_shipped_bytes(f"{name}.safetensors")))
    return net.to(device).eval().requires_grad_(False)


def manifest() -> dict[str, Any]:
    """Return how the shipped weights were made: {"files": {name: {"sha256", "bytes", …}}, …}."""
    text = (importlib.resources.files("alignbench") / FOLDER / "manifest.json").read_text(encoding="utf-8")
    result: dict[str, Any] = json.loads(text)
    return result


def _shipped_bytes(file_name: str) -> bytes:
    fix = "reinstall alignbench"
    try:
        data = (importlib.resources.files("alignbench") / FOLDER / file_name).read_bytes()
        expected = manifest()["files"][file_name]["sha256"]
    except FileNotFoundError as error:
        raise UserError(f"a shipped file is missing: {error.filename}", fix=fix) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != expected:
        raise UserError(f"{FOLDER}/{file_name}: sha256 is {digest}, the manifest says {expected}", fix=fix)
    return data
