"""Time and memory of a protocol's evaluators: looking at images, and scoring as many rows as a run has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from alignbench.api import PROMPT, Evaluator, ImageBatch, Prompt, Reference
from alignbench.errors import out_of_memory_as
from alignbench.evaluation.evaluate import build_evaluators
from alignbench.evaluation.features import prompt_key
from alignbench.hub.verify import Requirements
from alignbench.progress import Progress
from alignbench.randomness import generator
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import ProtocolCard
from alignbench.runs.bench import Clock, Figure, Timing
from alignbench.training.parallel import local_device

JITTER = 0.1
"""Spread of what is added to repeated rows of numbers, in standard deviations of their column: without it
they would have as few dimensions as there were images."""
PIECE = 4096
"""Rows that are made at once."""
WARM_UP_IMAGES = 8


class MadeRows:
    """As many rows as wanted, drawn again from those of a few images (an `api.Measured`).

    Args:
        rows: {column: [n, …]} of the images that were measured.
        length: rows to be had.
        jitter: whether numbers are moved a little.
    """

    def __init__(self, rows: dict[str, np.ndarray], length: int, *, jitter: bool) -> None:
        self.digest = f"sha256:{hashlib.sha256(f'made/{length}'.encode()).hexdigest()}"
        self._rows, self._length, self._jitter = rows, length, jitter

    def __len__(self) -> int:
        return self._length

    def column(self, name: str) -> np.ndarray:
        return np.concatenate(list(self.shards(name)))

    def shards(self, name: str) -> Iterator[np.ndarray]:
        source = self._rows[name]
        moved = self._jitter and source.dtype.kind == "f"
        spread = JITTER * source.std(axis=0) if moved else None
        for number, start in enumerate(range(0, self._length, PIECE)):
            size = min(PIECE, self._length - start)
            rows = source[generator(0, "bench/rows", number).integers(0, len(source), size)]
            if spread is not None:
                noise = generator(0, f"bench/{name}", number).standard_normal(rows.shape, dtype=np.float32)
                rows = (rows + spread * noise).astype(source.dtype)
            yield rows


def time_evaluators(
    requirements: Requirements,
    registry: Registry,
    *,
    images: int,
    rows: int,
    reference_rows: int,
    progress: Progress,
) -> list[Timing]:
    """Let every evaluator of a protocol look at random images, then score rows made from what it saw.

    The numbers it computes mean nothing; images are smooth noise at the protocol's size.

    Args:
        images: how many to look at, after a warm-up.
        rows: how many to score; 0: none.
        reference_rows: rows of the reference, where an evaluator needs one.

    Raises:
        UserError: an evaluator refuses its files or what it would have to score.
        RunFailed: out of memory.
    """
    protocol, device = requirements.protocol, local_device()
    evaluators = build_evaluators(registry, protocol, requirements.assets, device)
    batch, warm_up = (_batch(protocol, requirements.prompts, n) for n in (images, WARM_UP_IMAGES))
    timings = []
    for name, evaluator in evaluators.items():
        progress.say(f"{name} looks at {images} images")
        needs_reference = "reference" in registry.evaluator(name).needs
        with out_of_memory_as(f"{name}: out of memory with {images} images", "a smaller --images N"):
            evaluator.measure(warm_up)
            looking = Clock(device)
            with looking.lap():
                seen = dict(evaluator.measure(batch))
        figures = [
            Figure("images", images / looking.laps[0], "1/s"),
            looking.peak(),
            Figure("rows", sum(column.nbytes for column in seen.values()) / images, "bytes an image"),
        ]
        facts = {"images": str(images), "size": f"{protocol.image_size} px"}
        if rows:
            progress.say(f"{name} scores {rows} rows")
            facts["rows"] = f"{rows:,}"
            if needs_reference:
                facts["reference rows"] = f"{reference_rows:,}"
            if batch.prompts:
                seen[PROMPT] = np.array([prompt_key(prompt) for prompt in batch.prompts])
            figures += _scoring(evaluator, seen, rows, reference_rows if needs_reference else 0, device)
        timings.append(Timing(f"evaluator {name}", tuple(figures), facts))
    return timings


def _scoring(
    evaluator: Evaluator, seen: dict[str, np.ndarray], rows: int, reference_rows: int, device: torch.device
) -> list[Figure]:
    samples, reference = MadeRows(seen, rows, jitter=reference_rows > 0), None
    if reference_rows:
        made = MadeRows(seen, reference_rows, jitter=True)
        reference = Reference(digest=made.digest, measured=made)
    scoring = Clock(device)
    with out_of_memory_as(f"out of memory with {rows:,} rows", "a smaller --rows N"), scoring.lap():
        evaluator.score(samples, reference)
    return [
        Figure(f"scoring {rows:,} rows", scoring.laps[0], "s", "making them included"),
        scoring.peak("peak memory of scoring"),
    ]


def _batch(protocol: ProtocolCard, prompts: Sequence[Prompt], images: int) -> ImageBatch:
    """Smooth noise, the prompts in turn or classes in turn."""
    numbers = generator(0, "bench/images")
    coarse = torch.from_numpy(numbers.random((images, 3, 12, 12), dtype=np.float32))
    size = (protocol.image_size, protocol.image_size)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=False)
    pixels = (smooth.clamp(0, 1) * 255).round().to(torch.uint8)
    asked = [prompts[number % len(prompts)] for number in range(images)] if prompts else []
    labels = None if prompts else torch.arange(images)
    return ImageBatch(ids=range(images), images=pixels, labels=labels, prompts=asked)
