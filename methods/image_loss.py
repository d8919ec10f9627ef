"""A differentiable loss between decoded images and the images they stand for: weighted reward distances."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from alignbench import api
from alignbench.errors import UserError
from alignbench.methods.reconstruction import as_distance


class ImageLoss:
    """pixel_weight · pixel + perceptual_weight · perceptual, averaged over images.

    Args:
        parts: {part: (reward card, weight)}; the cards must be differentiable distances. Parts of weight 0
            are neither loaded nor computed.
        reward: gives the reward object of a card.

    Raises:
        UserError: every weight is 0, a part of some weight names no reward, or its reward is not a distance.
    """

    def __init__(self, parts: Mapping[str, tuple[str, float]], reward: Callable[[str], api.Reward]) -> None:
        used = {part: value for part, value in parts.items() if value[1]}
        if not used:
            raise UserError(
                f"the weights of {' and '.join(parts)} are both 0: decoded images would teach nothing",
                fix="set method.pixel_weight or method.perceptual_weight above 0",
            )
        self.cards = {part: card for part, (card, _) in used.items()}
        self.weights = {part: weight for part, (_, weight) in used.items()}
        self.distances = {part: _distance(part, card, reward) for part, card in self.cards.items()}

    def __call__(self, decoded: Tensor, originals: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare [B, 3, H, W] decoded images with the originals, neither clamped.

        Returns:
            (the weighted sum, a scalar with a gradient; {part: its unweighted mean, detached}).

        Raises:
            UserError: a distance passes no gradient to the decoded images.
        """
        total, metrics = decoded.new_zeros(()), dict[str, Tensor]()
        for part, distance in self.distances.items():
            with torch.no_grad():
                prepared = distance.prepare(originals)
            values = distance.distance(decoded, prepared, repeats=1)
            if not values.requires_grad:
                raise UserError(
                    f"reward {self.cards[part]!r} is not differentiable, so it cannot be method.{part}",
                    fix="alignbench list rewards names those that are",
                )
            total = total + self.weights[part] * values.mean()
            metrics[part] = values.detach().mean()
        return total, metrics

    def calls(self, images: int) -> dict[str, int]:
        """{reward card: images compared}, as `api.Collected.reward_calls` wants it."""
        return dict.fromkeys(self.cards.values(), images)


def _distance(part: str, card: str, reward: Callable[[str], api.Reward]) -> api.Distance:
    if card == "none":
        raise UserError(
            f"method.{part} is 'none' but method.{part}_weight is not 0",
            fix=f"set method.{part}_weight=0 or name a reward: alignbench list rewards",
        )
    return as_distance(card, reward(card))
