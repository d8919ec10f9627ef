"""What GenEval's exchangeable parts have to offer: a detector, and a judge of colours.

A card names both: `parts = { detector = "module:function", colours = "module:function" }`. Each is called as
`target(options=…, assets=…, device=…)` with the card's options and assets, and returns an object of the form
below. Class and colour names are the parts' own: prompts are checked against them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from alignbench.evaluators.geneval_rules import Detection

if TYPE_CHECKING:
    from alignbench.hub.assets import AssetFile
    from alignbench.registry.schema import Scalar


class Detector(Protocol):
    """Finds objects in images."""

    identity: str
    """Digest of whatever decides its answers."""
    class_names: Sequence[str]
    """Name of each label, as prompts use it."""
    batch: int
    """Images it is given at once; bounds memory, must not change answers beyond rounding."""

    def detect(self, images: Tensor, ids: Sequence[int]) -> list[list[Detection]]:
        """Find the objects of each image, in any order and at any score.

        Args:
            images: [n, 3, H, W] uint8 RGB on the CPU.
            ids: position of each image in its set; for detectors that look answers up.
        """
        ...


class Colours(Protocol):
    """Says which colour objects have."""

    identity: str
    """Digest of whatever decides its answers."""
    names: Sequence[str]
    """Every colour it can say."""

    def classify(self, image: np.ndarray, objects: Sequence[Detection], class_name: str) -> list[str]:
        """Return the colour of each object.

        Args:
            image: [H, W, 3] uint8 RGB.
            objects: detections in that image, at least one.
            class_name: what they are.
        """
        ...


class BuildDetector(Protocol):
    """Target of a card's part `detector`."""

    def __call__(
        self, *, options: Mapping[str, Scalar], assets: Mapping[str, AssetFile], device: torch.device
    ) -> Detector: ...


class BuildColours(Protocol):
    """Target of a card's part `colours`."""

    def __call__(
        self, *, options: Mapping[str, Scalar], assets: Mapping[str, AssetFile], device: torch.device
    ) -> Colours: ...
