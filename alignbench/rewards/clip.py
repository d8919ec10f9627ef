"""Rewards on CLIP models of the transformers library: CLIP score, PickScore, LAION aesthetic predictor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from alignbench import api
from alignbench.errors import UserError
from alignbench.hub.locate import WEIGHTS, hub_folder, plain_file
from alignbench.nets.transformers_clip import Clip
from alignbench.rewards.requests import all_valid

MODEL_FILES = ("config.json", WEIGHTS)
IMAGE_FILES = ("preprocessor_config.json|processor_config.json",)
TEXT_FILES = ("tokenizer.json|vocab.json",)
TOKENIZER_ALONE = (*TEXT_FILES, "tokenizer_config.json")
"""Without the model's config.json beside it: nothing else says what texts are padded with."""
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""PickScore's repository holds no tokenizer that is meant to be used; the authors take this one's."""
AESTHETIC_HEAD = "sac+logos+ava1-l14-linearMSE.pth"
AESTHETIC_URL = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
    "sac%2Blogos%2Bava1-l14-linearMSE.pth"
)


class Embedder(Protocol):
    """A model that puts pictures and texts into one space."""

    model: Any

    def embed_images(self, images: Tensor) -> Tensor: ...
    def embed_texts(self, texts: Sequence[str]) -> Tensor: ...


class TextMatch:
    """Cosine between picture and text, times the model's own scale if asked."""

    def __init__(self, clip: Embedder, *, scaled: bool) -> None:
        self.clip, self.scaled = clip, scaled

    def to(self, device: torch.device) -> None:
        self.clip.model.to(device)

    def score(self, request: api.ScoreRequest) -> api.Scores:
        """The request must have texts."""
        images, texts = self.clip.embed_images(request.images), self.clip.embed_texts(request.texts)
        cosine = (images * texts).sum(dim=-1)
        return all_valid(cosine * self.clip.model.logit_scale.exp() if self.scaled else cosine)


class Aesthetic:
    """A chain of linear layers on the unit-length picture embedding; about 1 to 10.

    Dropout between the layers acts in training only and is left out.
    """

    def __init__(self, clip: Clip, head: nn.Sequential) -> None:
        self.clip, self.head = clip, head

    def to(self, device: torch.device) -> None:
        self.clip.model.to(device)
        self.head.to(device)

    def score(self, request: api.ScoreRequest) -> api.Scores:
        return all_valid(self.head(self.clip.embed_images(request.images))[:, 0])


def build_clip_score(device: torch.device, *, model: str, revision: str, path: str) -> TextMatch:
    folder = hub_folder("clip-score", model, revision, path, [*MODEL_FILES, *IMAGE_FILES, *TEXT_FILES])
    return TextMatch(Clip(folder, folder, device, texts=True), scaled=False)


def build_pickscore(
    device: torch.device, *, model: str, revision: str, path: str, processor_revision: str
) -> TextMatch:
    folder = hub_folder("pickscore", model, revision, path, MODEL_FILES)
    processor = hub_folder("pickscore", PROCESSOR, processor_revision, path, [*IMAGE_FILES, *TOKENIZER_ALONE])
    return TextMatch(Clip(folder, processor, device, texts=True), scaled=True)


def build_aesthetic(device: torch.device, *, model: str, revision: str, path: str, head: str) -> Aesthetic:
    folder = hub_folder("aesthetic", model, revision, path, [*MODEL_FILES, *IMAGE_FILES])
    file = plain_file("aesthetic", head, AESTHETIC_HEAD, AESTHETIC_URL)
    clip = Clip(folder, folder, device, texts=False)
    return Aesthetic(clip, load_head(file, clip.model.config.projection_dim).to(device))


def load_head(file: Path, width: int) -> nn.Sequential:
    """Read the linear layers `layers.<n>.weight` and `.bias`, in the order of their numbers.

    Raises:
        UserError: the file is no such state dict, or its layers do not lead from `width` to 1.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        numbers = sorted({int(re.fullmatch(r"layers\.(\d+)\.(?:weight|bias)", key)[1]) for key in state})  # type: ignore[index]
        layers = nn.Sequential()
        for number in numbers:
            weight, bias = (state[f"layers.{number}.{part}"].float() for part in ("weight", "bias"))
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
            layers.append(layer)
        with torch.no_grad():
            fits = layers(torch.zeros(1, width)).shape == (1, 1)
    except Exception as error:  # torch.load raises whatever the damaged bytes suggest
        raise UserError(f"{file} is no aesthetic head: {type(error).__name__}: {error}") from error
    if not fits:
        raise UserError(f"{file} is no aesthetic head: it does not lead from {width} numbers to 1")
    return layers.eval().requires_grad_(False)
