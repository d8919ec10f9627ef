"""Guidance-free training (GFT, arXiv:2501.15420) with a fixed temperature b.

What guidance would have to add is learned, so that the conditional model alone samples like a guided one:

    loss = CE(b·l(c) + (1 − b)·sg[l(∅)], x)          l: logits, ∅: null condition, sg: without gradient

Where that mixture fits the data, l(c) = l(∅) + (1/b)·(mixture − l(∅)): guidance of scale 1/b. b = 1 is
next-token prediction. Some rows have the null condition for c too, so that l(∅) follows the data; their
gradient is b times that of next-token prediction.

Deviation: the paper draws b for each image and feeds it to the network by an embedding of its own, which the
released networks then contain. Here b is one number, as in the released program's `--beta` of 0 or more,
and the network that is exported is the one that was loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from alignbench import api
from alignbench.methods.logits import (
    Experience,
    eval_logits,
    exchange_rows,
    knowing_null,
    null_rows,
    train_logits,
)
from alignbench.methods.policy_gradient import prior_cross_entropy


class Gft:
    """The method; see `api.Method`.

    Raises:
        UserError: the backbone has no null condition.
    """

    updates: api.Updates = "policy"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options; the method's card holds their defaults and documentation."""

        temperature: float
        null_share: float
        dropout: bool

    def __init__(
        self, config: Config, *, backbone: api.Backbone, reward: Callable[[str], api.Reward], seed: int
    ) -> None:
        self.config, self.backbone, self.seed = config, backbone, seed
        self.null = knowing_null(backbone, "choose another model, or method ntp").null

    @torch.no_grad()
    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        """Tokenise images and take the condition of some; nothing is drawn from the policy."""
        targets, share = self.backbone.tokenizer.encode(batch.images), self.config.null_share
        dropped = null_rows(batch, step, seed=self.seed, purpose="gft-null", share=share)
        condition = exchange_rows(batch.condition, dropped, self.null(batch.condition))
        experience = Experience(condition, targets[:, :-1], targets, step, tuple(batch.index.tolist()))
        return api.Collected(experience, metrics={"null_share": dropped.float().mean()}, images=len(batch))

    def loss(self, experience: object) -> api.Loss:
        """Cross-entropy of the mixture, averaged over tokens and images; the null branch keeps no graph."""
        assert isinstance(experience, Experience)
        dropout, address = self.config.dropout, (self.seed, "gft-dropout")
        logits = train_logits(
            self.backbone, experience, dropout=dropout, address=address, keeps_conditions=True
        )
        if self.config.temperature < 1:
            with torch.no_grad():
                null = eval_logits(self.backbone, self.null(experience.condition), experience.context)
            logits = mixed(logits, null, self.config.temperature)
        value = prior_cross_entropy(logits, experience.targets).mean()
        accuracy = (logits.detach().argmax(dim=-1) == experience.targets).float().mean()
        return api.Loss(value, {"accuracy": accuracy})


def mixed(logits: Tensor, null: Tensor, temperature: float) -> Tensor:
    """b·logits + (1 − b)·null, of one shape, in place of `null`."""
    return null.mul_(1 - temperature).add(logits, alpha=temperature)
