"""Condition contrastive alignment (CCA, arXiv:2410.09347): nothing is sampled and there is no reward.

An image's likelihood is raised under its own condition and lowered under another's, against the frozen start:

    R(x, c) = Σ_t log π(x_t | c, x_<t) − log π_ref(x_t | c, x_<t)          a sum over the tokens, not a mean
    loss = [−log σ(βR(x, c)) − λ·log σ(−βR(x, c'))] / max(λ, 1)

A function R that is free to be anything ends at log(p(x|c)/p(x))/β − log(λ)/β: what guidance of
scale 1 + 1/β gives to whole images. Rows that lose their condition have the null one for both c and c', so
that guidance stays possible. Those rows, and rows whose c' equals c, have no negative: both terms pull
upwards, with weight 1.

In place of another condition a negative can be another image: with `negatives = samples` one that the frozen
start draws under the same condition (DDO, arXiv:2503.01103). Rows without a condition then keep theirs.

Two other losses of the same pairs: `dpo`, −log σ(β(R − R')), and `unlearning`, (−R + λR') / max(λ, 1).

Deviation: the released program takes c' from the next image of its micro-batch, which is of two images. Here
it comes from the next image of the whole step, so that neither micro-batches nor ranks decide what is
learned. Its division by max(λ, 1), which the paper's equation lacks, is kept. It sums the losses of
micro-batches where here they are averaged; only the gradient clip sees that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from alignbench import api, randomness
from alignbench.errors import UserError
from alignbench.methods.logits import (
    Experience,
    exchange_rows,
    knowing_null,
    null_rows,
    same_rows,
    train_logits,
)
from alignbench.methods.policy_gradient import token_logprobs

PairLoss = Literal["cca", "dpo", "unlearning"]


@dataclass(frozen=True)
class ContrastivePairs:
    """B images, each with what it is told from."""

    positive: Experience
    negative: Experience
    """The same tokens under another condition, or other tokens under the same one."""
    references: tuple[Tensor, Tensor]
    """Log-probabilities of both under the frozen start, [B, T]."""
    alike: Tensor
    """[B] bool; True: the second is as good as the first."""


class Cca:
    """The method; see `api.Method`.

    Raises:
        UserError: conditions are to be dropped and the backbone has no null condition.
    """

    updates: api.Updates = "policy"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options; the method's card holds their defaults and documentation."""

        loss: PairLoss
        negatives: Literal["labels", "samples"]
        beta: float
        negative_weight: float
        null_share: float
        dropout: bool
        reference_dropout: bool

    def __init__(
        self, config: Config, *, backbone: api.Backbone, reward: Callable[[str], api.Reward], seed: int
    ) -> None:
        self.config, self.backbone, self.seed = config, backbone, seed
        self.null = knowing_null(backbone, "set method.null_share=0").null if config.null_share else None
        self.reference = backbone.reference()

    @torch.no_grad()
    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        """Tokenise images, pair each with a negative, and score both with the frozen start."""
        targets, samples = self.backbone.tokenizer.encode(batch.images), self.config.negatives == "samples"
        condition, other, dropped = self._conditions(batch, step)
        positive = Experience(condition, targets[:, :-1], targets, step, tuple(batch.index.tolist()))
        if samples:
            drawn = self._draw(condition, batch, step)
            negative = dataclasses.replace(positive, context=drawn[:, :-1], targets=drawn)
            alike = torch.zeros_like(dropped)
        else:
            negative = dataclasses.replace(positive, condition=other)
            alike = same_rows(condition, other)
        pairs = ContrastivePairs(
            positive, negative, self._logprobs(positive, negative, reference=True), alike
        )
        count = len(batch) if samples else 0
        return api.Collected(
            pairs,
            metrics={"null_share": dropped.float().mean(), "alike": alike.float().mean()},
            images=len(batch),
            sequences=count,
            tokens=count * targets.shape[1],
        )

    def loss(self, experience: object) -> api.Loss:
        """The mean over images; memory holds the graphs of two forwards."""
        assert isinstance(experience, ContrastivePairs)
        scored = self._logprobs(experience.positive, experience.negative, reference=False)
        pairs = zip(scored, experience.references, strict=True)
        first, second = ((new - old).sum(dim=-1) for new, old in pairs)
        config = self.config
        value = pair_loss(
            config.loss, first, second, experience.alike, beta=config.beta, weight=config.negative_weight
        ).mean()
        metrics = {
            "log_ratio": first.mean(),
            "negative_log_ratio": second.mean(),
            "accuracy": (first > second).to(value.dtype).mean(),
        }
        return api.Loss(value, {name: metric.detach() for name, metric in metrics.items()})

    def _conditions(self, batch: api.Batch, step: int) -> tuple[api.Condition, api.Condition, Tensor]:
        """c and c' with some rows of both made null, and which rows these are, [B] bool."""
        condition, other = batch.condition, batch.mismatched
        if other is None and self.config.negatives == "labels":
            raise UserError("these batches hold no conditions of other images", fix="set negatives=samples")
        other = other or condition
        share = self.config.null_share
        dropped = null_rows(batch, step, seed=self.seed, purpose="cca-null", share=share)
        if self.null is None:
            return condition, other, dropped
        nothing = self.null(condition)
        return exchange_rows(condition, dropped, nothing), exchange_rows(other, dropped, nothing), dropped

    def _draw(self, condition: api.Condition, batch: api.Batch, step: int) -> Tensor:
        """One image of the frozen start for each condition, [B, T]."""
        shape = (self.backbone.num_tokens,)
        uniforms = randomness.uniforms(self.seed, "cca-token", step, batch.index.tolist(), shape)
        numbers = torch.from_numpy(uniforms).to(batch.index.device)
        return self.reference.generate(condition, numbers, api.Sampling()).tokens

    def _logprobs(
        self, positive: Experience, negative: Experience, *, reference: bool
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, T] of the tokens of both; what is dropped differs between all four."""
        name, backbone = ("cca-reference", self.reference) if reference else ("cca", self.backbone)
        dropout = self.config.reference_dropout if reference else self.config.dropout
        return self._score(backbone, positive, dropout, f"{name}-dropout"), self._score(
            backbone, negative, dropout, f"{name}-dropout-negative"
        )

    def _score(self, backbone: api.Backbone, rows: Experience, dropout: bool, purpose: str) -> Tensor:
        address = (self.seed, purpose)
        logits = train_logits(backbone, rows, dropout=dropout, address=address, keeps_conditions=True)
        return token_logprobs(logits, rows.targets.unsqueeze(1), 1.0).squeeze(1)


def pair_loss(
    kind: PairLoss, first: Tensor, second: Tensor, alike: Tensor, *, beta: float, weight: float
) -> Tensor:
    """The loss of each pair, [B], from R and R' [B] (the released program's lines 273-281).

    Pairs that are `alike`, [B] bool, count twice as positive, but to `dpo`, which knows no such pairs.
    """
    if kind == "dpo":
        return -F.logsigmoid(beta * (first - second))
    sign = torch.ones_like(second).masked_fill(~alike, -1.0)
    factor = torch.ones_like(second).masked_fill(~alike, weight)
    if kind == "cca":
        value = -F.logsigmoid(beta * first) - factor * F.logsigmoid(beta * sign * second)
    else:
        value = -first - factor * sign * second
    return value / max(weight, 1.0)
