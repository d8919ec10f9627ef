"""Re-make the weights of the small text-to-image model: a tokenizer, a text encoder, a policy.

Only the pretraining scenes are trained on; the validation numbers are for people to look at; scenes for
post-training and testing are never made. The same seed on the same machine and torch gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
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
    Trainer,
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


def train_policy(trainer: Trainer, card: ModelCard, tokens: Tensor, captions: Sequence[str]) -> Made[Reader]:
    """Train both networks on the [N, T] codes and the captions of scenes."""
    with trainer.initial(POLICY):
        model = Reader(card)
    ids, mask = model.text.tokenise(captions)

    def losses_of(rows: Tensor) -> dict[str, Tensor]:
        features = TextFeatures(model.text(ids[rows], mask[rows]), mask[rows])
        return {"loss": token_loss(model.policy(features, tokens[rows, :-1]), tokens[rows])}

    made = trainer.fit(POLICY, model, losses_of, size=len(tokens))
    model.requires_grad_(False)
    return made


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

    Files of the same names are replaced. Returns the manifest.

    Raises:
        OSError: the folder cannot be written.
    """
    card = Registry.default().model(MODEL)
    train, validation = open_split("pretraining"), open_split("validation")
    trainer = Trainer(budgets, seed, progress)
    with one_thread():
        tokenizer = shapes_tokenizer.train(trainer, card, pixels_of(train))
        vq = tokenizer.net
        right = shapes_tokenizer.validate(vq, pixels_of(validation), validation.captions)
        tokens, held_out = (_tokens(vq, scenes) for scenes in (train, validation))
        reader = train_policy(trainer, card, tokens, train.captions)
        found = validate_policy(reader.net, vq, held_out, validation.captions, seed=seed)
    config = json.dumps(asdict(reader.net.text.config))
    made: dict[str, Made[Any]] = {
        TOKENIZER: replace(tokenizer, validation=right),
        POLICY: Made(reader.net.policy, reader.budget, reader.seconds, reader.training, found),
        # Trained together with the policy: its time and losses are there. As `WordEncoder.save` writes it.
        TEXT: Made(reader.net.text, reader.budget, metadata={METADATA: config}),
    }
    for split, name in PROMPT_FILES.items():
        write_atomic(out_dir / name, prompt_file(split))
    sets = {"pretraining": train, "validation": validation}
    return write(out_dir, made, model=MODEL, seed=seed, splits=sets)


def open_split(split: str) -> Shapes:
    """Open a split of the scenes in their own size."""
    return open_shapes(
        split=split, image_size=SIZE, num_classes=None, options={}, workers=0, cache_dir=Path()
    )


@torch.no_grad()
def _tokens(vq: VQModel, scenes: Shapes) -> Tensor:
    return torch.cat([vq.encode(images) for images in pixels_of(scenes).split(ENCODE_BATCH)])
