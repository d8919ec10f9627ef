"""Encoder and decoder of LlamaGen's VQ tokenizer, with the official sub-module names.

Shapes: B images, H×W pixels, h×w tokens, c channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """Geometry of the tokenizer and the weights of its training losses."""

    base_channels: int
    multipliers: tuple[int, ...]
    """Width of each level over the base, from full resolution down; every level but the last halves."""
    res_blocks: int = 2
    """Residual blocks a level in the encoder; the decoder has one more."""
    z_channels: int = 256
    codebook_size: int = 16384
    code_dim: int = 8
    l2_norm: bool = True
    commitment: float = 0.25
    entropy_ratio: float = 0.0
    in_channels: int = 3
    norm_groups: int = 32
    """Groups of the group norms; a width it does not divide uses the greatest common divisor."""
    usage_window: int = 65536
    """Length of the buffer of recently used codes."""

    @property
    def downsample(self) -> int:
        """Pixels per token along each side."""
        return int(2 ** (len(self.multipliers) - 1))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, full resolution first."""
        return tuple(self.base_channels * multiplier for multiplier in self.multipliers)


class ResBlock(nn.Module):
    """Two normalised 3×3 convolutions around a skip, which is 1×1 where the width changes."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _group_norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = _group_norm(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)
        self.changes_width = channels_in != channels_out

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        skip: Tensor = self.nin_shortcut(x) if self.changes_width else x
        result: Tensor = skip + hidden
        return result


class SpatialAttention(nn.Module):
    """Single-head attention over all positions of a map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        query, key, value = (
            layer(normed).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v)
        )  # [B, 1, h·w, c]
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = mixed[:, 0].transpose(1, 2).reshape(x.shape)
        out: Tensor = x + self.proj_out(mixed)
        return out


class Downsample(nn.Module):
    """Halve each side; the padding is on the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Double each side by repetition, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """The blocks of one resolution, and the change to the next one where there is one."""

    def __init__(
        self,
        widths: Sequence[int],
        groups: int,
        *,
        attention: bool,
        resample: Literal["downsample", "upsample"] | None,
    ) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.res = nn.ModuleList(ResBlock(before, after, groups) for before, after in pairs)
        attentions = [SpatialAttention(after, groups) for _, after in pairs] if attention else []
        self.attn = nn.ModuleList(attentions)
        self.resample = resample
        if resample == "downsample":
            self.downsample = Downsample(widths[-1])
        elif resample == "upsample":
            self.upsample = Upsample(widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.res):
            x = block(x)
            if len(self.attn) > 0:
                x = self.attn[index](x)
        return x if self.resample is None else self.get_submodule(self.resample)(x)


class _Coder(nn.Module):
    """Input convolution, two lists of layers, norm and output convolution, in the order they were added."""

    def forward(self, x: Tensor) -> Tensor:
        conv_in, first, second, norm_out, conv_out = self.children()
        x = conv_in(x)
        for part in (*first.children(), *second.children()):
            x = part(x)
        out: Tensor = conv_out(F.silu(norm_out(x)))
        return out


class Encoder(_Coder):
    """Pixels [B, 3, H, W] to a map [B, z_channels, h, w]."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        groups, widths = config.norm_groups, (config.base_channels, *config.widths)
        self.conv_in = nn.Conv2d(config.in_channels, config.base_channels, 3, padding=1)
        self.conv_blocks = _levels(
            widths, config.res_blocks, groups, attention=len(widths) - 2, resample="downsample"
        )
        self.mid = _middle(widths[-1], groups)
        self.norm_out = _group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)


class Decoder(_Coder):
    """A map [N, z_channels, h, w] to pixels [N, 3, H, W], not clamped."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        groups, widths = config.norm_groups, (config.widths[-1], *config.widths[::-1])
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0], groups)
        self.conv_blocks = _levels(widths, config.res_blocks + 1, groups, attention=0, resample="upsample")
        self.norm_out = _group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], config.in_channels, 3, padding=1)


def _levels(
    widths: Sequence[int],
    blocks: int,
    groups: int,
    *,
    attention: int,
    resample: Literal["downsample", "upsample"],
) -> nn.ModuleList:
    """A level from each width to the next; the last one keeps its resolution."""
    chains = [[before] + [after] * blocks for before, after in itertools.pairwise(widths)]
    return nn.ModuleList(
        Level(
            chain,
            groups,
            attention=index == attention,
            resample=None if index == len(chains) - 1 else resample,
        )
        for index, chain in enumerate(chains)
    )


def _group_norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps=1e-6)


def _middle(channels: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(
        [
            ResBlock(channels, channels, groups),
            SpatialAttention(channels, groups),
            ResBlock(channels, channels, groups),
        ]
    )
