"""Train the tokenizer of the procedural scenes: without quantising, then with codes laid on the latents.

A codebook drawn at random was used by a third only and capped every score: the detector then found half of
what is in a reconstruction. So the first stage trains a plain autoencoder, the codes start at the centres of
its latents, and the second stage trains everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from alignbench import api
from alignbench.backbones.llamagen.vq import VQModel
from alignbench.pretrain.common import TOKENIZER, Made, Trainer, reconstruct
from alignbench.registry.schema import ModelCard
from alignbench.rewards.shapes import ShapesReward

WARMUP = "autoencoder"
LATENT_SCENES = 1024
"""Scenes whose latents the codes are laid on."""
ROUNDS = 5
"""Of moving the codes to the centres of what they stand for."""


def train(trainer: Trainer, card: ModelCard, images: Tensor) -> Made[VQModel]:
    """Train the tokenizer on [N, 3, S, S] images in [-1, 1]; the losses are those of its second stage."""
    model = trainer.new_tokenizer(card)

    def plain(rows: Tensor) -> dict[str, Tensor]:
        latent = F.normalize(model.latent(images[rows]), dim=1)
        return {"loss": F.mse_loss(model.decode_map(latent), images[rows])}

    def quantised(rows: Tensor) -> dict[str, Tensor]:
        rebuilt, codebook, commitment, entropy, usage = model.train_losses(images[rows])
        mse = F.mse_loss(rebuilt, images[rows])
        loss = mse + codebook + commitment + entropy
        return {"loss": loss, "mse": mse, "codebook": codebook, "usage": usage}

    started = trainer.fit(WARMUP, model, plain, size=len(images))
    latents = _latents(model, images[:LATENT_SCENES])
    model.quantize.embedding.weight.data.copy_(codes_on(latents, model.num_codes))
    made = trainer.fit(TOKENIZER, model, quantised, size=len(images))
    model.requires_grad_(False)
    return replace(made, seconds=started.seconds + made.seconds)


@torch.no_grad()
def _latents(model: VQModel, images: Tensor) -> Tensor:
    """[P, D] unit latents of images."""
    latent = model.latent(images).permute(0, 2, 3, 1).flatten(0, 2)
    return F.normalize(latent, dim=-1)


def codes_on(points: Tensor, count: int) -> Tensor:
    """Lay codes on unit vectors: each new one on the point farthest from all before, then k-means.

    Most of a scene is background, so codes drawn from the points would nearly all stand for it.

    Args:
        points: [P, D] of unit length, P ≥ count.
        count: codes, K.

    Returns:
        [K, D] of unit length.
    """
    codes, nearness = points[:1], points @ points[0]
    for _ in range(count - 1):
        farthest = points[nearness.argmin()]
        codes = torch.cat([codes, farthest[None]])
        nearness = torch.maximum(nearness, points @ farthest)
    for _ in range(ROUNDS):
        nearest = (points @ codes.T).argmax(dim=1)
        sums = torch.zeros_like(codes).index_add_(0, nearest, points)
        codes = torch.where(sums.any(dim=1, keepdim=True), F.normalize(sums, dim=-1), codes)
    return codes


@torch.no_grad()
def validate(model: VQModel, images: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """Return reconstruction error, codes in use and the share of scenes that still fit their captions."""
    rebuilt, numbers = reconstruct(model, images)
    return {**numbers, "right": share_right(rebuilt, captions)}


def share_right(images: Tensor, captions: Sequence[str]) -> float:
    """Return the share of decoded [N, 3, S, S] images that show what their caption asks for."""
    request = api.ScoreRequest(
        images=(images + 1) / 2, group=torch.arange(len(images)), texts=tuple(captions)
    )
    return ShapesReward("verdict").score(request).values.mean().item()
