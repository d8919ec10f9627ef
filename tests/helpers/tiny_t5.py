"""A random T5 of a few thousand parameters, in the folder form of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WIDTH = 16
WORDS = ("a", "red", "green", "blue", "circle", "square", "photo", "of", "two", "s", "and")


def write_tiny_t5(folder: Path, *, width: int = WIDTH, shard_size: str = "5GB") -> Path:
    """Write model and tokenizer; a word that is not known is spelled out."""
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS), "▁", *"abcdefghijklmnopqrstuvwxyz.,"]
    vocabulary = [(piece, -place / 10) for place, piece in enumerate(pieces)]
    T5Tokenizer(vocab=vocabulary, extra_ids=0).save_pretrained(folder)
    torch.manual_seed(0)
    more: dict[str, Any] = {"decoder_start_token_id": 0, "tie_word_embeddings": False}
    config = T5Config(
        vocab_size=len(pieces),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.1,
        pad_token_id=0,
        eos_token_id=1,
        **more,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder, max_shard_size=shard_size)
    return folder
