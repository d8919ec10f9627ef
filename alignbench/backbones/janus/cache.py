"""The key/value cache of Janus' language model, growing or at fixed shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from alignbench.backbones.cuda_graphs import CachePosition


class PromptCache:
    """Keys and values of prompts and the image tokens behind them, allocated once at full length."""

    def __init__(self, config: Any, length: int) -> None:
        from transformers import StaticCache

        self.states = StaticCache(config=config, max_cache_len=length)
        self.length = length
        self.fed = 0
        """Image tokens in it."""

    def keep(self, rows: int) -> None:
        """Forget all sequences but the first `rows`."""
        layers: list[Any] = list(self.states.layers)
        for layer in layers:
            layer.keys, layer.values = layer.keys[:rows], layer.values[:rows]


@dataclass
class FixedPrompts:
    """The cache at fixed shapes."""

    cache: PromptCache
    position: CachePosition
    positions: Tensor
    """[N, 1] int64 of the next token."""

    def keep(self, rows: int) -> None:
        """Forget all sequences but the first `rows`."""
        self.cache.keep(rows)
        self.position.keep(rows)
        self.positions = self.positions[:rows]
