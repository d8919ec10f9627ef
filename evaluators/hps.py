"""HPSv2 and v2.1 (arXiv:2306.09341): cosine between image and prompt under a fine-tuned ViT-H-14.

Deviation: the official program computes in half precision on GPUs, about 1e-3 away; here it is float32.
"""

from __future__ import annotations

from typing import Any

import torch

from alignbench.evaluators.prompt_match import PromptMatch
from alignbench.nets.clip import ClipModel, Pictures
from alignbench.nets.preprocess import Preprocess
from alignbench.registry.protocol import EvaluatorCard

ARCHITECTURE = "ViT-H-14"
"""With GELU: these are descendants of LAION's network, not of OpenAI's."""


def build(card: EvaluatorCard, *, device: torch.device, **common: Any) -> PromptMatch:
    """Build the evaluator of a card whose one asset is the checkpoint; errors as of `PromptMatch`."""

    def padded(model: ClipModel) -> Pictures:
        # Longest side to the network's, antialiased, then black around: not what open_clip does for this one.
        prepare = Preprocess(model.side, fit="pad")
        return lambda images: prepare(images.to(device).float() / 255)

    return PromptMatch(card, ARCHITECTURE, padded, device=device, **common)
