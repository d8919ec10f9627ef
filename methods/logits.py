"""Shared by methods: what the policy reads, and its logits in eval or train mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from alignbench import api, randomness
from alignbench.methods.policy_gradient import Draws, NoiseKernel, corrupt


@dataclass(frozen=True)
class Experience:
    """B images as tokens: one context each, shared by everything that is computed of the image."""

    condition: api.Condition
    context: Tensor
    """[B, T-1] int64, tokens before each position, perhaps noisy."""
    targets: Tensor
    """[B, T] int64, clean tokens x*."""
    step: int
    index: tuple[int, ...]
    """Sample numbers of the images."""
    draws: Draws | None = None
    """None without a policy term."""


@runtime_checkable
class KnowsNull(Protocol):
    """A backbone that has a null condition, which says nothing of the image."""

    def null(self, condition: api.Condition) -> api.Condition:
        """Return as many null conditions of the same shapes."""
        ...


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
    backbone: api.Backbone, experience: Experience, *, dropout: bool, address: tuple[int, str]
) -> Tensor:
    """Teacher-forced logits, [B, T, V]; with dropout one forward an image in train mode.

    What is dropped (condition included) is a function of the address (seed, purpose), step and sample number,
    so neither micro-batches nor ranks change it, and a second call repeats it.
    """
    condition, context = experience.condition, experience.context
    if not dropout:
        return eval_logits(backbone, condition, context)
    rows = []
    for row, number in enumerate(experience.index):
        one = slice(row, row + 1)
        seeded = randomness.torch_seed(context.device, *address, experience.step, number)
        with mode(backbone.policy, training=True), seeded:
            rows.append(backbone.logits(condition.select(one), context[one]))
    return torch.cat(rows)


def teacher_forced(
    backbone: api.Backbone,
    batch: api.Batch,
    step: int,
    *,
    seed: int,
    purpose: str,
    rate: float,
    kernel: NoiseKernel,
) -> Experience:
    """Tokenise images and corrupt a share `rate` of the tokens before each position; the condition stays."""
    targets = backbone.tokenizer.encode(batch.images)
    index = tuple(batch.index.tolist())
    context = targets[:, :-1]
    if rate:
        uniforms = torch.from_numpy(randomness.uniforms(seed, purpose, step, index, (2, context.shape[1])))
        flips, replacements = uniforms.to(context.device).unbind(1)
        context = corrupt(
            context,
            rate,
            kernel,
            num_codes=backbone.tokenizer.num_codes,
            flip_uniforms=flips,
            replacement_uniforms=replacements,
        )
    return Experience(batch.condition, context, targets, step, index)
