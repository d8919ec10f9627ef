"""Parts for GenEval on procedural scenes: an exact detector of the shapes and a classifier of their colours.

Neither has a network: `alignbench.data.shapes_detector` does the arithmetic. On scenes as they are drawn
every answer is right with a score of 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from alignbench.data import shapes_detector
from alignbench.data.shapes_scenes import COLOURS, SHAPES, SIDE
from alignbench.errors import UserError
from alignbench.evaluators.geneval.rules import Detection
from alignbench.files import digest_of
from alignbench.registry.schema import Scalar


class ShapesDetector:
    """Template matching; a `detectors.Detector`. A score is the overlap with the shape."""

    class_names = tuple(SHAPES)

    def __init__(self, *, batch: int) -> None:
        self.identity = digest_of({"detector": "shapes", "version": shapes_detector.VERSION})
        self.batch = batch

    def detect(self, images: Tensor, ids: Sequence[int]) -> list[list[Detection]]:
        """See `Detector.detect`.

        Raises:
            UserError: images too small to hold a shape.
        """
        height, width = images.shape[2:]
        if min(height, width) < SIDE:
            raise UserError(f"the shapes have {SIDE} px, these images {width}×{height}")
        pixels = images.permute(0, 2, 3, 1).numpy()
        return [
            [Detection(item.shape, item.match, item.box, item.mask) for item in shapes]
            for shapes in shapes_detector.find(pixels)
        ]


class ShapesColours:
    """The colour of most of an object's pixels; a `detectors.Colours`."""

    names = (*COLOURS, shapes_detector.NO_COLOUR)

    def __init__(self) -> None:
        self.identity = digest_of({"colours": "shapes", "version": shapes_detector.VERSION})

    def classify(self, image: np.ndarray, objects: Sequence[Detection], class_name: str) -> list[str]:
        colours = []
        for item in objects:
            assert item.mask is not None, "the detector gives masks"
            colours.append(shapes_detector.colour_of(image, item.mask))
        return colours


def build_detector(*, options: Mapping[str, Scalar], **unused: object) -> ShapesDetector:
    """Build the detector; it computes on the CPU."""
    return ShapesDetector(batch=int(options["batch"]))


def build_colours(**unused: object) -> ShapesColours:
    """Build the classifier of colours; it has no options."""
    return ShapesColours()
