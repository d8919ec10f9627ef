"""Train the text encoder and the GPT of the procedural scenes together: cross-entropy of the tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alignbench import randomness
from alignbench.api import Sampling, TextFeatures
from alignbench.backbones.generate import generate
from alignbench.backbones.llamagen.gpt import GPT, token_loss
from alignbench.backbones.llamagen.model import gpt_config
from alignbench.backbones.llamagen.vq import VQModel
from alignbench.backbones.text.words import WordConfig, WordEncoder
from alignbench.data.shapes_scenes import words
from alignbench.pretrain.fitting import Budget, Progress, fit
from alignbench.pretrain.shapes_tokenizer import share_right
from alignbench.registry.schema import ModelCard

POLICY = "policy"
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
    drawn = generate(model.policy, features, torch.from_numpy(uniforms), Sampling())
    images = tokenizer.decode(drawn.tokens, model.policy.config.grid)
    return {"cross_entropy": token_loss(logits, tokens).item(), "right": share_right(images, captions)}
