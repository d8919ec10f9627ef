"""ImageReward (arXiv:2304.05977) as a reward, without the image-reward package."""

from __future__ import annotations

import torch

from alignbench import api
from alignbench.hub.locate import locate_asset
from alignbench.hub.verify import verify_asset
from alignbench.nets import image_reward
from alignbench.nets.preprocess import Preprocess
from alignbench.registry.lookup import Registry
from alignbench.rewards.requests import all_valid

WEIGHTS, TOKENIZER = "imagereward", "bert-tokenizer"
"""Assets."""


class PromptReward:
    """Scores pictures against their texts; differentiable."""

    def __init__(self, network: image_reward.ImageReward) -> None:
        self.network, self.prepare = network, Preprocess(network.side)

    def to(self, device: torch.device) -> None:
        self.network.to(device)

    def score(self, request: api.ScoreRequest) -> api.Scores:
        """The request must have texts."""
        return all_valid(self.network(self.prepare(request.images), request.texts))


def build(device: torch.device, *, path: str, tokenizer: str) -> PromptReward:
    """Load the network.

    Raises:
        UserError: a file is missing, or is not what it should be.
    """
    registry, paths = Registry.default(), {WEIGHTS: path, TOKENIZER: tokenizer}
    files = [verify_asset(locate_asset(name, registry.asset(name), own)) for name, own in paths.items()]
    return PromptReward(image_reward.load(*(file.path for file in files)).to(device))
