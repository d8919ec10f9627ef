"""Procedural scenes of coloured shapes with captions as a data set: nothing to download, nothing to read."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from alignbench.data.numbered import ImagesInMemory
from alignbench.data.shapes_scenes import SIZE, TASKS, Scene, draw, prompts, scene
from alignbench.errors import UserError

SEED = 0
COUNTS = {"pretraining": 20_004, "train": 6000, "validation": 600, "test": 600}
"""Scenes of each split, the same number of each task. Post-training has scenes of its own: a model knows
those it was pretrained on too well for its samples to differ."""
PROMPTS_EACH = 100
"""Prompts of each task in a prompt file."""
PROMPT_FILES = {"test": "prompts.jsonl", "validation": "validation-prompts.jsonl"}
"""Their names beside the shipped weights."""


class Shapes(ImagesInMemory):
    """One split; see `Captioned`. The class of a scene is its task."""

    captions: Sequence[str]

    def __init__(self, scenes: Sequence[Scene]) -> None:
        captions = [item.request.text for item in scenes]
        super().__init__(
            np.stack([draw(item.things) for item in scenes]),
            np.array([TASKS.index(item.request.tag) for item in scenes]),
            TASKS,
            json.dumps(captions).encode(),
            captions,
        )


def open_shapes(*, split: str, image_size: int, **_: object) -> Shapes:
    """Open a split as `open_dataset` says; raises UserError if the model does not work on 20×20 images."""
    if image_size != SIZE:
        raise UserError(
            f"the scenes are {SIZE}×{SIZE} images, the model works at {image_size}×{image_size}",
            fix="--model shapes-tiny, or other images: alignbench list datasets",
        )
    return Shapes([scene(SEED, f"shapes/{split}", number) for number in range(COUNTS[split])])


def prompt_file(split: str) -> str:
    """Return the prompt file of `validation` or `test` in GenEval's form: `PROMPTS_EACH` prompts a task."""
    chosen = prompts(SEED, f"shapes-prompts/{split}", PROMPTS_EACH)
    return "".join(json.dumps(request.metadata()) + "\n" for request in chosen)
