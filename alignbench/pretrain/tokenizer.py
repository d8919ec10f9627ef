"""Train the tiny VQ tokenizer: pixel and perceptual reconstruction plus the quantiser's own losses.

Deviation: LlamaGen's recipe also has a discriminator; 8×8 digits do without.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional as F

from alignbench import api, randomness
from alignbench.backbones.llamagen.model import vq_config
from alignbench.backbones.llamagen.vq import VQModel
from alignbench.pretrain.fitting import Budget, Progress, Split, fit
from alignbench.registry.schema import ModelCard

TOKENIZER = "tokenizer"
PERCEPTUAL_WEIGHT = 0.3
USAGE_WINDOW = 4096
"""Recent codes the usage buffer holds; it is part of the file, so it is kept short."""


def train_tokenizer(
    card: ModelCard, data: Split, perceptual: api.Distance, *, budget: Budget, seed: int, progress: Progress
) -> tuple[VQModel, dict[str, float]]:
    """Return the trained tokenizer, frozen, and its training losses.

    Args:
        card: gives the geometry.
        data: training images.
        perceptual: differentiable distance to the original image.
        budget: steps, batch and rates.
        seed: of the initial weights and the order of images.
        progress: told after every step.
    """
    with randomness.torch_seed(torch.device("cpu"), seed, f"pretrain/{TOKENIZER}/init"):
        model = VQModel(replace(vq_config(card), usage_window=USAGE_WINDOW))

    def losses_of(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        images = data.images[rows]
        rebuilt, codebook, commitment, entropy, usage = model.train_losses(images)
        mse = F.mse_loss(rebuilt, images)
        distance = perceptual.distance(rebuilt, perceptual.prepare(images), repeats=1).mean()
        loss = mse + PERCEPTUAL_WEIGHT * distance + codebook + commitment + entropy
        parts = {"mse": mse, "perceptual": distance, "codebook": codebook, "usage": usage}
        return {"loss": loss, **parts}

    losses = fit(
        model, losses_of, size=len(data), budget=budget, seed=seed, stage=TOKENIZER, progress=progress
    )
    return model.requires_grad_(False), losses


@torch.no_grad()
def validate_tokenizer(model: VQModel, data: Split) -> dict[str, float]:
    """Return the reconstruction error and how many codes the images use."""
    tokens = model.encode(data.images)
    side = data.images.shape[-1] // model.downsample
    rebuilt = model.decode(tokens, (side, side))
    return {"mse": F.mse_loss(rebuilt, data.images).item(), "codes_used": float(len(tokens.unique()))}
