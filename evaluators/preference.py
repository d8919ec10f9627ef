"""ImageReward (arXiv:2304.05977) and PickScore (arXiv:2305.01569): networks that learned what people like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from alignbench.evaluators.prompt_match import PromptScore
from alignbench.hub.verify import AssetFile
from alignbench.nets import image_reward
from alignbench.nets.clip import pictures_through_pil
from alignbench.nets.precision import full_precision
from alignbench.nets.transformers_clip import Clip
from alignbench.registry.protocol import EvaluatorCard
from alignbench.registry.schema import Scalar


class Scorer(Protocol):
    """A frozen network that scores pictures against texts."""

    def __call__(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        """[n, 3, side, side] as the network takes them and n texts → [n]."""

    def is_cut(self, text: str) -> bool:
        """Whether it reads only the beginning of the text."""


class Preference(PromptScore):
    """Mean score; pictures are prepared through PIL with OpenAI's mean and standard deviation, as released.

    The card's options are batch alone.
    """

    def __init__(
        self,
        card: EvaluatorCard,
        network: Scorer,
        side: int,
        *,
        options: Mapping[str, Scalar],
        assets: Mapping[str, AssetFile],
        device: torch.device,
    ) -> None:
        super().__init__(card, options=options, assets=assets)
        self.network, self.device, self.batch = network, device, int(options["batch"])
        self.pictures = pictures_through_pil(side)

    def values(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Return raw scores."""
        scores = []
        for start in range(0, len(images), self.batch):
            rows = slice(start, start + self.batch)
            with full_precision():
                scores.append(self.network(self.pictures(images[rows]).to(self.device), texts[rows]))
        return torch.cat(scores)

    def is_cut(self, text: str) -> bool:
        return self.network.is_cut(text)


class PickScore:
    """Cosine under a fine-tuned CLIP times its logit scale, about 100; a `Scorer`."""

    def __init__(self, clip: Clip) -> None:
        self.clip, self.is_cut = clip, clip.is_cut

    def __call__(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        cosine = (self.clip.embed_pixels(pixels) * self.clip.embed_texts(texts)).sum(dim=-1)
        scaled: Tensor = self.clip.model.logit_scale.exp() * cosine
        return scaled


def build_image_reward(
    card: EvaluatorCard, *, assets: Mapping[str, AssetFile], device: torch.device, **common: Any
) -> Preference:
    """Build the evaluator of a card whose assets are the checkpoint and the tokenizer.

    Raises:
        UserError: a package is missing, or a file is not what it should be.
    """
    network = image_reward.load(*(assets[name].path for name in card.assets)).to(device)
    return Preference(card, network, network.side, assets=assets, device=device, **common)


def build_pickscore(
    card: EvaluatorCard, *, assets: Mapping[str, AssetFile], device: torch.device, **common: Any
) -> Preference:
    """Build the evaluator of a card whose assets are the model and the processor, both folders."""
    model, processor = (assets[name].path for name in card.assets)
    clip = Clip(model, processor, device, texts=True)
    side = clip.model.config.vision_config.image_size
    return Preference(card, PickScore(clip), side, assets=assets, device=device, **common)
