"""Layers of LlamaGen's transformer: 2-D rotary positions, masks, cache, attention, feed-forward.

Shapes: N sequences, L positions, S condition tokens, T image tokens, d width, H heads, D = d/H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignbench.backbones.cuda_graphs import CachePosition


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Geometry and training-time randomness of a GPT."""

    dim: int
    layers: int
    heads: int
    ffn_hidden: int
    vocab_size: int
    grid: tuple[int, int]
    """(rows, columns) of the token grid; T = rows·columns."""
    condition: Literal["class", "text"] = "class"
    num_classes: int = 1000
    null_class: bool = True
    """Whether the class table has a last row for the null condition."""
    caption_dim: int = 2048
    condition_tokens: int = 1
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    token_dropout: float = 0.1
    residual_dropout: float = 0.1
    ffn_dropout: float = 0.1
    condition_dropout: float = 0.1
    """Share of conditions replaced by the null condition in train mode."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.grid[0] * self.grid[1]

    @property
    def head_dim(self) -> int:
        """D."""
        return self.dim // self.heads


def rope_table(
    grid: tuple[int, int],
    head_dim: int,
    condition_tokens: int,
    *,
    base: float = 10000.0,
    device: torch.device | None = None,
) -> Tensor:
    """Return the 2-D rotation table, [S+T, D/2, 2] float32, last axis (cos, sin); the first S rows are 0."""
    rows, columns = grid
    half = head_dim // 2
    exponent = torch.arange(0, half, 2, device=device).float() / half
    frequency = 1.0 / base**exponent  # [D/4]
    token = torch.arange(rows * columns, device=device)
    row_angle = (token // columns).float()[:, None] * frequency
    column_angle = (token % columns).float()[:, None] * frequency
    angle = torch.cat([row_angle, column_angle], dim=-1)
    table = torch.stack([angle.cos(), angle.sin()], dim=-1)
    return torch.cat([table.new_zeros(condition_tokens, half, 2), table])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of [N, H, L, D] by the table rows [L, D/2, 2], in at least float32."""
    first, second = at_least_float32(x).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table.unbind(-1)
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def text_mask(valid: Tensor, length: int) -> Tensor:
    """Return who may attend whom behind a left-padded caption: [N, length, length] bool, rows are queries.

    Causal, and caption columns that are not valid, [N, S] bool, are hidden; the diagonal is forced open so
    that padded rows stay finite. `length` is at least S.
    """
    causal = torch.ones(length, length, dtype=torch.bool, device=valid.device).tril()
    visible = F.pad(valid, (0, length - valid.shape[1]), value=True)
    diagonal = torch.eye(length, dtype=torch.bool, device=valid.device)
    return (causal & visible[:, None, :]) | diagonal


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half precision to float32; float64 stays, so that exactness can be checked in it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class LayerCache:
    """Keys and values of one layer, allocated once at full length; reads are views of the filled part."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [N, H, L, D] keys and values behind the filled part and return everything filled."""
        if self._keys is None or self._values is None:
            shape = (*keys.shape[:2], self.capacity, keys.shape[3])
            self._keys, self._values = keys.new_empty(shape), values.new_empty(shape)
        end = self.length + keys.shape[2]
        self._keys[:, :, self.length : end] = keys
        self._values[:, :, self.length : end] = values
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def keep(self, rows: int) -> None:
        """Forget all but the first `rows` sequences."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys[:rows], self._values[:rows]

    def fixed(self, position: CachePosition) -> FixedLayer:
        """Return the same memory as a cache that is written at a place on the device."""
        assert self._keys is not None and self._values is not None
        for states in (self._keys, self._values):
            states[:, :, self.length :] = 0  # never attended, but 0 · NaN would be NaN
        return FixedLayer(self._keys, self._values, position)


class FixedLayer:
    """Keys and values of one layer, always all of them; see `cuda_graphs`."""

    def __init__(self, keys: Tensor, values: Tensor, position: CachePosition) -> None:
        self._keys, self._values, self._position = keys, values, position

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [N, H, 1, D] at the present place and return everything, [N, H, L, D]."""
        self._keys.index_copy_(2, self._position.index, keys)
        self._values.index_copy_(2, self._position.index, values)
        return self._keys, self._values

    def keep(self, rows: int) -> None:
        """Forget all but the first `rows` sequences."""
        self._keys, self._values = self._keys[:rows], self._values[:rows]


class RMSNorm(nn.Module):
    """Root-mean-square norm; rounds to the input's dtype *before* the weight, as the released code does."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.wqkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)
        self.resid_dropout = nn.Dropout(config.residual_dropout)

    def forward(
        self, x: Tensor, table: Tensor, mask: Tensor | None, cache: LayerCache | FixedLayer | None
    ) -> Tensor:
        parts = self.wqkv(x).unflatten(-1, (3, self.heads, -1))  # [N, L, 3, H, D]
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = rotate(query, table), rotate(key, table)
        if cache is not None:
            key, value = cache.append(key, value)
        causal = mask is None and query.shape[2] > 1
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        out: Tensor = self.resid_dropout(self.wo(mixed.transpose(1, 2).flatten(2)))
        return out


class FeedForward(nn.Module):
    """Gated feed-forward: w2(silu(w1 x) · w3 x)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_hidden, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_hidden, bias=False)
        self.w2 = nn.Linear(config.ffn_hidden, config.dim, bias=False)
        self.ffn_dropout = nn.Dropout(config.ffn_dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.ffn_dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))
        return out


class Block(nn.Module):
    """One pre-norm transformer layer; the unit of sharding and of recomputation."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self, x: Tensor, table: Tensor, mask: Tensor | None, cache: LayerCache | FixedLayer | None = None
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table, mask, cache)
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out
