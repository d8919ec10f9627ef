"""Train the two digit classifiers whose features the evaluator and the perceptual reward use."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from alignbench import randomness
from alignbench.nets import digits
from alignbench.pretrain.augment import augment
from alignbench.pretrain.fitting import Budget, Progress, Split, fit

LABEL_SMOOTHING = 0.1
"""Keeps logits of real images away from certainty, so that the class score tells good from better."""


def train_classifier(
    name: str, data: Split, *, budget: Budget, seed: int, progress: Progress
) -> tuple[digits.DigitsNet, dict[str, float]]:
    """Return the trained network `name` and its training losses."""
    with randomness.torch_seed(torch.device("cpu"), seed, f"pretrain/{name}/init"):
        net = digits.build(name)

    def losses_of(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = net.logits(augment(data.images[rows]))
        return {"loss": F.cross_entropy(logits, data.labels[rows], label_smoothing=LABEL_SMOOTHING)}

    losses = fit(net, losses_of, size=len(data), budget=budget, seed=seed, stage=name, progress=progress)
    return net.requires_grad_(False), losses


@torch.no_grad()
def validate_classifier(net: digits.DigitsNet, data: Split) -> dict[str, float]:
    """Return the share of images classified correctly."""
    return {"accuracy": (net.logits(data.images).argmax(dim=1) == data.labels).double().mean().item()}
