"""What GenEval's exchangeable parts have to offer: a detector, and a classifier of colours.

A card names both: `parts = { detector = "module:function", colours = "module:function" }`. Each is called as
`target(options=…, assets=…, device=…)` with the card's options and assets, and returns an object of the form
below. Class and colour names are the parts' own: prompts are checked against them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from alignbench.errors import UserError, suggest
from alignbench.evaluators.geneval.rules import Detection
from alignbench.files import digest_of, parse_json
from alignbench.hub.verify import AssetFile

_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, "
    "stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, "
    "backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, "
    "baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, "
    "knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, "
    "chair, couch, potted plant, bed, dining table, toilet, tv, laptop, computer mouse, tv remote, "
    "computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, "
    "scissors, teddy bear, hair drier, toothbrush"
)
CLASS_NAMES = tuple(_NAMES.split(", "))
"""COCO's 80 classes in the order of the labels, as GenEval's prompts call them (its `object_names.txt`)."""


class Detector(Protocol):
    """Finds objects in images."""

    identity: str
    """Digest of whatever decides its answers."""
    class_names: Sequence[str]
    """Name of each label, as prompts use it."""
    batch: int
    """Images it is given at once; bounds memory, must not change answers beyond rounding."""

    def detect(self, images: Tensor, ids: Sequence[int]) -> list[list[Detection]]:
        """Find the objects of each image, [n, 3, H, W] uint8 RGB on the CPU, in any order and at any score.

        The ids are the positions of the images in their set, for detectors that look answers up.
        """
        ...


class Colours(Protocol):
    """Says which colour objects have."""

    identity: str
    """Digest of whatever decides its answers."""
    names: Sequence[str]
    """Every colour it can say."""

    def classify(self, image: np.ndarray, objects: Sequence[Detection], class_name: str) -> list[str]:
        """Return the colour of each object, at least one, in an image [H, W, 3] uint8 RGB."""
        ...


# --- detections in a file ----------------------------------------------------------------------------

VERSION = 1
"""Of the look-up; part of the identity."""
ASSET = "geneval-detections"


@dataclass(frozen=True)
class SavedImage:
    """One line of the file."""

    size: tuple[int, int]
    """Width, height."""
    pixels: str
    """SHA-256 of the RGB bytes; empty: not checked."""
    detections: list[Detection]


class SavedDetector:
    """Looks detections up by image id; a `Detector`."""

    class_names: Sequence[str] = CLASS_NAMES
    batch = 64

    def __init__(self, images: Mapping[int, SavedImage], *, title: str, identity: str) -> None:
        self.identity = digest_of({"detector": "saved", "version": VERSION, "file": identity})
        self._images = images
        self._title = title

    def detect(self, images: Tensor, ids: Sequence[int]) -> list[list[Detection]]:
        """Return what the file says.

        Raises:
            UserError: an image that is not in the file, or is another one.
        """
        return [self._look_up(pixels, number) for pixels, number in zip(images, ids, strict=True)]

    def _look_up(self, pixels: Tensor, number: int) -> list[Detection]:
        if number not in self._images:
            raise UserError(f"{self._title}: no line with id {number}")
        saved = self._images[number]
        size = (pixels.shape[2], pixels.shape[1])
        if saved.size != size:
            raise UserError(
                f"{self._title}: id {number} is {'×'.join(map(str, saved.size))}, "
                f"the image {'×'.join(map(str, size))}"
            )
        if saved.pixels:
            own = hashlib.sha256(pixels.permute(1, 2, 0).contiguous().numpy().tobytes()).hexdigest()
            if own != saved.pixels:
                raise UserError(
                    f"{self._title}: id {number} was detected in another image",
                    fix="number the lines in the order of the images",
                )
        return saved.detections


def build(*, assets: Mapping[str, AssetFile], **unused: object) -> SavedDetector:
    """Read the file; options and device have no part in it.

    Raises:
        UserError: naming the line that cannot be understood.
    """
    file = assets[ASSET]
    return SavedDetector(read_detections(file.path), title=file.path.name, identity=file.sha256)


def read_detections(path: Path) -> dict[int, SavedImage]:
    """Read a file of detections.

    Raises:
        UserError: naming the line that cannot be understood.
    """
    images: dict[int, SavedImage] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from error
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = parse_json(text)
            key = _whole(line["id"])
            if key in images:
                raise ValueError(f"id {key} stands there twice")
            images[key] = _image(line)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path}, line {number}: {what}", fix="see docs/evaluators/geneval.md") from error
    return images


def _image(line: Mapping[str, Any]) -> SavedImage:
    width, height = (_whole(side) for side in line["size"])
    detections = [_detection(item, (height, width)) for item in line["objects"]]
    return SavedImage((width, height), str(line.get("pixels", "")), detections)


def _detection(item: Mapping[str, Any], shape: tuple[int, int]) -> Detection:
    unknown = set(item) - {"class", "score", "box", "mask"}
    if unknown:
        raise ValueError(f"unknown key {min(unknown)!r}")
    name = item["class"]
    if name not in CLASS_NAMES:
        raise ValueError(f"unknown class {name!r}.{suggest(str(name), CLASS_NAMES)}")
    left, top, right, bottom = (float(value) for value in item["box"])
    if not (right - left >= 1 and bottom - top >= 1):
        raise ValueError(f"box {item['box']} is not left, top, right, bottom of at least one pixel")
    score = float(item["score"])
    if not 0 <= score <= 1:
        raise ValueError(f"score {score} is not in [0, 1]")
    mask = decode_mask(item["mask"], shape) if item.get("mask") is not None else None
    return Detection(CLASS_NAMES.index(name), score, (left, top, right, bottom), mask)


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a whole number")
    return value


def decode_mask(mask: Mapping[str, Any], shape: tuple[int, int]) -> np.ndarray:
    """Decode COCO's uncompressed run lengths: [height, width] bool of the given shape.

    `size` is [height, width], `counts` are lengths of runs of zeros and ones in turn, down columns.

    Raises:
        ValueError: another size, compressed counts, or runs that do not fill the image.
    """
    if tuple(mask["size"]) != shape:
        raise ValueError(f"mask size {mask['size']} is not the image's height and width {list(shape)}")
    counts = mask["counts"]
    if isinstance(counts, str):
        raise ValueError("compressed counts are not read; give a list of run lengths")
    runs = np.array(counts, dtype=np.int64)
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != shape[0] * shape[1]:
        raise ValueError(f"the mask's counts do not add up to {shape[0] * shape[1]} pixels")
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return values.reshape(shape[1], shape[0]).T
