"""What the data sets here have in common beside their images, and those that have nothing else."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from alignbench.api import Prompt
from alignbench.data.decode import Skipped
from alignbench.data.prompts import read_prompts
from alignbench.errors import UserError
from alignbench.registry.class_names import read_names
from alignbench.registry.schema import Scalar


def choose(names: Sequence[str], *, limit: int, seed: int) -> list[int]:
    """Return the positions of a fixed subset of unique names, ascending; a limit of 0 keeps all.

    The `limit` names with the smallest hash are kept, so the choice depends on the names alone, not on their
    order, and a smaller subset lies inside a larger one.
    """
    if limit == 0 or limit >= len(names):
        return list(range(len(names)))

    def rank(position: int) -> bytes:
        text = f"{seed}/{names[position]}"
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()

    return sorted(heapq.nsmallest(limit, range(len(names)), key=rank))


class NumberedImages:
    """All of `ImageDataset` but the images themselves; with captions, of `Captioned`."""

    notes: Sequence[str] = ()
    """What the images say of themselves and is not applied."""

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        digest: str,
        *,
        captions: Sequence[str] | None = None,
        skipped: Sequence[Skipped] = (),
    ) -> None:
        self.labels = np.array(labels, dtype=np.int64)
        self.labels.flags.writeable = False
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.digest = f"sha256:{digest}"
        self.skipped = tuple(skipped)
        if captions is not None:  # that there are any makes a data set `Captioned`
            self.captions = captions

    def __len__(self) -> int:
        return len(self.labels)


class ImagesInMemory(NumberedImages):
    """Images in memory: pixels [N, H, W, 3] uint8, made read-only; the digest covers them and `content`."""

    def __init__(
        self,
        pixels: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        content: bytes,
        captions: Sequence[str] | None = None,
    ) -> None:
        self.pixels = pixels
        self.pixels.flags.writeable = False
        digest = hashlib.sha256(pixels.tobytes())
        digest.update(content)
        super().__init__(labels, class_names, digest.hexdigest(), captions=captions)

    def load(self, index: int) -> tuple[np.ndarray, int]:
        return self.pixels[index], int(self.labels[index])


# --- without images -------------------------------------------------------------------------------


class Conditions(NumberedImages):
    """All of `ImageDataset` but images; for methods whose card does not need any."""

    def load(self, index: int) -> NoReturn:
        raise UserError("this data set has no images", fix="choose another: alignbench list datasets")


class Prompts(Conditions):
    """Prompts in a fixed order; with captions, see `Captioned`. The digest covers whole entries."""

    def __init__(self, prompts: Sequence[Prompt], skipped: Sequence[Skipped] = ()) -> None:
        self.prompts = tuple(prompts)
        content = json.dumps([[prompt.text, prompt.tag, prompt.metadata] for prompt in self.prompts])
        super().__init__(
            np.zeros(len(self.prompts)),
            (),
            hashlib.sha256(content.encode()).hexdigest(),
            captions=[prompt.text.strip() for prompt in self.prompts],
            skipped=skipped,
        )


def open_prompts(*, options: Mapping[str, Scalar], **_: object) -> Prompts:
    """Open a prompt file in any form of `read_prompts`, repetitions kept; options as on the card.

    Raises:
        UserError: no file was named, or as `read_prompts`.
    """
    if not options["file"]:
        raise UserError("no prompt file was given", fix="--set data.file=PATH")
    prompts = read_prompts(Path(str(options["file"])).expanduser())
    names = [f"{number} {prompt.text}" for number, prompt in enumerate(prompts)]
    kept = choose(names, limit=int(options["limit"]), seed=int(options["subset_seed"]))
    return Prompts([prompts[position] for position in kept])


def open_classes(*, num_classes: int | None, options: Mapping[str, Scalar], **_: object) -> Conditions:
    """Open the model's class ids, each once; the option `names` as `read_names` takes it, empty: none.

    Raises:
        UserError: the model has no classes, or as `read_names`.
    """
    if num_classes is None:
        raise UserError("class ids alone: the model must say how many classes it has")
    names = str(options["names"])
    words = read_names(names, num_classes) if names else [str(number) for number in range(num_classes)]
    digest = hashlib.sha256(json.dumps(list(words)).encode()).hexdigest()
    return Conditions(np.arange(num_classes), words, digest)
