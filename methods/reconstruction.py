"""Rewards for resembling an image: decode groups of sequences and measure their distance to the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from alignbench import api


@runtime_checkable
class SharedReference(Protocol):
    """A distance that looks at each reference once for any number of images."""

    def prepare(self, reference: Tensor) -> Any:
        """Return whatever `distance` needs to know of [B, 3, H, W] references."""
        ...

    def distance(self, images: Tensor, prepared: Any, *, repeats: int) -> Tensor:
        """[B·repeats, 3, H, W] images, image-major → [B·repeats]."""
        ...


class Reconstruction:
    """A weighted sum of distances between decoded sequences and the images they were conditioned on.

    Args:
        parts: {part: (reward card, weight)}; the cards must be distances (lower is better). Parts of weight
            0 are neither loaded nor computed.
        reward: gives the reward object of a card.
        decode_batch: sequences decoded and scored at once.
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
        self.distances = {part: reward(card) for part, card in self.cards.items()}
        self.decode_batch = decode_batch

    def measure(self, backbone: api.Backbone, tokens: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Decode [B, G, T] codes and compare with [B, 3, H, W] images, unclamped: {part: [B, G]}."""
        measured = {part: images.new_empty(tokens.shape[:2]) for part in self.distances}
        num_images = max(1, self.decode_batch // tokens.shape[1])
        for top in range(0, len(tokens), num_images):
            rows = slice(top, top + num_images)
            prepared = {part: _prepare(distance, images[rows]) for part, distance in self.distances.items()}
            for left in range(0, tokens.shape[1], self.decode_batch):
                samples = slice(left, left + self.decode_batch)
                piece = tokens[rows, samples]
                decoded = backbone.tokenizer.decode(piece.flatten(0, 1), backbone.grid)
                for part, distance in self.distances.items():
                    values = _distance(distance, decoded, prepared[part], repeats=piece.shape[1])
                    measured[part][rows, samples] = values.view(piece.shape[:2])
        return measured

    def reward(self, measured: Mapping[str, Tensor]) -> Tensor:
        """Combine what `measure` returned: [B, G], larger is better."""
        return weighted_reward(measured, self.weights)


def weighted_reward(distances: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Minus the weighted sum of distances of one shape (VA-π Eq. 10)."""
    return -torch.stack([weights[part] * values for part, values in distances.items()]).sum(dim=0)


def _prepare(reward: api.Reward, reference: Tensor) -> Any:
    return reward.prepare(reference) if isinstance(reward, SharedReference) else reference


def _distance(reward: api.Reward, images: Tensor, prepared: Any, *, repeats: int) -> Tensor:
    if isinstance(reward, SharedReference):
        return reward.distance(images, prepared, repeats=repeats)
    return reward(images, prepared.repeat_interleave(repeats, dim=0))
