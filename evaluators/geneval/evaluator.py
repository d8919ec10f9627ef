"""GenEval (arXiv:2310.11513): the share of images in which a detector finds what the prompt asks for.

Six tasks; a task's score is the share of its images that are right, the overall score the plain mean of the
six. The rules are in `rules`; detector and colour classifier are parts that the card names.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from alignbench.api import PROMPT, ImageBatch, Measured, Metric, Prompt, Reference
from alignbench.errors import UserError
from alignbench.evaluators.geneval.detectors import Colours, Detector
from alignbench.evaluators.geneval.rules import ColourFunction, Demand, Verdict, demand_of, judge, select
from alignbench.files import digest_of
from alignbench.metrics.clusters import interval_of_mean, share_interval
from alignbench.registry.lookup import import_target
from alignbench.registry.protocol import EvaluatorCard

VERSION = 1
"""Of the rules; part of the identity."""
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""Tags of the prompts, in the order of the official file."""
OVERALL = "overall"
IMAGES = "images"
"""The share of all images that are right, which the official summary prints beside the score."""
NAMES = tuple(tag.replace("_", "-") for tag in (OVERALL, *TASKS, IMAGES))
"""What the metric names end with."""


class GenEval:
    """Judges images against their prompts."""

    def __init__(self, detector: Detector, colours: Colours, *, prefix: str) -> None:
        self.identity = digest_of(
            {"version": VERSION, "detector": detector.identity, "colours": colours.identity}
        )
        self._detector = detector
        self._colours = colours
        self._prefix = prefix

    def measure(self, batch: ImageBatch) -> dict[str, np.ndarray]:
        """Apply the rules to every image.

        Returns `correct` [n] bool; `reason` [n] text, one line per clause that failed; `task` [n] int8,
        index into TASKS.

        Raises:
            UserError: images without prompts, or a prompt that is not GenEval's.
        """
        if len(batch.prompts) != len(batch):
            raise UserError("GenEval judges images by their prompts; these have none")
        demands = [self._demand(prompt) for prompt in batch.prompts]
        verdicts: list[Verdict] = []
        for start in range(0, len(batch), self._detector.batch):
            rows = slice(start, start + self._detector.batch)
            verdicts += self._judge(batch.images[rows], list(batch.ids[rows]), demands[rows])
        return {
            "correct": np.array([verdict.correct for verdict in verdicts], dtype=bool),
            "reason": np.array([verdict.reason for verdict in verdicts], dtype=np.str_),
            "task": np.array([TASKS.index(demand.tag) for demand in demands], dtype=np.int8),
        }

    def score(self, samples: Measured, reference: Reference | None) -> list[Metric]:
        """Return the mean of the six task scores, these, and the share of all images.

        A task without images has no score, and then there is no overall score either. Intervals take prompts,
        not images, for independent.
        """
        correct, task, prompt = (samples.column(name) for name in ("correct", "task", PROMPT))
        tasks = [_share(correct[task == number], prompt[task == number]) for number in range(len(TASKS))]
        overall = math.fsum(value for value, _, _ in tasks) / len(tasks)
        interval = interval_of_mean([value for value, _, _ in tasks], [bounds for _, _, bounds in tasks])
        everything = [(overall, len(samples), interval), *tasks, _share(correct, prompt)]
        return [
            Metric(self._prefix + name, value, images, interval)
            for name, (value, images, interval) in zip(NAMES, everything, strict=True)
        ]

    def _demand(self, prompt: Prompt) -> Demand:
        demand = demand_of(
            {"prompt": prompt.text, **prompt.metadata},
            class_names=self._detector.class_names,
            colour_names=self._colours.names,
        )
        if demand.tag not in TASKS:
            raise UserError(f"prompt {prompt.text!r}: {demand.tag!r} is none of GenEval's six tasks")
        return demand

    def _judge(self, images: torch.Tensor, ids: list[int], demands: list[Demand]) -> list[Verdict]:
        verdicts = []
        detected = self._detector.detect(images, ids)
        for pixels, detections, demand in zip(images, detected, demands, strict=True):
            kept = select(detections, class_names=self._detector.class_names, threshold=demand.threshold)
            image = pixels.permute(1, 2, 0).contiguous().numpy()
            verdicts.append(judge(kept, demand, self._colours_in(image)))
        return verdicts

    def _colours_in(self, image: np.ndarray) -> ColourFunction:
        return lambda name, objects: self._colours.classify(image, objects, name)


def build(card: EvaluatorCard, **common: Any) -> GenEval:
    """Build the evaluator with the parts its card names.

    Raises:
        UserError: a part that cannot be imported or refuses its files.
    """
    detector, colours = (import_target(card.parts[name])(**common) for name in ("detector", "colours"))
    return GenEval(detector, colours, prefix=prefix_of(card))


def _share(correct: np.ndarray, prompt: np.ndarray) -> tuple[float, int, tuple[float, float] | None]:
    """Return share, images and interval; NaN of no images."""
    share = float(correct.mean()) if len(correct) else math.nan
    return share, len(correct), share_interval(correct, prompt)


def prefix_of(card: EvaluatorCard) -> str:
    """Return what the card's metric names begin with.

    Raises:
        UserError: the card does not name exactly the scores of this evaluator.
    """
    prefix = next((name.removesuffix(OVERALL) for name in card.metrics if name.endswith(OVERALL)), "")
    wanted = [prefix + name for name in NAMES]
    if set(card.metrics) != set(wanted):
        raise UserError(f"{card.title}: a GenEval card has the metrics {', '.join(wanted)}")
    return prefix
