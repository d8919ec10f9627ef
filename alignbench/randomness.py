"""Random numbers addressed by what they are for, not by who draws them.

A number is a function of (seed, purpose, step, sample index, position). Nothing depends on the number
of ranks, the batch size or what was drawn before, so results are the same at any world size and a
resumed run needs no generator state. The generator is Philox keyed by a BLAKE2b hash of the address.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def key(seed: int, purpose: str, *address: int) -> int:
    """Hash an address to 128 bits."""
    text = "/".join([str(int(seed)), purpose, *(str(int(part)) for part in address)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(seed: int, purpose: str, *address: int) -> np.random.Generator:
    """Return a fresh generator for one address."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *address)))


def uniforms(seed: int, purpose: str, step: int, index: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """Draw uniform numbers for a batch of samples.

    Args:
        purpose: what the numbers are for; different purposes never share numbers.
        step: optimiser step, or 0 where there is none.
        index: sample numbers, one per row.
        shape: shape of one sample's numbers.

    Returns:
        [len(index), *shape] float64 in [0, 1).
    """
    rows = [generator(seed, purpose, step, sample).random(shape) for sample in index]
    return np.stack(rows) if rows else np.empty((0, *shape))


def permutation(seed: int, purpose: str, epoch: int, size: int) -> np.ndarray:
    """Return the order of `size` samples in one epoch, [size] int64."""
    return generator(seed, purpose, epoch).permutation(size)


def inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draw categorical samples by inverting the cumulative distribution.

    Args:
        probabilities: [..., V] float, non-negative; rows need not sum to exactly 1.
        uniform: [..., G] float in [0, 1); G draws from each row.

    Returns:
        [..., G] int64. A code of probability 0 is never returned.
    """
    import torch

    cumulative = probabilities.double().cumsum(dim=-1)
    target = uniform.to(cumulative) * cumulative[..., -1:]
    drawn = torch.searchsorted(cumulative, target, right=True)
    # Rounding can put a target on the last edge: fall back to the last code that has any mass.
    last = (cumulative < cumulative[..., -1:]).sum(dim=-1, keepdim=True)
    return torch.minimum(drawn, last)


@contextlib.contextmanager
def torch_seed(device: torch.device, seed: int, purpose: str, *address: int) -> Iterator[None]:
    """Run a block (dropout, for example) under torch's own generator seeded by an address.

    The generator's former state is put back afterwards.
    """
    import torch

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(key(seed, purpose, *address) % 2**63)
        yield
