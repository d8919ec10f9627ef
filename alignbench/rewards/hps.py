"""HPSv2.1 (arXiv:2306.09341) on open_clip's ViT-H-14, without the hpsv2 package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from alignbench import api
from alignbench.hub.locate import hub_folder
from alignbench.nets import clip as clip_files
from alignbench.nets.preprocess import Preprocess
from alignbench.rewards.requests import all_valid

ARCHITECTURE = "ViT-H-14"
"""Unless an open_clip_config.json beside the checkpoint says another one."""


class Hps:
    """Cosine between picture and text under a fine-tuned open_clip model, in float32.

    Args:
        model: an `open_clip.CLIP`, frozen and in eval mode.
        tokenizer: list of texts → [N, context] int64.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        side = model.visual.image_size
        self.preprocess = Preprocess(side if isinstance(side, int) else side[0], fit="pad")

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        self.model.to(device)

    def score(self, request: api.ScoreRequest) -> api.Scores:
        """The request must have texts; those of more than 77 tokens are cut, as the official program does."""
        images = F.normalize(self.model.encode_image(self.preprocess(request.images)), dim=-1)
        texts = self._embed_texts(request.texts, request.images.device)
        return all_valid((images * texts).sum(dim=-1))

    @torch.no_grad()
    def _embed_texts(self, texts: Sequence[str], device: torch.device) -> Tensor:
        return F.normalize(self.model.encode_text(self.tokenizer(list(texts)).to(device)), dim=-1)


def build(device: torch.device, *, model: str, revision: str, path: str, checkpoint: str) -> Hps:
    """Build the network and load `checkpoint` from the repository `model`.

    Raises:
        UserError: the file is missing, or is not a checkpoint of the architecture.
    """
    folder = hub_folder("hpsv2.1", model, revision, path, [checkpoint])
    clip = clip_files.load(folder, ARCHITECTURE, names=[checkpoint])
    return Hps(clip.network.to(device), clip.tokenizer)
