"""Shared by methods: what the policy reads, and its logits in eval or train mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from alignbench import api, randomness
from alignbench.methods.policy_gradient import NoiseKernel, corrupt

Address = tuple[int, str, int, Sequence[int]]
"""(seed, purpose, step, B sample numbers): what the random numbers of a batch are a function of."""


@contextlib.contextmanager
def mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Run a block with a network in train or eval mode; each submodule's own mode is put back afterwards."""
    before = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for part, was_training in before:
            part.training = was_training


def eval_logits(backbone: api.Backbone, condition: api.Condition, context: Tensor) -> Tensor:
    """Teacher-forced logits without dropout, `Backbone.logits` in eval mode: [N, T-1] → [N, T, V]."""
    with mode(backbone.policy, training=False):
        return backbone.logits(condition, context)


def train_logits(
    backbone: api.Backbone, condition: api.Condition, context: Tensor, *, dropout: bool, address: Address
) -> Tensor:
    """Teacher-forced logits, [B, T-1] → [B, T, V]; with dropout one forward an image in train mode.

    What is dropped (condition included) is a function of the address, so neither micro-batches nor ranks
    change it, and a second call repeats it.
    """
    if not dropout:
        return eval_logits(backbone, condition, context)
    seed, purpose, step, index = address
    rows = []
    for row, number in enumerate(index):
        one = slice(row, row + 1)
        seeded = randomness.torch_seed(context.device, seed, purpose, step, number)
        with mode(backbone.policy, training=True), seeded:
            rows.append(backbone.logits(condition.select(one), context[one]))
    return torch.cat(rows)


def noisy_context(
    backbone: api.Backbone, targets: Tensor, rate: float, kernel: NoiseKernel, address: Address
) -> Tensor:
    """Return the tokens before each of [B, T] clean ones, corrupted: [B, T-1]; the condition stays."""
    prefix = targets[:, :-1]
    if not rate:
        return prefix
    uniforms = torch.from_numpy(randomness.uniforms(*address, (2, prefix.shape[1])))
    return corrupt(
        prefix,
        rate,
        kernel,
        num_codes=backbone.tokenizer.num_codes,
        flip_uniforms=uniforms[:, 0].to(prefix.device),
        replacement_uniforms=uniforms[:, 1].to(prefix.device),
    )
