"""Distances between the features of a frozen network: LPIPS v0.1 (arXiv:1801.03924) and its kin.

The convolutions are torchvision's, with ImageNet weights from a file; the linear heads, the only part that
was trained on human judgements, come inside the `lpips` package. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alignbench.errors import UserError

FeatureMaps = Callable[[Tensor], Sequence[Tensor]]
"""[N, 3, H, W] in [-1, 1] → one [N, C, h, w] map a layer."""
Net = Literal["vgg", "alex"]

NORM_EPSILON = 1e-10

ARCHITECTURES: dict[Net, str] = {"vgg": "vgg16", "alex": "alexnet"}
"""torchvision's names."""
TAPS: dict[Net, tuple[int, ...]] = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}
"""Places in torchvision's `features` whose outputs are compared: of VGG-16 the last ReLU before each pooling,
of AlexNet every ReLU."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""From [-1, 1] to ImageNet's mean 0 and variance 1."""


def unit_features(features: Tensor) -> Tensor:
    """Divide each pixel's channels by (their length + 1e-10): [N, C, h, w] → the same shape.

    All-zero pixels stay zero and pass no gradient, where the root of a sum of squares would give NaN.
    """
    result: Tensor = features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + NORM_EPSILON)
    return result


def layer_distance(images: Tensor, reference: Tensor, weights: Tensor | None, *, repeats: int = 1) -> Tensor:
    """One layer's share of LPIPS: squared difference, weighted sum over channels, mean over pixels.

    Args:
        images: [B·repeats, C, h, w] unit features, image-major.
        reference: [B, C, h, w] unit features.
        weights: [C], or None for ones.
        repeats: images for each reference.

    Returns:
        [B·repeats].
    """
    difference = images.unflatten(0, (-1, repeats)) - reference.unsqueeze(1)
    channels = difference.square().mean(dim=(-2, -1))
    result: Tensor = (channels if weights is None else channels * weights).sum(dim=-1).flatten()
    return result


class FeatureDistance:
    """Sum of `layer_distance` over the layers of a network; smaller is better.

    Args:
        features: the network, frozen and in eval mode.
        weights: [C] for each layer, or None for ones.
        module: what holds the network's weights, so that it can be moved; None: nothing has to be.
    """

    def __init__(
        self,
        features: FeatureMaps,
        weights: Sequence[Tensor] | None = None,
        *,
        module: nn.Module | None = None,
    ) -> None:
        self.features = features
        self.weights = weights
        self.module = module

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        if self.module is not None:
            self.module.to(device)
        if self.weights is not None:
            self.weights = [weight.to(device) for weight in self.weights]

    def prepare(self, reference: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → unit features of each layer, for any number of calls of `distance`."""
        return [unit_features(layer) for layer in self.features(reference)]

    def distance(self, images: Tensor, prepared: Sequence[Tensor], *, repeats: int) -> Tensor:
        """[B·repeats, 3, H, W] images, image-major, against B prepared references → [B·repeats]."""
        layers = [unit_features(layer) for layer in self.features(images)]
        weights = [None] * len(layers) if self.weights is None else self.weights
        shares = [
            layer_distance(layer, reference, weight, repeats=repeats)
            for layer, reference, weight in zip(layers, prepared, weights, strict=True)
        ]
        return torch.stack(shares).sum(dim=0)


class Trunk(nn.Module):
    """The convolutions of VGG-16 or AlexNet with LPIPS's input scaling, frozen and in eval mode."""

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net, state: dict[str, Tensor]) -> None:
        """Args: net; state dict of torchvision's model, of which only `features.*` is looked at."""
        super().__init__()
        import torchvision.models  # heavy

        with torch.device("meta"):  # no memory, no random numbers: the weights come from the file
            layers = getattr(torchvision.models, ARCHITECTURES[net])(weights=None).features
        self.taps = TAPS[net]
        self.layers: nn.Module = layers[: self.taps[-1] + 1]
        wanted = self.layers.state_dict()
        self.layers.load_state_dict({key: state[f"features.{key}"] for key in wanted}, assign=True)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[N, 3, H, W] in [-1, 1] → the tapped maps."""
        hidden = (images - self.shift) / self.scale
        maps = []
        for index, layer in enumerate(self.layers.children()):
            hidden = layer(hidden)
            if index in self.taps:
                maps.append(hidden)
        return maps


def load_trunk(net: Net, path: Path) -> Trunk:
    """Read torchvision's ImageNet weights, or any file with the same convolutions.

    Raises:
        UserError: the file cannot be read, or is not of that network.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read as weights: {error}") from error
    try:
        return Trunk(net, state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} does not hold torchvision's {ARCHITECTURES[net]}: {error}") from error


def heads(net: Net) -> list[Tensor]:
    """Return the linear heads of the `lpips` package, [C] for each layer.

    The package applies dropout before them, in train mode only; here there is none.
    """
    state = torch.load(io.BytesIO(_head_bytes(net)), map_location="cpu", weights_only=True)
    return [state[f"lin{layer}.model.1.weight"].flatten() for layer in range(len(TAPS[net]))]


def heads_digest(net: Net) -> str:
    """Return the SHA-256 of the heads' file."""
    return hashlib.sha256(_head_bytes(net)).hexdigest()


def _head_bytes(net: Net) -> bytes:
    return (importlib.resources.files("lpips") / "weights" / "v0.1" / f"{net}.pth").read_bytes()
