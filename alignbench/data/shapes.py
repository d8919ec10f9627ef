"""Procedural scenes of coloured shapes with captions as a data set: nothing to download, nothing to read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from alignbench.data.decode import Skipped
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


class Shapes:
    """One split, held in memory; see `ImageDataset` and `Captioned`. The class of a scene is its task."""

    num_classes = len(TASKS)
    class_names: tuple[str, ...] = TASKS
    skipped: tuple[Skipped, ...] = ()

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes = tuple(scenes)
        self.captions = [item.request.text for item in scenes]
        self.pixels = np.stack([draw(item.things) for item in scenes])
        """[N, 20, 20, 3] uint8."""
        self.labels = np.array([TASKS.index(item.request.tag) for item in scenes], dtype=np.int64)
        self.pixels.flags.writeable = False
        self.labels.flags.writeable = False
        content = hashlib.sha256(self.pixels.tobytes())
        content.update(json.dumps(self.captions).encode())
        self.digest = f"sha256:{content.hexdigest()}"

    def __len__(self) -> int:
        return len(self.scenes)

    def load(self, index: int) -> tuple[np.ndarray, int]:
        return self.pixels[index], int(self.labels[index])


def open_shapes(*, split: str, image_size: int, **_: object) -> Shapes:
    """Open a split; arguments as in `open_dataset`.

    Raises:
        UserError: the model does not work on 20×20 images.
    """
    if image_size != SIZE:
        raise UserError(
            f"the scenes are {SIZE}×{SIZE} images, the model works at {image_size}×{image_size}",
            fix="--model shapes-tiny, or other images: alignbench list datasets",
        )
    return Shapes([scene(SEED, f"shapes/{split}", number) for number in range(COUNTS[split])])


def prompt_file(split: str) -> str:
    """Return the lines of a prompt file in GenEval's form: `PROMPTS_EACH` prompts of each task.

    Args:
        split: `validation` or `test`; each has its own prompts.
    """
    chosen = prompts(SEED, f"shapes-prompts/{split}", PROMPTS_EACH)
    return "".join(json.dumps(request.metadata()) + "\n" for request in chosen)
