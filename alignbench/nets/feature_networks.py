"""Feature networks by name: images in, one row of numbers for each out. One line here adds another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from alignbench.nets import digits, dinov2, inception, torchvision_inception


class HasWeights(Protocol):
    """A network with weights."""

    def to(self, device: torch.device) -> object: ...


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network, loaded."""

    module: HasWeights
    """What moves to another device."""
    look: Callable[[Tensor], Tensor]
    """[N, 3, H, W] float32 from 0 (black) to 1 (white), on the network's device → [N, D] float."""


@dataclass(frozen=True)
class LoadableNetwork:
    """How a feature network is loaded."""

    load: Callable[[Path | None], FeatureNetwork]
    """Called with the file of its weights; raises UserError: the file does not fit."""
    asset: str = ""
    """Card of the file; empty: it is shipped."""


def _digits(name: str) -> LoadableNetwork:
    def load(path: Path | None) -> FeatureNetwork:
        net = digits.load(name).double()  # a row depends less on the others of its batch
        return FeatureNetwork(net, lambda images: net.penultimate(2 * images.double() - 1))

    return LoadableNetwork(load)


def _inception(path: Path | None) -> FeatureNetwork:
    assert path is not None
    net = inception.load(path, torch.device("cpu"))
    return FeatureNetwork(net, lambda images: net.features(_bytes(images)).pool)


def _torchvision(path: Path | None) -> FeatureNetwork:
    assert path is not None
    net = torchvision_inception.load(path)
    return FeatureNetwork(net, lambda images: torchvision_inception.features(net, images))


def _dinov2(path: Path | None) -> FeatureNetwork:
    assert path is not None
    net = dinov2.load(path, torch.device("cpu"))
    return FeatureNetwork(net, lambda images: net.features(_bytes(images)))


def _bytes(images: Tensor) -> Tensor:
    """As metrics of these networks see them."""
    return (255 * images).round().to(torch.uint8)


NETWORKS: dict[str, LoadableNetwork] = {
    "digits-features-a": _digits("digits-features-a"),
    "digits-features-b": _digits("digits-features-b"),
    "inception-2015-12-05": LoadableNetwork(_inception, "inception-2015-12-05"),
    "inception-v3-torchvision": LoadableNetwork(_torchvision, "inception-v3-torchvision"),
    "facebook/dinov2-base": LoadableNetwork(_dinov2, "dinov2-base"),
    "facebook/dinov2-large": LoadableNetwork(_dinov2, "dinov2-large"),
}
"""{name as metrics and records have it: network}."""
