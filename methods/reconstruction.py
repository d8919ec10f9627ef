"""Rewards for resembling an image: decode groups of sequences and measure their distance to the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from alignbench import api
from alignbench.errors import UserError


class Reconstruction:
    """A weighted sum of distances between decoded sequences and the images they were conditioned on.

    Args:
        parts: {part: (reward specification, weight)}. Parts of weight 0 are neither loaded nor computed.
        reward: gives the reward object of a specification.
        decode_batch: sequences decoded and scored at once.

    Raises:
        UserError: one of the rewards is not a distance to a reference image.
    """

    def __init__(
        self,
        parts: Mapping[str, tuple[str, float]],
        reward: Callable[[str], api.Reward],
        *,
        decode_batch: int,
    ) -> None:
        used = {part: value for part, value in parts.items() if value[1]}
        self.cards = {part: card for part, (card, _) in used.items()}
        self.weights = {part: weight for part, (_, weight) in used.items()}
        self.distances = {part: as_distance(card, reward(card)) for part, card in self.cards.items()}
        self.decode_batch = decode_batch

    def measure(self, backbone: api.Backbone, tokens: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Decode [B, G, T] codes and compare with [B, 3, H, W] images, unclamped: {part: [B, G]}."""
        measured = {part: images.new_empty(tokens.shape[:2]) for part in self.distances}
        num_images = max(1, self.decode_batch // tokens.shape[1])
        for top in range(0, len(tokens), num_images):
            rows = slice(top, top + num_images)
            prepared = {part: distance.prepare(images[rows]) for part, distance in self.distances.items()}
            for left in range(0, tokens.shape[1], self.decode_batch):
                samples = slice(left, left + self.decode_batch)
                piece = tokens[rows, samples]
                decoded = backbone.tokenizer.decode(piece.flatten(0, 1), backbone.grid)
                for part, distance in self.distances.items():
                    values = distance.distance(decoded, prepared[part], repeats=piece.shape[1])
                    measured[part][rows, samples] = values.view(piece.shape[:2])
        return measured

    def reward(self, measured: Mapping[str, Tensor]) -> Tensor:
        """Combine what `measure` returned: [B, G], larger is better."""
        return weighted_reward(measured, self.weights)


def as_distance(spec: str, reward: api.Reward) -> api.Distance:
    """Return the reward if it compares with a reference image here and now.

    Raises:
        UserError: it does not, or it is computed on another machine.
    """
    if not isinstance(reward, api.Distance):
        raise UserError(
            f"reward {spec!r} gives no distance to the real image, which this method needs",
            fix="choose one of scope distance, not remote: alignbench list rewards",
        )
    return reward


def weighted_reward(distances: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Minus the weighted sum of distances of one shape (VA-π Eq. 10)."""
    return -torch.stack([weights[part] * values for part, values in distances.items()]).sum(dim=0)
