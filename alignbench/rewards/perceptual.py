"""Distances between the features of a frozen network: LPIPS, and its small kin for the embedded digits."""

from __future__ import annotations

import hashlib
import shlex
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alignbench.errors import UserError
from alignbench.nets import digits
from alignbench.rewards.requests import FromReference

FeatureMaps = Callable[[Tensor], Sequence[Tensor]]
"""[N, 3, H, W] in [-1, 1] → one [N, C, h, w] map a layer."""

TRUNKS = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
"""torchvision's ImageNet weights; the digits before the suffix begin the file's sha256."""
TRUNK_URL = "https://download.pytorch.org/models/"
NORM_EPSILON = 1e-10


def unit_features(features: Tensor) -> Tensor:
    """Divide each pixel's channels by (their length + 1e-10): [N, C, h, w] → the same shape.

    All-zero pixels stay zero and pass no gradient, where the root of a sum of squares would give NaN.
    """
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + NORM_EPSILON)


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
    return (channels if weights is None else channels * weights).sum(dim=-1).flatten()


class PerceptualDistance(FromReference):
    """Sum of `layer_distance` over the layers of a network (arXiv:1801.03924); smaller is better.

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


def lpips_distance(model: Any) -> PerceptualDistance:
    """Take over trunk, input scaling and linear heads of an `lpips.LPIPS`; it is frozen and set to eval mode.

    Its heads hold a dropout that would make the distance random in train mode; it is left out here.
    """
    model = model.eval().requires_grad_(False)
    heads = [head.model[-1].weight.flatten() for head in model.lins]
    return PerceptualDistance(lambda images: model.net(model.scaling_layer(images)), heads, module=model)


def build_lpips_vgg(device: torch.device) -> PerceptualDistance:
    return lpips_distance(load_lpips("vgg").to(device))


def build_lpips_alex(device: torch.device) -> PerceptualDistance:
    return lpips_distance(load_lpips("alex").to(device))


def build_digits(device: torch.device) -> PerceptualDistance:
    """The same arithmetic on `digits-features-b`, with a weight of 1 for every channel."""
    net = digits.load("digits-features-b", device)
    return PerceptualDistance(net.features, module=net)


def load_lpips(net: Literal["vgg", "alex"]) -> Any:
    """LPIPS v0.1 with spatial mean, from torchvision's trunk and the heads in the `lpips` package.

    Raises:
        UserError: the trunk's file is missing or damaged.
    """
    require_trunk(TRUNKS[net])
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package calls torchvision in a deprecated way
        return lpips.LPIPS(net=net, version="0.1", spatial=False, verbose=False)


def require_trunk(name: str) -> Path:
    """Return where a trunk lies, after comparing its sha256 with the start that its name carries.

    Nothing is downloaded: hundreds of megabytes in the middle of a run should be nobody's surprise, and
    torchvision itself never looks at a file that is already there.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    place = shlex.quote(str(path))
    fix = f"curl --create-dirs -fL -o {place} {TRUNK_URL}{name}"
    if not path.is_file():
        raise UserError(f"LPIPS needs {path}, which is not there", fix=fix)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    wanted = path.stem.rpartition("-")[2]
    if not found.startswith(wanted):
        size = path.stat().st_size
        raise UserError(f"{path} is damaged: {size:,} bytes, sha256 {found[:8]}…, not {wanted}…", fix=fix)
    return path
