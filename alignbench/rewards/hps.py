"""HPSv2.1 (arXiv:2306.09341) on open_clip's ViT-H-14, without the hpsv2 package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from alignbench.hub.locate import hub_folder
from alignbench.nets import clip
from alignbench.nets.preprocess import Preprocess
from alignbench.rewards.clip import TextMatch

ARCHITECTURE = "ViT-H-14"
"""Unless an open_clip_config.json beside the checkpoint says another one."""


class OpenClip:
    """Embeddings of a frozen, fine-tuned `open_clip.CLIP`, in float32; what `clip.TextMatch` asks of a model.

    The tokenizer, list of texts → [N, context] int64, cuts texts of more than 77 tokens, as the official
    program does.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        side = model.visual.image_size
        self.preprocess = Preprocess(side if isinstance(side, int) else side[0], fit="pad")

    def embed_images(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] → [N, D], unit length; differentiable."""
        return F.normalize(self.model.encode_image(self.preprocess(images)), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """N texts → [N, D], unit length."""
        device = next(self.model.parameters()).device
        return F.normalize(self.model.encode_text(self.tokenizer(list(texts)).to(device)), dim=-1)


def build(device: torch.device, *, model: str, revision: str, path: str, checkpoint: str) -> TextMatch:
    """Build the network and load `checkpoint` from the repository `model`.

    Raises:
        UserError: the file is missing, or is not a checkpoint of the architecture.
    """
    folder = hub_folder("hpsv2.1", model, revision, path, [checkpoint])
    loaded = clip.load(folder, ARCHITECTURE, names=[checkpoint])
    return TextMatch(OpenClip(loaded.network.to(device), loaded.tokenizer), scaled=False)
