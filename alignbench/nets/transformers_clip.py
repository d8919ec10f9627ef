"""CLIP models in transformers' form, with their tokenizer and picture preparation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from alignbench.nets.preprocess import Preprocess


class Clip:
    """A frozen `transformers.CLIPModel` with its tokenizer and picture preparation, in float32."""

    def __init__(self, model: Path, processor: Path, device: torch.device, *, texts: bool) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        network: Any = CLIPModel.from_pretrained(model, dtype=torch.float32, local_files_only=True)
        self.model: Any = network.to(device).eval().requires_grad_(False)
        self.tokenizer: Any = (
            AutoTokenizer.from_pretrained(processor, local_files_only=True) if texts else None
        )
        pictures: Any = CLIPImageProcessor.from_pretrained(processor, local_files_only=True)
        side = self.model.config.vision_config.image_size
        self.preprocess = Preprocess(side, pictures.image_mean, pictures.image_std)

    def embed_images(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] → [N, D], unit length; differentiable."""
        return self.embed_pixels(self.preprocess(images))

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """[N, 3, side, side] as the network takes them → [N, D], unit length; differentiable."""
        return F.normalize(_pooled(self.model.get_image_features(pixel_values=pixels)), dim=-1)

    @property
    def length(self) -> int:
        """Tokens that it reads, the marks of beginning and end among them."""
        return int(self.model.config.text_config.max_position_embeddings)

    def is_cut(self, text: str) -> bool:
        """Whether the text is too long for the network."""
        return len(self.tokenizer(text)["input_ids"]) > self.length

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """N texts, cut at the model's length (77 tokens) → [N, D], unit length."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        ).to(self.model.device)
        with torch.no_grad():
            features = self.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
        return F.normalize(_pooled(features), dim=-1)


def _pooled(features: Any) -> Tensor:
    """transformers 5 returns an output object where version 4 returned the projected vectors."""
    return features if isinstance(features, Tensor) else features.pooler_output
