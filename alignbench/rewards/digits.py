"""Does a sample look like the digit that was asked for? The embedded default's stand-in for alignment."""

from __future__ import annotations

import torch

from alignbench import api
from alignbench.nets import digits
from alignbench.rewards.requests import all_valid


class ClassLogprob:
    """Log-probability of the requested class under a frozen digit classifier, in nats; at most 0."""

    def __init__(self, net: digits.DigitsNet) -> None:
        self.net = net

    def to(self, device: torch.device) -> None:
        self.net.to(device)

    def score(self, request: api.ScoreRequest) -> api.Scores:
        """The request must have labels in 0 … 9."""
        assert request.labels is not None, "class log-probabilities need labels"
        logprobs = self.net.logits(2 * request.images - 1).log_softmax(dim=-1)
        return all_valid(logprobs.gather(-1, request.labels[:, None])[:, 0])


def build(device: torch.device) -> ClassLogprob:
    """On `digits-features-b`: never the evaluator's network."""
    return ClassLogprob(digits.load("digits-features-b", device))
