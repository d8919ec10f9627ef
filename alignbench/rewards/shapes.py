"""Does a procedural scene show what its caption asks for? The detector of the evaluation as a reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from alignbench import api
from alignbench.data import shapes_detector
from alignbench.data.shapes_detector import Match
from alignbench.data.shapes_scenes import RELATIONS, SHAPES, Request, by_text
from alignbench.errors import UserError
from alignbench.rewards.requests import all_valid

COUNTING_MATCH = 0.9
"""A thing of a counting caption must match better, as with GenEval."""
SLACK = 0.1
"""Of GenEval's relations: share of the summed extents by which centres may differ and mean nothing."""

Form = Literal["share", "verdict"]


class ShapesReward:
    """GenEval's `verdict` on a scene, 1 or 0, or the `share` of a caption's demands that it meets."""

    def __init__(self, form: Form) -> None:
        self.form = form

    def score(self, request: api.ScoreRequest) -> api.Scores:
        """The request must have captions of the scenes' language.

        Raises:
            UserError: another caption.
        """
        # Rounded to the nearest byte, as the protocol's images are.
        pixels = (request.images * 255 + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        shares = [
            share(image, matches, asked_by(text))
            for image, matches, text in zip(pixels, shapes_detector.find(pixels), request.texts, strict=True)
        ]
        values = torch.tensor(shares, dtype=torch.float32)
        if self.form == "verdict":
            values = (values == 1).float()
        return all_valid(values.to(request.images.device))


def build(device: torch.device, *, form: Form) -> ShapesReward:
    """On the CPU, whatever the device."""
    return ShapesReward(form)


def asked_by(text: str) -> Request:
    """Return what a caption asks for.

    Raises:
        UserError: the scenes' language has no such caption.
    """
    if text not in by_text():
        raise UserError(
            f"reward shapes-detector does not understand {text!r}", fix="use it with data set shapes only"
        )
    return by_text()[text]


def share(image: np.ndarray, matches: Sequence[Match], request: Request) -> float:
    """Return the share of demands that are met, 0 to 1; 1 exactly where GenEval's verdict is right.

    Number, colour and place of each clause, and each exclusion, are a demand of the same weight. The
    matches in the image, [H, W, 3] uint8 RGB, come best first.
    """
    smallest = COUNTING_MATCH if request.tag == "counting" else 0.0
    # Compared in float32, as the rules compare detections.
    kept = [item for item in matches if np.float32(item.match) > np.float32(smallest)]
    things = {name: [item for item in kept if item.shape == number] for number, name in enumerate(SHAPES)}
    taken = [things[clause["class"]][: clause["count"]] for clause in request.include]
    met: list[float] = []
    for clause, own in zip(request.include, taken, strict=True):
        met += _clause(image, clause, own, taken)
    met += [float(len(things[clause["class"]]) < clause["count"]) for clause in request.exclude]
    return sum(met) / len(met)


def _clause(
    image: np.ndarray, clause: Mapping[str, Any], own: Sequence[Match], taken: Sequence[Sequence[Match]]
) -> list[float]:
    """Say how far number, colour and place of one clause are as asked."""
    met = [len(own) / clause["count"]]
    if "color" in clause:
        right = [shapes_detector.colour_of(image, item.mask) == clause["color"] for item in own]
        met.append(sum(right) / clause["count"])
    if "position" in clause:
        relation, target = clause["position"]
        met.append(float(bool(own) and bool(taken[target]) and _lies(own[0], taken[target][0], relation)))
    return met


def _lies(thing: Match, other: Match, relation: str) -> bool:
    """GenEval's rule for two boxes of one size."""
    down, right = RELATIONS[relation]
    x, y = thing.box[0] - other.box[0], thing.box[1] - other.box[1]
    extent = thing.box[2] - thing.box[0] + other.box[2] - other.box[0]
    along = x * right + y * down - SLACK * extent
    return along > math.hypot(x, y) / 2
