"""LlamaGen's autoregressive transformer under its official state-dict keys (arXiv:2406.06525).

Shapes: N sequences, S condition tokens, T image tokens, V codes, C text-feature width, d width. Two facts
decide compatibility. Token positions are encoded in two dimensions by rotating *adjacent* channel pairs, the
first half of the pairs by the row and the second half by the column. And the rotation table is zero, not
the identity, at condition positions, so their queries and keys vanish and only their values count.

Not here: the layers (`transformer`), drawing tokens (`generate`), reading checkpoints (`containers`);
drop-path and grouped queries, which no released model has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignbench.api import ClassLabels, Condition, TextFeatures
from alignbench.backbones.cuda_graphs import CachePosition
from alignbench.backbones.llamagen.transformer import (
    Block,
    FixedLayer,
    GPTConfig,
    LayerCache,
    RMSNorm,
    at_least_float32,
    rope_table,
    text_mask,
)

__all__ = ["GPT", "GPTConfig", "ffn_hidden", "token_loss"]

INIT_STD = 0.02


def ffn_hidden(dim: int, *, multiple_of: int = 256, multiplier: float | None = None) -> int:
    """Return the feed-forward width of the released models: 2/3 of 4·dim, rounded up to a multiple."""
    hidden = int(2 * 4 * dim / 3)
    if multiplier is not None:
        hidden = int(multiplier * hidden)
    return multiple_of * math.ceil(hidden / multiple_of)


def token_loss(logits: Tensor, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of [N, T, V] logits against [N, T] tokens; `valid` [N] = 0 leaves a row out."""
    losses = F.cross_entropy(logits.flatten(0, 1), tokens.flatten().long(), reduction="none")
    if valid is None:
        return losses.mean()
    weight = valid.to(losses).repeat_interleave(tokens.shape[1])
    return (losses * weight).sum() / weight.sum().clamp(min=1.0)


class ClassEmbedding(nn.Module):
    """Class labels to one condition token; the last row stands for no class."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.null_id = config.num_classes
        self.dropout = config.condition_dropout
        self.embedding_table = nn.Embedding(config.num_classes + config.null_class, config.dim)

    def forward(self, condition: ClassLabels) -> Tensor:
        ids = condition.ids
        if self.training and self.dropout > 0:
            drop = torch.rand(ids.shape[0], device=ids.device) < self.dropout
            ids = torch.where(drop, self.null_id, ids)
        embedded: Tensor = self.embedding_table(ids)
        return embedded[:, None]


class CaptionProjection(nn.Module):
    """Two-layer perceptron from text features to condition tokens."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.caption_dim, config.dim, bias=False)
        self.fc2 = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(features), approximate="tanh")
        out: Tensor = self.fc2(hidden)
        return out


class CaptionEmbedding(nn.Module):
    """Text features to S condition tokens; the null caption is a stored buffer that is never trained."""

    uncond_embedding: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dropout = config.condition_dropout
        self.cap_proj = CaptionProjection(config)
        null = torch.empty(config.condition_tokens, config.caption_dim)
        self.register_buffer("uncond_embedding", null)

    def forward(self, condition: TextFeatures) -> Tensor:
        features = condition.features.to(self.uncond_embedding.dtype)
        if self.training and self.dropout > 0:
            # The whole block is replaced before the perceptron, padded rows included.
            drop = torch.rand(features.shape[0], device=features.device) < self.dropout
            features = torch.where(drop[:, None, None], self.uncond_embedding, features)
        # Shards may be gathered in half precision, which buffers never are.
        out: Tensor = self.cap_proj(features.to(self.cap_proj.fc1.weight.dtype))
        return out


@dataclass
class FixedCache:
    """The cache of all layers at fixed shapes."""

    layers: list[FixedLayer]
    position: CachePosition

    def keep(self, rows: int) -> None:
        """Forget all but the first `rows` sequences."""
        for layer in self.layers:
            layer.keep(rows)
        self.position.keep(rows)


class GPT(nn.Module):
    """The policy: `(condition, context) → logits`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        """Recompute each block in the backward pass instead of storing its activations."""
        embedding = ClassEmbedding if config.condition == "class" else CaptionEmbedding
        self.cls_embedding = embedding(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.tok_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        # Neither parameter nor buffer: a cast of the module must not round it, nor a checkpoint hold it.
        self._tables: dict[torch.device, Tensor] = {}
        self.initialise()

    @torch.no_grad()
    def initialise(self, *, head_std: float = 0.0) -> None:
        """Draw fresh weights from torch's generator: N(0, 0.02²), norms 1, null caption N(0, 1/C).

        The output head is zero, as in LlamaGen, unless `head_std` says otherwise.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, INIT_STD)
            elif isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
        if isinstance(self.cls_embedding, CaptionEmbedding):
            std = self.config.caption_dim**-0.5
            self.cls_embedding.uncond_embedding.normal_(0.0, std)
        self.output.weight.normal_(0.0, head_std)

    def forward(self, condition: Condition, context: Tensor) -> Tensor:
        """Teacher-forced logits of every next token, [N, L+1, V] float32 (float64 for a float64 model).

        Entry t scores token t from the condition and the tokens before t, [N, L], L ≤ T; L = T-1 scores all
        T tokens. In train mode dropout is active and conditions are dropped at random, as in LlamaGen's
        training.
        """
        x = torch.cat([self.cls_embedding(condition), self.tok_embeddings(context)], dim=1)
        x = self.tok_dropout(x)
        table = self._rope(x.device)[: x.shape[1]]
        mask = self._mask(condition, x.shape[1])
        for block in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, table, mask, use_reentrant=False)
            else:
                x = block(x, table, mask)
        return self._score(x[:, self.config.condition_tokens - 1 :])

    def shard_units(self) -> list[nn.Module]:
        return list(self.layers)

    def null(self, condition: Condition) -> Condition:
        """Return as many null conditions, for classifier-free guidance.

        Null captions keep the masks of the conditional ones, as LlamaGen samples them.
        """
        if isinstance(condition, TextFeatures):
            features = self.get_buffer("cls_embedding.uncond_embedding")
            return TextFeatures(features.expand(len(condition), -1, -1), condition.mask)
        if isinstance(condition, ClassLabels):
            return ClassLabels(torch.full_like(condition.ids, self.config.num_classes))
        raise TypeError(f"no null condition for {type(condition).__name__}")

    def cache_for(self, condition: Condition, count: int) -> list[LayerCache]:
        """Return an empty cache for drawing `count` tokens; every condition has the same length."""
        return [LayerCache(self.config.condition_tokens + count - 1) for _ in self.layers]

    def prefill(self, condition: Condition, cache: list[LayerCache]) -> Tensor:
        """Run the condition through the network and fill the cache; returns logits of token 0, [N, V]."""
        prompt = self.cls_embedding(condition)
        return self._advance(prompt, self._mask(condition, prompt.shape[1]), cache)

    def step(self, tokens: Tensor, condition: Condition, cache: list[LayerCache]) -> Tensor:
        """Feed one token per sequence, [N]; returns logits of the next one, [N, V].

        Only the mask of the condition is used; the cache holds the rest.
        """
        mask = None
        if isinstance(condition, TextFeatures):
            seen = cache[0].length + 1 - condition.mask.shape[1]
            mask = F.pad(condition.mask, (0, seen), value=True)[:, None, None]
        return self._advance(self.tok_embeddings(tokens[:, None]), mask, cache)

    def fix(self, condition: Condition, cache: list[LayerCache]) -> FixedCache:
        hidden = ~condition.mask if isinstance(condition, TextFeatures) else None
        device = next(self.parameters()).device
        position = CachePosition.behind(cache[0].length, cache[0].capacity, hidden, device)
        return FixedCache([layer.fixed(position) for layer in cache], position)

    def fixed_step(self, tokens: Tensor, state: FixedCache) -> Tensor:
        x = self.tok_embeddings(tokens[:, None])
        table = self._rope(x.device).index_select(0, state.position.index)
        bias = state.position.bias(x.dtype)
        for block, layer in zip(self.layers, state.layers, strict=True):
            x = block(x, table, bias, layer)
        state.position.advance()
        return self._score(x[:, -1])

    def _advance(self, x: Tensor, mask: Tensor | None, cache: list[LayerCache]) -> Tensor:
        start = cache[0].length
        table = self._rope(x.device)[start : start + x.shape[1]]
        for block, layer in zip(self.layers, cache, strict=True):
            x = block(x, table, mask, layer)
        return self._score(x[:, -1])

    def _score(self, x: Tensor) -> Tensor:
        return at_least_float32(self.output(self.norm(x)))

    def _mask(self, condition: Condition, length: int) -> Tensor | None:
        """Return the attention mask, [N, 1, L, L], or None where plain causal attention is meant."""
        return text_mask(condition.mask, length)[:, None] if isinstance(condition, TextFeatures) else None

    def _rope(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            config = self.config
            self._tables[device] = rope_table(
                config.grid, config.head_dim, config.condition_tokens, base=config.rope_base, device=device
            )
        return self._tables[device]
