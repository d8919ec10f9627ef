"""Shared by methods: what the policy reads, and its logits in eval or train mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from alignbench import api, randomness
from alignbench.errors import UserError
from alignbench.methods.policy_gradient import Draws, NoiseKernel, corrupt
from alignbench.methods.sets.pending import Pending


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
    pending: Pending | None = None
    """Set rewards that wait for the whole step; until then the advantages are those of the other terms."""
    logged: Mapping[str, Tensor] = field(default_factory=dict)
    """What the log says once they are known."""


@runtime_checkable
class KnowsNull(Protocol):
    """A backbone that has a null condition, which says nothing of the image."""

    def null(self, condition: api.Condition) -> api.Condition:
        """Return as many null conditions of the same shapes."""
        ...


def knowing_null(backbone: api.Backbone, fix: str) -> KnowsNull:
    """Return the backbone; raises UserError if it has no null condition."""
    if not isinstance(backbone, KnowsNull):
        raise UserError("this model's backbone has no null condition (no method `null`)", fix=fix)
    return backbone


def null_rows(batch: api.Batch, step: int, *, seed: int, purpose: str, share: float) -> Tensor:
    """Which images of a batch are to lose their condition, [B] bool, by addressed random numbers."""
    uniforms = randomness.uniforms(seed, purpose, step, batch.index.tolist(), ())
    return torch.from_numpy(uniforms < share).to(batch.index.device)


C = TypeVar("C", bound=api.Condition)


def exchange_rows(condition: C, mask: Tensor, other: C) -> C:
    """Replace the rows where `mask` [B] holds by those of a condition of the same shapes.

    Texts are kept where both have them.
    """

    def chosen(own: Any, new: Any) -> Any:
        if isinstance(own, tuple):
            rows = zip(mask.tolist(), own, new, strict=True) if own and new else ()
            return tuple(b if here else a for here, a, b in rows)
        return new.where(mask.view(-1, *[1] * (own.dim() - 1)), own)

    return type(condition)(*map(chosen, vars(condition).values(), vars(other).values()))


def same_rows(condition: api.Condition, other: api.Condition) -> Tensor:
    """Whether each row equals that of a condition of the same shapes, texts aside, [B] bool."""
    pairs = zip(vars(condition).values(), vars(other).values(), strict=True)
    equal = [(a == b).reshape(len(a), -1).all(dim=1) for a, b in pairs if not isinstance(a, tuple)]
    return torch.stack(equal).all(dim=0)


@contextlib.contextmanager
def mode(module: nn.Module, *, training: bool, keeps_conditions: bool = False) -> Iterator[None]:
    """Run a block with a network in train or eval mode; each submodule's own mode is put back afterwards.

    With `keeps_conditions` only `nn.Dropout` layers train, so that no condition is dropped at random.
    """
    before = [(part, part.training) for part in module.modules()]
    module.train(training)
    if keeps_conditions:
        for part, _ in before:
            part.training = training and isinstance(part, nn.Dropout)
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
    backbone: api.Backbone,
    experience: Experience,
    *,
    dropout: bool,
    address: tuple[int, str],
    keeps_conditions: bool = False,
) -> Tensor:
    """Teacher-forced logits, [B, T, V]; with dropout one forward an image in train mode.

    What is dropped (the condition too, unless it is kept) is a function of the address (seed, purpose), step
    and sample number, so neither micro-batches nor ranks change it, and a second call repeats it.
    """
    condition, context = experience.condition, experience.context
    if not dropout:
        return eval_logits(backbone, condition, context)
    rows = []
    for row, number in enumerate(experience.index):
        one = slice(row, row + 1)
        seeded = randomness.torch_seed(context.device, *address, experience.step, number)
        with mode(backbone.policy, training=True, keeps_conditions=keeps_conditions), seeded:
            rows.append(backbone.logits(condition.select(one), context[one]))
    return torch.cat(rows)


def teacher_forced(
    backbone: api.Backbone,
    batch: api.Batch,
    step: int,
    *,
    seed: int,
    purpose: str,
    rate: float | Tensor,
    kernel: NoiseKernel,
) -> Experience:
    """Tokenise images and corrupt a share `rate` of the tokens before each position; the condition stays.

    One rate for all images, or [B, 1].
    """
    targets = backbone.tokenizer.encode(batch.images)
    index = tuple(batch.index.tolist())
    context = targets[:, :-1]
    if isinstance(rate, Tensor) or rate:
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
