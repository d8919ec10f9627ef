"""Re-make the weights of the small text-to-image model: a tokenizer, a text encoder, a policy.

Only the pretraining scenes are trained on; the validation numbers are for people to look at; scenes for
post-training and testing are never made. The same seed on the same machine and torch gives the same bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from alignbench import randomness
from alignbench.api import Sampling, TextFeatures
from alignbench.backbones.generate import generate_steps
from alignbench.backbones.llamagen.gpt import GPT, token_loss
from alignbench.backbones.llamagen.model import gpt_config
from alignbench.backbones.llamagen.vq import VQModel
from alignbench.backbones.text.words import METADATA, WordConfig, WordEncoder
from alignbench.data.shapes import PROMPT_FILES, Shapes, open_shapes, prompt_file
from alignbench.data.shapes_scenes import SIZE, words
from alignbench.files import write_atomic
from alignbench.pretrain import shapes_tokenizer
from alignbench.pretrain.common import (
    POLICY,
    TOKENIZER,
    Budget,
    Made,
    Progress,
    fit,
    one_thread,
    pixels_of,
    write,
)
from alignbench.pretrain.shapes_tokenizer import share_right
from alignbench.registry.lookup import Registry
from alignbench.registry.schema import ModelCard

TEXT = "text"
HEADS = 2


class Reader(nn.Module):
    """The two networks that are trained together."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        shape = card.policy
        assert shape.caption_dim is not None, "the card is of a text-conditional model"
        self.text = WordEncoder(
            WordConfig(words=words(), slots=shape.condition_tokens, width=shape.caption_dim, heads=HEADS)
        )
        self.policy = GPT(gpt_config(card))


def train_policy(
    card: ModelCard,
    tokens: Tensor,
    captions: Sequence[str],
    *,
    budget: Budget,
    seed: int,
    progress: Progress,
) -> tuple[Reader, dict[str, float]]:
    """Return the trained networks, frozen, and their training losses.

    Args:
        card: gives the geometry.
        tokens: [N, T] codes of the training scenes.
        captions: of the scenes.
        budget: steps, batch and rates.
        seed: of initial weights, order and dropout.
        progress: told after every step.
    """
    with randomness.torch_seed(torch.device("cpu"), seed, f"pretrain/{POLICY}/init"):
        model = Reader(card)
    ids, mask = model.text.tokenise(captions)

    def losses_of(rows: Tensor) -> dict[str, Tensor]:
        features = TextFeatures(model.text(ids[rows], mask[rows]), mask[rows])
        return {"loss": token_loss(model.policy(features, tokens[rows, :-1]), tokens[rows])}

    losses = fit(
        model, losses_of, size=len(tokens), budget=budget, seed=seed, stage=POLICY, progress=progress
    )
    return model.requires_grad_(False), losses


@torch.no_grad()
def validate_policy(
    model: Reader, tokenizer: VQModel, tokens: Tensor, captions: Sequence[str], *, seed: int
) -> dict[str, float]:
    """Return the cross-entropy of a token in nats, and the share of one sample a caption that is as asked."""
    features = model.text.encode(captions)
    logits = model.policy(features, tokens[:, :-1])
    uniforms = randomness.uniforms(
        seed, f"pretrain/{POLICY}/samples", 0, range(len(tokens)), tokens.shape[1:]
    )
    drawn = generate_steps(model.policy, features, torch.from_numpy(uniforms), Sampling())
    images = tokenizer.decode(drawn.tokens, model.policy.config.grid)
    return {"cross_entropy": token_loss(logits, tokens).item(), "right": share_right(images, captions)}


MODEL = "shapes-tiny"

BUDGETS: Mapping[str, Budget] = {
    shapes_tokenizer.WARMUP: Budget(steps=250, batch=32, lr=6e-3),
    TOKENIZER: Budget(steps=350, batch=32, lr=6e-3),
    POLICY: Budget(steps=2400, batch=64, lr=4e-3, weight_decay=0.05, warmup=30),
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
    card = Registry.default().model(MODEL)
    train, validation = _open("pretraining"), _open("validation")
    with one_thread():
        vq = _tokenizer(card, train, validation, budgets, seed, progress)
        assert isinstance(vq.net, VQModel)
        made = {TOKENIZER: vq, **_reader(card, vq.net, train, validation, budgets, seed, progress)}
    for split, name in PROMPT_FILES.items():
        write_atomic(out_dir / name, prompt_file(split))
    sets = {"pretraining": train, "validation": validation}
    return write(out_dir, made, model=MODEL, seed=seed, splits=sets)


def _open(split: str) -> Shapes:
    return open_shapes(
        split=split, image_size=SIZE, num_classes=None, options={}, workers=0, cache_dir=Path()
    )


def _tokenizer(
    card: ModelCard,
    train: Shapes,
    validation: Shapes,
    budgets: Mapping[str, Budget],
    seed: int,
    progress: Progress,
) -> Made:
    started = time.monotonic()
    stages = (budgets[shapes_tokenizer.WARMUP], budgets[TOKENIZER])
    net, losses = shapes_tokenizer.train(card, pixels_of(train), budgets=stages, seed=seed, progress=progress)
    seconds = time.monotonic() - started
    right = shapes_tokenizer.validate(net, pixels_of(validation), validation.captions)
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
    budget = budgets[POLICY]
    tokens, held_out = (_tokens(vq, scenes) for scenes in (train, validation))
    net, losses = train_policy(card, tokens, train.captions, budget=budget, seed=seed, progress=progress)
    seconds = time.monotonic() - started
    found = validate_policy(net, vq, held_out, validation.captions, seed=seed)
    return {
        POLICY: Made(net.policy, budget, seconds, losses, found),
        # Trained together with the policy: its time and losses are there.
        TEXT: Made(net.text, budget, 0.0, {}, {}, content=_text_file),
    }


@torch.no_grad()
def _tokens(vq: VQModel, scenes: Shapes) -> Tensor:
    return torch.cat([vq.encode(images) for images in pixels_of(scenes).split(ENCODE_BATCH)])


def _text_file(net: nn.Module) -> bytes:
    """What `WordEncoder.save` writes."""
    assert isinstance(net, WordEncoder)
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    return to_safetensors(state, metadata={METADATA: json.dumps(asdict(net.config))})
