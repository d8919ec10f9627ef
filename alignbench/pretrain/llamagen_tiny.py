"""Re-make the weights of the embedded default: two digit networks, a tokenizer, a policy.

Only the training split is trained on; the validation numbers are for people to look at; the test split is
never opened. The same seed on the same machine and torch gives the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from alignbench.data.digits import CLASSES, SIZE, Digits, open_digits
from alignbench.pretrain import digit_nets, policy, tokenizer
from alignbench.pretrain.fitting import Budget, Progress, Split, one_thread
from alignbench.pretrain.made import Made, write
from alignbench.registry.lookup import Catalogue
from alignbench.rewards.perceptual import PerceptualDistance
from alignbench.samples.real import DatasetImages

MODEL = "llamagen-tiny"
EVALUATOR_NET = "digits-features-a"
REWARD_NET = "digits-features-b"

BUDGETS: Mapping[str, Budget] = {
    EVALUATOR_NET: Budget(steps=600, batch=64, lr=4e-3, weight_decay=0.05),
    REWARD_NET: Budget(steps=600, batch=64, lr=4e-3, weight_decay=0.05),
    tokenizer.TOKENIZER: Budget(steps=800, batch=64, lr=3e-3, weight_decay=0.3),
    policy.POLICY: Budget(steps=1200, batch=64, lr=3e-3, weight_decay=0.2),
}
"""What the shipped weights were made with."""

NetT = TypeVar("NetT", bound=nn.Module)


def pretrain(
    out_dir: Path, *, seed: int = 0, progress: Progress, budgets: Mapping[str, Budget] = BUDGETS
) -> dict[str, Any]:
    """Train everything and write four safetensors files and `manifest.json`.

    Args:
        out_dir: folder of the files; made if absent, files of the same names are replaced.
        seed: of all initial weights, orders and dropout.
        progress: called as (stage, steps done, steps in all, note) after every step.
        budgets: steps, batch and rates of each stage.

    Returns:
        The manifest: for each file its sha256, bytes, steps, seconds, training losses, validation numbers.

    Raises:
        OSError: the folder cannot be written.
    """
    sets = {split: _open(split) for split in ("train", "validation")}
    train, validation = _split(sets["train"]), _split(sets["validation"])
    with one_thread():
        made = _train_all(train, validation, budgets, seed, progress)
    data = {name: {"images": len(part), "digest": part.digest} for name, part in sets.items()}
    return write(out_dir, made, model=MODEL, seed=seed, data=data)


def _open(split: str) -> Digits:
    return open_digits(
        split=split, image_size=SIZE, num_classes=CLASSES, options={}, workers=0, cache_dir=Path()
    )


def _split(dataset: Digits) -> Split:
    images = DatasetImages(dataset)
    return Split(torch.cat(list(images.images())).float() / 127.5 - 1, images.labels())


def _train_all(
    train: Split, validation: Split, budgets: Mapping[str, Budget], seed: int, progress: Progress
) -> dict[str, Made]:
    """Train the four networks, each on what the ones before it offer."""
    card = Catalogue.default().model(MODEL)
    made: dict[str, Made] = {}

    def run(
        stage: str,
        train_stage: Callable[..., tuple[NetT, dict[str, float]]],
        validate: Callable[[NetT], dict[str, float]],
    ) -> NetT:
        started = time.monotonic()
        net, losses = train_stage(budget=budgets[stage], seed=seed, progress=progress)
        seconds = time.monotonic() - started
        made[stage] = Made(net, budgets[stage], seconds, losses, validate(net))
        return net

    _, critic = (
        run(
            name,
            partial(digit_nets.train_classifier, name, train),
            partial(digit_nets.validate_classifier, data=validation),
        )
        for name in (EVALUATOR_NET, REWARD_NET)
    )
    vq = run(
        tokenizer.TOKENIZER,
        partial(tokenizer.train_tokenizer, card, train, PerceptualDistance(critic.features)),
        partial(tokenizer.validate_tokenizer, data=validation),
    )
    run(
        policy.POLICY,
        partial(policy.train_policy, card, train, vq),
        partial(policy.validate_policy, tokenizer=vq, data=validation),
    )
    return made
