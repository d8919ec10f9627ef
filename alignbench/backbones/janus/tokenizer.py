"""The VQ tokenizer of Janus-Pro, from the networks of transformers' `JanusVQVAE`.

Only its networks are used. Its own `encode` compares latents with the stored codebook rows, where the
released quantiser compares directions: it gives other codes unless all rows have the same length. Its
`decode` takes square grids of one size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignbench.backbones.llamagen.transformer import at_least_float32
from alignbench.backbones.llamagen.vq import ConvTokenizer


class JanusTokenizer(ConvTokenizer):
    """An `api.Tokenizer` under the keys of `JanusVQVAE`; always computed in float32 or better."""

    def __init__(self, vqmodel: Any) -> None:
        super().__init__()
        config = vqmodel.config
        self.num_codes = int(config.num_embeddings)
        self.code_dim = int(config.embed_dim)
        self.downsample = 2 ** (len(config.channel_multiplier) - 1)
        self.encoder = vqmodel.encoder
        self.decoder = vqmodel.decoder
        self.quantize: nn.Module = vqmodel.quantize
        self.quant_conv = vqmodel.quant_conv
        self.post_quant_conv = vqmodel.post_quant_conv

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw fresh weights from torch's generator; codebook rows get different lengths on purpose."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.GroupNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_()

    def codebook(self) -> Tensor:
        """[K, D] float32 rows of unit length, as the decoder sees them."""
        rows = self.quantize.get_parameter("embedding.weight")
        return F.normalize(at_least_float32(rows), dim=-1)

    def quantise(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the code of the nearest direction for each position of a latent map [B, D, h, w].

        Returns code vectors [B, D, h, w], straight-through to the normalised latent, and tokens [B, h·w]
        int64.
        """
        with torch.autocast(latent.device.type, enabled=False):
            z = F.normalize(at_least_float32(latent).permute(0, 2, 3, 1), dim=-1)
            codes = self.codebook()
            tokens = (z @ codes.T).argmax(dim=-1)
            straight = z + (F.embedding(tokens, codes) - z).detach()
        return straight.permute(0, 3, 1, 2), tokens.flatten(1)

    def tokens_of(self, latent: Tensor) -> Tensor:
        return self.quantise(latent)[1]
