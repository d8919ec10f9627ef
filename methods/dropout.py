"""Train-mode logits whose dropout belongs to the image, not to the batch it happens to be in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alignbench import api, randomness
from alignbench.methods.modes import mode


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
