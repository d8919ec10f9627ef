"""Straight-through code embeddings: hard tokens forward, the gradient of a softmax backward. Pure maths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def straight_through(
    logits: Tensor, codebook: Tensor, temperature: float, *, gumbel_noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Embed the hardest token of each position so that gradients reach its logits.

    Forward: codebook[argmax(logits)]. Backward: as if the embedding were softmax(logits / τ) @ codebook,
    i.e. (1/τ)·y∘(g − ⟨y, g⟩) with g = codebook @ gradient. No one-hot tensor is made; the backward pass
    recomputes the softmax instead of keeping it.

    Deviation: the released STE program draws a random token (`gumbel_noise` given); the paper (VA-π App.
    C.1) takes the most likely one (`gumbel_noise` None).

    Args:
        logits: [B, T, V] float.
        codebook: [V, D] rows as the decoder sees them, of the dtype of `logits`; treated as constant.
        temperature: τ, above 0.
        gumbel_noise: [B, T, V] standard Gumbel numbers added to the logits before both argmax and softmax.

    Returns:
        (embeddings [B, T, D], tokens [B, T] int64).
    """
    scores = logits if gumbel_noise is None else logits + gumbel_noise
    tokens = scores.detach().argmax(dim=-1)
    embeddings: Tensor = _StraightThrough.apply(scores, tokens, codebook, temperature)
    return embeddings, tokens


class _StraightThrough(torch.autograd.Function):
    """Row lookup whose gradient is that of softmax(scores / τ) @ codebook."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, tokens: Tensor, codebook: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(scores, codebook)
        ctx.temperature = temperature
        return codebook[tokens]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        scores, codebook = ctx.saved_tensors
        soft = (scores / ctx.temperature).softmax(dim=-1)
        pull = gradients[0] @ codebook.T
        pull = pull - (soft * pull).sum(dim=-1, keepdim=True)
        return soft.mul_(pull).div_(ctx.temperature), None, None, None
