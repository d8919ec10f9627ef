"""Re-make the weights of the small text-to-image model: a tokenizer, a text encoder, a policy.

Only the pretraining scenes are trained on; the validation numbers are for people to look at; scenes for
post-training and testing are never made. The same seed on the same machine and torch gives the same bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from alignbench.backbones.llamagen.vq import VQModel
from alignbench.backbones.text.words import METADATA, WordEncoder
from alignbench.data.shapes import PROMPT_FILES, Shapes, open_shapes, prompt_file
from alignbench.data.shapes_scenes import SIZE
from alignbench.files import write_atomic
from alignbench.pretrain import shapes_policy, shapes_tokenizer
from alignbench.pretrain.fitting import Budget, Progress, one_thread
from alignbench.pretrain.made import Made, write
from alignbench.registry.lookup import Catalogue
from alignbench.registry.schema import ModelCard
from alignbench.samples.real import DatasetImages

MODEL = "shapes-tiny"

BUDGETS: Mapping[str, Budget] = {
    shapes_tokenizer.WARMUP: Budget(steps=250, batch=32, lr=6e-3),
    shapes_tokenizer.STAGE: Budget(steps=350, batch=32, lr=6e-3),
    shapes_policy.POLICY: Budget(steps=2400, batch=64, lr=4e-3, weight_decay=0.05, warmup=30),
}
"""What the shipped weights were made with."""
ENCODE_BATCH = 500


def pretrain(
    out_dir: Path, *, seed: int = 0, progress: Progress, budgets: Mapping[str, Budget] = BUDGETS
) -> dict[str, Any]:
    """Train everything and write three safetensors files, `manifest.json` and the two prompt files.

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
    card = Catalogue.default().model(MODEL)
    train, validation = _open("pretraining"), _open("validation")
    with one_thread():
        vq = _tokenizer(card, train, validation, budgets, seed, progress)
        assert isinstance(vq.net, VQModel)
        made = {"tokenizer": vq, **_reader(card, vq.net, train, validation, budgets, seed, progress)}
    for split, name in PROMPT_FILES.items():
        write_atomic(out_dir / name, prompt_file(split))
    sets = {"pretraining": train, "validation": validation}
    data = {name: {"images": len(part), "digest": part.digest} for name, part in sets.items()}
    return write(out_dir, made, model=MODEL, seed=seed, data=data)


def _open(split: str) -> Shapes:
    return open_shapes(
        split=split, image_size=SIZE, num_classes=None, options={}, workers=0, cache_dir=Path()
    )


def _pixels(scenes: Shapes) -> Tensor:
    """[N, 3, S, S] in [-1, 1]."""
    return torch.cat(list(DatasetImages(scenes).images())).float() / 127.5 - 1


def _tokenizer(
    card: ModelCard,
    train: Shapes,
    validation: Shapes,
    budgets: Mapping[str, Budget],
    seed: int,
    progress: Progress,
) -> Made:
    started = time.monotonic()
    stages = (budgets[shapes_tokenizer.WARMUP], budgets[shapes_tokenizer.STAGE])
    net, losses = shapes_tokenizer.train(card, _pixels(train), budgets=stages, seed=seed, progress=progress)
    seconds = time.monotonic() - started
    right = shapes_tokenizer.validate(net, _pixels(validation), validation.captions)
    return Made(net, stages[1], seconds, losses, right)


def _reader(
    card: ModelCard,
    vq: VQModel,
    train: Shapes,
    validation: Shapes,
    budgets: Mapping[str, Budget],
    seed: int,
    progress: Progress,
) -> dict[str, Made]:
    started = time.monotonic()
    budget = budgets[shapes_policy.POLICY]
    tokens, held_out = (_tokens(vq, scenes) for scenes in (train, validation))
    net, losses = shapes_policy.train_policy(
        card, tokens, train.captions, budget=budget, seed=seed, progress=progress
    )
    seconds = time.monotonic() - started
    found = shapes_policy.validate_policy(net, vq, held_out, validation.captions, seed=seed)
    return {
        shapes_policy.POLICY: Made(net.policy, budget, seconds, losses, found),
        # Trained together with the policy: its time and losses are there.
        shapes_policy.TEXT: Made(net.text, budget, 0.0, {}, {}, content=_text_file),
    }


@torch.no_grad()
def _tokens(vq: VQModel, scenes: Shapes) -> Tensor:
    return torch.cat([vq.encode(images) for images in _pixels(scenes).split(ENCODE_BATCH)])


def _text_file(net: nn.Module) -> bytes:
    """What `WordEncoder.save` writes."""
    assert isinstance(net, WordEncoder)
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    return to_safetensors(state, metadata={METADATA: json.dumps(asdict(net.config))})
