"""CLIP score: cosine between image and prompt under an OpenAI CLIP model, by open_clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignbench.evaluators.prompt_match import PromptMatch
from alignbench.nets.clip import pil_pictures
from alignbench.registry.protocol import EvaluatorCard
from alignbench.registry.schema import Scalar


def build(card: EvaluatorCard, *, options: Mapping[str, Scalar], **common: Any) -> PromptMatch:
    """Build the evaluator of a card whose one asset is the network; errors as of `PromptMatch`."""
    architecture = str(options["architecture"])
    return PromptMatch(card, architecture, pil_pictures, options=options, **common)
