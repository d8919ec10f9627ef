"""Train the tokenizer of the procedural scenes: without quantising, then with codes laid on the latents.

A codebook drawn at random was used by a third only and capped every score: the detector then found half of
what is in a reconstruction. So the first stage trains a plain autoencoder, the codes start at the centres of
its latents, and the second stage trains everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from alignbench import api
from alignbench.backbones.llamagen.vq import VQModel
from alignbench.pretrain.common import TOKENIZER, Budget, Progress, fit, new_tokenizer, reconstruct
from alignbench.registry.schema import ModelCard
from alignbench.rewards.shapes import ShapesReward

WARMUP = "autoencoder"
LATENT_SCENES = 1024
"""Scenes whose latents the codes are laid on."""
ROUNDS = 5
"""Of moving the codes to the centres of what they stand for."""


def train(
    card: ModelCard, images: Tensor, *, budgets: tuple[Budget, Budget], seed: int, progress: Progress
) -> tuple[VQModel, dict[str, float]]:
    """Return the trained tokenizer, frozen, and the training losses of its second stage.

    Args:
        card: gives the geometry.
        images: [N, 3, S, S] in [-1, 1].
        budgets: of the two stages.
        seed: of the initial weights and the order of images.
        progress: told after every step.
    """
    model = new_tokenizer(card, seed)

    def plain(rows: Tensor) -> dict[str, Tensor]:
        latent = F.normalize(model.latent(images[rows]), dim=1)
        return {"loss": F.mse_loss(model.decode_map(latent), images[rows])}

    def quantised(rows: Tensor) -> dict[str, Tensor]:
        rebuilt, codebook, commitment, entropy, usage = model.train_losses(images[rows])
        mse = F.mse_loss(rebuilt, images[rows])
        loss = mse + codebook + commitment + entropy
        return {"loss": loss, "mse": mse, "codebook": codebook, "usage": usage}

    run = partial(fit, model, size=len(images), seed=seed, progress=progress)
    run(plain, budget=budgets[0], stage=WARMUP)
    model.quantize.embedding.weight.data.copy_(
        codes_on(_latents(model, images[:LATENT_SCENES]), model.num_codes)
    )
    losses = run(quantised, budget=budgets[1], stage=TOKENIZER)
    return model.requires_grad_(False), losses


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
