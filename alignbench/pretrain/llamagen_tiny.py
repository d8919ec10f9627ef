"""Re-make the weights of the embedded default: two digit networks, a tokenizer, a policy.

Only the training split is trained on; the validation numbers are for people to look at; the test split is
never opened. The same seed on the same machine and torch gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from alignbench import api
from alignbench.api import ClassLabels
from alignbench.backbones.llamagen.gpt import GPT, token_loss
from alignbench.backbones.llamagen.model import gpt_config
from alignbench.backbones.llamagen.vq import VQModel
from alignbench.data.digits import CLASSES, SIZE, Digits, open_digits
from alignbench.nets import digits
from alignbench.pretrain.common import (
    POLICY,
    TOKENIZER,
    Budget,
    Made,
    NetT,
    Progress,
    Trainer,
    augment,
    one_thread,
    pixels_of,
    reconstruct,
    write,
)
from alignbench.registry.lookup import Registry
from alignbench.registry.schema import ModelCard
from alignbench.rewards.perceptual import PerceptualDistance
from alignbench.samples.real import DatasetImages


@dataclass(frozen=True)
class Split:
    """Images of one split, all at once."""

    images: Tensor
    """[N, 3, 8, 8] float32 in [-1, 1]."""
    labels: Tensor
    """[N] int64."""

    @classmethod
    def of(cls, dataset: Digits) -> Split:
        return cls(pixels_of(dataset), DatasetImages(dataset).labels())

    def __len__(self) -> int:
        return self.images.shape[0]


def train_policy(trainer: Trainer, card: ModelCard, data: Split, tokenizer: VQModel) -> Made[GPT]:
    """Train the policy; an image is tokenised anew each time."""
    with trainer.initial(POLICY):
        model = GPT(gpt_config(card))

    def losses_of(rows: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            tokens = tokenizer.encode(augment(data.images[rows]))
        logits = model(ClassLabels(data.labels[rows]), tokens[:, :-1])
        return {"loss": token_loss(logits, tokens)}

    return trainer.fit(POLICY, model, losses_of, size=len(data))


@torch.no_grad()
def validate_policy(model: GPT, tokenizer: VQModel, data: Split) -> dict[str, float]:
    """Return the mean cross-entropy of a token in nats."""
    tokens = tokenizer.encode(data.images)
    logits = model(ClassLabels(data.labels), tokens[:, :-1])
    return {"cross_entropy": token_loss(logits, tokens).item()}


PERCEPTUAL_WEIGHT = 0.3


def train_tokenizer(
    trainer: Trainer, card: ModelCard, data: Split, perceptual: api.Distance
) -> Made[VQModel]:
    """Train the tokenizer with a differentiable distance to the original image among its losses."""
    model = trainer.new_tokenizer(card)

    def losses_of(rows: Tensor) -> dict[str, Tensor]:
        images = data.images[rows]
        rebuilt, codebook, commitment, entropy, usage = model.train_losses(images)
        mse = F.mse_loss(rebuilt, images)
        distance = perceptual.distance(rebuilt, perceptual.prepare(images), repeats=1).mean()
        loss = mse + PERCEPTUAL_WEIGHT * distance + codebook + commitment + entropy
        parts = {"mse": mse, "perceptual": distance, "codebook": codebook, "usage": usage}
        return {"loss": loss, **parts}

    return trainer.fit(TOKENIZER, model, losses_of, size=len(data))


@torch.no_grad()
def validate_tokenizer(model: VQModel, data: Split) -> dict[str, float]:
    """Return the reconstruction error and how many codes the images use."""
    return reconstruct(model, data.images)[1]


MODEL = "llamagen-tiny"
EVALUATOR_NET = "digits-features-a"
REWARD_NET = "digits-features-b"

BUDGETS: Mapping[str, Budget] = {
    EVALUATOR_NET: Budget(steps=600, batch=64, lr=4e-3, weight_decay=0.05),
    REWARD_NET: Budget(steps=600, batch=64, lr=4e-3, weight_decay=0.05),
    TOKENIZER: Budget(steps=800, batch=64, lr=3e-3, weight_decay=0.3),
    POLICY: Budget(steps=1200, batch=64, lr=3e-3, weight_decay=0.2),
}
"""What the shipped weights were made with."""


def pretrain(
    out_dir: Path, *, seed: int = 0, progress: Progress, budgets: Mapping[str, Budget] = BUDGETS
) -> dict[str, Any]:
    """Train everything and write four safetensors files and `manifest.json`.

    Files of the same names are replaced. Returns the manifest.

    Raises:
        OSError: the folder cannot be written.
    """
    sets = {split: open_split(split) for split in ("train", "validation")}
    with one_thread():
        made = _train_all(Trainer(budgets, seed, progress), *map(Split.of, sets.values()))
    return write(out_dir, made, model=MODEL, seed=seed, splits=sets)


def open_split(split: str) -> Digits:
    """Open a split of the digits in their own size."""
    return open_digits(
        split=split, image_size=SIZE, num_classes=CLASSES, options={}, workers=0, cache_dir=Path()
    )


def _train_all(trainer: Trainer, train: Split, validation: Split) -> dict[str, Made[Any]]:
    """Train the four networks, each on what the ones before it offer."""
    card = Registry.default().model(MODEL)
    made: dict[str, Made[Any]] = {}

    def keep(stage: str, trained: Made[NetT], validate: Callable[[NetT], dict[str, float]]) -> NetT:
        net = trained.net.requires_grad_(False)
        made[stage] = replace(trained, validation=validate(net))
        return net

    for name in (EVALUATOR_NET, REWARD_NET):
        check = partial(validate_classifier, data=validation)
        critic = keep(name, train_classifier(trainer, name, train), check)
    distance = PerceptualDistance(critic.features)
    trained = train_tokenizer(trainer, card, train, distance)
    vq = keep(TOKENIZER, trained, partial(validate_tokenizer, data=validation))
    policy = train_policy(trainer, card, train, vq)
    keep(POLICY, policy, partial(validate_policy, tokenizer=vq, data=validation))
    return made


LABEL_SMOOTHING = 0.1
"""Keeps logits of real images away from certainty, so that the class score tells good from better."""


def train_classifier(trainer: Trainer, name: str, data: Split) -> Made[digits.DigitsNet]:
    """Train the network `name`."""
    with trainer.initial(name):
        net = digits.build(name)

    def losses_of(rows: Tensor) -> dict[str, Tensor]:
        logits = net.logits(augment(data.images[rows]))
        return {"loss": F.cross_entropy(logits, data.labels[rows], label_smoothing=LABEL_SMOOTHING)}

    return trainer.fit(name, net, losses_of, size=len(data))


@torch.no_grad()
def validate_classifier(net: digits.DigitsNet, data: Split) -> dict[str, float]:
    """Return the share of images classified correctly."""
    return {"accuracy": (net.logits(data.images).argmax(dim=1) == data.labels).double().mean().item()}
