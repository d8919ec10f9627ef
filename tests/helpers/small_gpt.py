"""Small random transformers and inputs for them."""

from __future__ import annotations

import torch

from alignbench.api import TextFeatures
from alignbench.backbones.llamagen.gpt import GPT, GPTConfig

CLASS_CONFIG = GPTConfig(
    dim=24, layers=2, heads=2, ffn_hidden=32, vocab_size=11, grid=(2, 3), num_classes=4, condition_dropout=0.5
)
TEXT_CONFIG = GPTConfig(
    dim=24,
    layers=2,
    heads=2,
    ffn_hidden=32,
    vocab_size=11,
    grid=(2, 3),
    condition="text",
    caption_dim=5,
    condition_tokens=4,
)


def make(config: GPTConfig, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    gpt = GPT(config)
    gpt.initialise(head_std=0.5)
    return gpt.eval()


def tokens_of(gpt: GPT, rows: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(gpt.config.vocab_size, (rows, gpt.config.num_tokens), generator=generator)


def caption(rows: int, config: GPTConfig = TEXT_CONFIG) -> TextFeatures:
    """Left-padded features with 1, 2, … real tokens."""
    features = torch.randn(rows, config.condition_tokens, config.caption_dim)
    count = torch.arange(1, rows + 1)[:, None]
    mask = torch.arange(config.condition_tokens) >= config.condition_tokens - count
    return TextFeatures(features * mask[..., None], mask)
