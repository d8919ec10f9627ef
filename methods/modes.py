"""Train and eval mode of the policy, for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from alignbench import api


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
