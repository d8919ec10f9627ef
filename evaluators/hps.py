"""HPSv2 and v2.1 (arXiv:2306.09341): cosine between image and prompt under a fine-tuned ViT-H-14.

Deviation: the official program computes in half precision on GPUs, about 1e-3 away; here it is float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from alignbench.evaluators.prompt_match import PromptMatch
from alignbench.hub.verify import AssetFile
from alignbench.nets import clip
from alignbench.nets.preprocess import Preprocess
from alignbench.registry.protocol import EvaluatorCard
from alignbench.registry.schema import Scalar

ARCHITECTURE = "ViT-H-14"
"""With GELU: these are descendants of LAION's network, not of OpenAI's."""


def build(
    card: EvaluatorCard,
    *,
    options: Mapping[str, Scalar],
    assets: Mapping[str, AssetFile],
    device: torch.device,
) -> PromptMatch:
    """Build the evaluator; the card names one asset, the checkpoint.

    Raises:
        UserError: open_clip is not installed, or the file does not fit the architecture.
    """
    (name,) = card.assets
    model = clip.load(assets[name].path, ARCHITECTURE)
    # Longest side to the network's, antialiased, then black around: not what open_clip does for this model.
    prepare = Preprocess(model.side, fit="pad")

    def pictures(images: Tensor) -> Tensor:
        return prepare(images.to(device).float() / 255)

    return PromptMatch(card, model, pictures, options=options, assets=assets, device=device)
