"""Train and eval mode of the policy, for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from alignbench import api, randomness


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


def dropout_logits(
    backbone: api.Backbone,
    condition: api.Condition,
    context: Tensor,
    *,
    seed: int,
    purpose: str,
    step: int,
    index: Sequence[int],
) -> Tensor:
    """Teacher-forced logits with dropout, one forward an image: [B, T-1] → [B, T, V].

    What is dropped (condition included) is a function of (seed, purpose, step, sample number), so neither
    micro-batches nor ranks change it, and a second call repeats it.

    Args:
        backbone: its policy is in train mode for the length of the call.
        condition: B rows.
        context: [B, T-1] int64.
        seed: of the run.
        purpose: what the dropout is for.
        step: optimiser step.
        index: sample numbers, one for each row.
    """
    rows = []
    for row, number in enumerate(index):
        one = slice(row, row + 1)
        address = (seed, purpose, step, number)
        with mode(backbone.policy, training=True), randomness.torch_seed(context.device, *address):
            rows.append(backbone.logits(condition.select(one), context[one]))
    return torch.cat(rows)
