"""LlamaGen's convolutional VQ tokenizer under its official state-dict keys (arXiv:2406.06525).

Shapes: B or N images, H×W pixels, h×w tokens, K codes of width D. Code vectors are scaled to unit length at
every use, on the encoder side and in the codebook; the stored rows need not be.

The training losses of the quantiser are here because the small shipped tokenizer is trained from scratch;
the discriminator and the perceptual loss of the released recipe are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignbench.backbones.llamagen.transformer import at_least_float32
from alignbench.backbones.llamagen.vq_layers import Decoder, Encoder, VQConfig
from alignbench.nets.precision import full_precision

__all__ = ["PixelDecoder", "Quantised", "Quantizer", "VQConfig", "VQModel"]

ENTROPY_TEMPERATURE = 0.01
ENTROPY_EPS = 1e-5


@dataclass(frozen=True)
class Quantised:
    """What the quantiser makes of a latent map; the losses are scalars."""

    embeddings: Tensor
    """[B, D, h, w], code vectors as the decoder sees them; straight-through to the normalised latent."""
    tokens: Tensor
    """[B, h·w] int64."""
    codebook_loss: Tensor
    commitment_loss: Tensor
    """Already times `commitment`."""
    entropy_loss: Tensor
    """Already times `entropy_ratio`."""


class Quantizer(nn.Module):
    """Nearest-code lookup; always computed in at least float32."""

    codebook_used: Tensor

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        # Deviation: the released code keeps this as a tensor that requires grad, which fails in CPU training.
        self.register_buffer("codebook_used", torch.zeros(config.usage_window))
        self.embedding = nn.Embedding(config.codebook_size, config.code_dim)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw a fresh codebook from torch's generator, uniform within ±1/K, then normalised if codes are."""
        bound = 1.0 / self.config.codebook_size
        self.embedding.weight.uniform_(-bound, bound)
        if self.config.l2_norm:
            self.embedding.weight.copy_(F.normalize(self.embedding.weight, dim=-1))
        self.codebook_used.zero_()

    def codebook(self) -> Tensor:
        """Return the rows as the decoder sees them, [K, D] float32."""
        return self._scaled(at_least_float32(self.embedding.weight))

    def lookup(self, tokens: Tensor) -> Tensor:
        """Return the code vectors of integer tokens of any shape, [..., D]."""
        return F.embedding(tokens, self.codebook())

    def forward(self, latent: Tensor) -> Quantised:
        """Quantise a latent map [B, D, h, w]."""
        with torch.autocast(latent.device.type, enabled=False):
            z = self._scaled(at_least_float32(latent).permute(0, 2, 3, 1))  # [B, h, w, D]
            codes = self.codebook()
            distance = _squared_distance(z.reshape(-1, z.shape[-1]), codes)
            tokens = distance.argmin(dim=-1).view(z.shape[:-1])
            chosen = F.embedding(tokens, codes)
            straight = z + (chosen - z).detach()
            return Quantised(
                embeddings=straight.permute(0, 3, 1, 2),
                tokens=tokens.flatten(1),
                codebook_loss=(chosen - z.detach()).square().mean(),
                commitment_loss=self.config.commitment * (chosen.detach() - z).square().mean(),
                entropy_loss=self._entropy_loss(distance),
            )

    @torch.no_grad()
    def record_usage(self, tokens: Tensor) -> Tensor:
        """Push tokens into the window; return the share of codes found in it (an empty slot is code 0)."""
        recent = torch.cat([self.codebook_used, tokens.flatten().to(self.codebook_used)])
        self.codebook_used.copy_(recent[-len(self.codebook_used) :])
        distinct = len(self.codebook_used.unique())
        return torch.tensor(distinct / self.config.codebook_size, device=tokens.device)

    def _scaled(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.config.l2_norm else vectors

    def _entropy_loss(self, distance: Tensor) -> Tensor:
        """Ratio times (mean entropy of a position's soft codes − entropy of their mean)."""
        if self.config.entropy_ratio == 0:
            return distance.new_zeros(())
        logits = -distance / ENTROPY_TEMPERATURE
        soft = logits.softmax(dim=-1)
        sample_entropy = -(soft * (logits + ENTROPY_EPS).log_softmax(dim=-1)).sum(dim=-1).mean()
        mean = soft.mean(dim=0)
        mean_entropy = -(mean * (mean + ENTROPY_EPS).log()).sum()
        return self.config.entropy_ratio * (sample_entropy - mean_entropy)


def _squared_distance(points: Tensor, codes: Tensor) -> Tensor:
    """Return ‖z‖² + ‖e‖² − 2 z·e for [P, D] points and [K, D] codes; ties break as in the released code."""
    squares = points.square().sum(dim=-1, keepdim=True) + codes.square().sum(dim=-1)
    return squares - 2 * points @ codes.T


class PixelDecoder(nn.Module):
    """What turns code vectors into pixels, as one module: [N, D, h, w] → [N, 3, H, W] float32."""

    def __init__(self, post_quant_conv: nn.Conv2d, decoder: nn.Module) -> None:
        super().__init__()
        self.post_quant_conv = post_quant_conv
        self.decoder = decoder

    def shard_units(self) -> list[nn.Module]:
        """The parts alone: this module is made anew for every call."""
        return [self.post_quant_conv, self.decoder]

    def forward(self, embeddings: Tensor) -> Tensor:
        hidden = self.post_quant_conv(embeddings.to(self.post_quant_conv.weight.dtype))
        return at_least_float32(self.decoder(hidden))


class ConvTokenizer(nn.Module):
    """What VQ tokenizers with convolutional networks have in common: an `api.Tokenizer` but for the codes."""

    encoder: nn.Module
    decoder: nn.Module
    quant_conv: nn.Conv2d
    post_quant_conv: nn.Conv2d

    def codebook(self) -> Tensor:
        """[K, D] float32 rows as the decoder sees them."""
        raise NotImplementedError

    def tokens_of(self, latent: Tensor) -> Tensor:
        """[B, D, h, w] → [B, h·w] int64."""
        raise NotImplementedError

    def trainable_decoder(self) -> PixelDecoder:
        """Return what tokenizer-decoder post-training updates; it shares this model's parameters."""
        return PixelDecoder(self.post_quant_conv, self.decoder)

    def latent(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] → [B, D, h, w], not normalised; sides are multiples of `downsample`."""
        out: Tensor = self.quant_conv(self.encoder(images.to(self.quant_conv.weight.dtype)))
        return out

    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] → [B, h·w] int64 codes, raster order."""
        with full_precision():  # TF32 gives some codes another value
            return self.tokens_of(self.latent(images))

    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """[N, h·w] codes on a (h, w) grid → [N, 3, H, W] float32, about [-1, 1], not clamped."""
        return self.decode_embeddings(F.embedding(tokens, self.codebook()), grid)

    def decode_embeddings(self, embeddings: Tensor, grid: tuple[int, int]) -> Tensor:
        """[N, h·w, D] code vectors → [N, 3, H, W]; differentiable with respect to its input."""
        return self.decode_map(embeddings.transpose(1, 2).unflatten(-1, grid))

    def decode_map(self, embeddings: Tensor) -> Tensor:
        """[N, D, h, w] code vectors → [N, 3, H, W]."""
        out: Tensor = self.trainable_decoder()(embeddings)
        return out

    def initialise(self) -> None:
        """Draw fresh convolutions and norms from torch's generator, by its own defaults."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.GroupNorm):
                module.reset_parameters()


class VQModel(ConvTokenizer):
    """The tokenizer; implements `api.Tokenizer`."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.num_codes = config.codebook_size
        self.code_dim = config.code_dim
        self.downsample = config.downsample
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.z_channels, 1)

    def initialise(self) -> None:
        """Draw fresh weights from torch's generator, a new codebook last."""
        super().initialise()
        self.quantize.initialise()

    def codebook(self) -> Tensor:
        return self.quantize.codebook()

    def tokens_of(self, latent: Tensor) -> Tensor:
        quantised: Quantised = self.quantize(latent)
        return quantised.tokens

    def train_losses(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Autoencode a batch for tokenizer training and note which codes it used.

        Returns the reconstruction [B, 3, H, W], codebook loss, commitment and entropy loss (weighted), and
        the share of the codebook used in the window.
        """
        quantised: Quantised = self.quantize(self.latent(images))
        usage = self.quantize.record_usage(quantised.tokens)
        return (
            self.decode_map(quantised.embeddings),
            quantised.codebook_loss,
            quantised.commitment_loss,
            quantised.entropy_loss,
            usage,
        )
