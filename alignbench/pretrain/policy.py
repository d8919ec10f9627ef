"""Train the tiny GPT on the tokenizer's codes: cross-entropy with the recipe's dropout and class dropout."""

from __future__ import annotations

import torch

from alignbench import randomness
from alignbench.api import ClassLabels
from alignbench.backbones.llamagen.gpt import GPT, token_loss
from alignbench.backbones.llamagen.model import gpt_config
from alignbench.backbones.llamagen.vq import VQModel
from alignbench.pretrain.augment import augment
from alignbench.pretrain.fitting import Budget, Progress, Split, fit
from alignbench.registry.schema import ModelCard

POLICY = "policy"


def train_policy(
    card: ModelCard, data: Split, tokenizer: VQModel, *, budget: Budget, seed: int, progress: Progress
) -> tuple[GPT, dict[str, float]]:
    """Return the trained policy and its training losses; an image is tokenised anew each time."""
    with randomness.torch_seed(torch.device("cpu"), seed, f"pretrain/{POLICY}/init"):
        model = GPT(gpt_config(card))

    def losses_of(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            tokens = tokenizer.encode(augment(data.images[rows]))
        logits = model(ClassLabels(data.labels[rows]), tokens[:, :-1])
        return {"loss": token_loss(logits, tokens)}

    losses = fit(model, losses_of, size=len(data), budget=budget, seed=seed, stage=POLICY, progress=progress)
    return model.requires_grad_(False), losses


@torch.no_grad()
def validate_policy(model: GPT, tokenizer: VQModel, data: Split) -> dict[str, float]:
    """Return the mean cross-entropy of a token in nats."""
    tokens = tokenizer.encode(data.images)
    logits = model(ClassLabels(data.labels), tokens[:, :-1])
    return {"cross_entropy": token_loss(logits, tokens).item()}
