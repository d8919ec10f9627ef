"""HPSv2.1 (arXiv:2306.09341) on open_clip's ViT-H-14, without the hpsv2 package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from alignbench import api
from alignbench.errors import UserError
from alignbench.rewards.files import hub_folder
from alignbench.rewards.preprocess import Preprocess
from alignbench.rewards.requests import all_valid

ARCHITECTURE = "ViT-H-14"
CONFIG = "open_clip_config.json"
"""Says another architecture, in open_clip's form, if it lies beside the checkpoint."""


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
    import open_clip

    config = _architecture(folder, open_clip.get_model_config(ARCHITECTURE))
    network = open_clip.CLIP(**config)
    try:
        state = torch.load(folder / checkpoint, map_location="cpu", weights_only=True, mmap=True)[
            "state_dict"
        ]
        network.load_state_dict(state)
    except Exception as error:  # torch.load raises whatever the damaged bytes suggest
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder / checkpoint} is not an HPS checkpoint: {reason}") from error
    tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    return Hps(network.to(device).eval().requires_grad_(False), tokenizer)


def _architecture(folder: Path, official: dict[str, Any]) -> dict[str, Any]:
    file = folder / CONFIG
    config: dict[str, Any] = json.loads(file.read_text())["model_cfg"] if file.is_file() else official
    return config
