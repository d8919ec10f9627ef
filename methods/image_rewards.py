"""Shared by methods: distances of decoded images from the originals, and sums of several rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from alignbench import api
from alignbench.errors import UserError
from alignbench.methods.policy_gradient import group_advantages

Parts = Mapping[str, tuple[str, float]]
"""{part: (reward specification, weight)}. Parts of weight 0 are neither loaded nor computed."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Options of the methods that compare with the original image."""

    pixel_weight: float
    pixel_loss: Literal["mse", "l1"]
    perceptual_weight: float
    perceptual: str


def parts_of(options: ImageOptions) -> Parts:
    """Return the pixel and the perceptual part that a method's options ask for."""
    return {
        "pixel": (f"pixel-{options.pixel_loss}", options.pixel_weight),
        "perceptual": (options.perceptual, options.perceptual_weight),
    }


class ImageDistances:
    """The distances of some parts.

    Raises:
        UserError: a part of some weight names no reward, or its reward is not a distance.
    """

    def __init__(self, parts: Parts, reward: Callable[[str], api.Reward]) -> None:
        for part, (card, weight) in parts.items():
            if weight and card == "none":
                raise UserError(
                    f"method.{part} is 'none' but method.{part}_weight is not 0",
                    fix=f"set method.{part}_weight=0 or name a reward: alignbench list rewards",
                )
        used = {part: value for part, value in parts.items() if value[1]}
        self.cards = {part: card for part, (card, _) in used.items()}
        self.weights = {part: weight for part, (_, weight) in used.items()}
        self.distances = {part: as_distance(card, reward(card)) for part, card in self.cards.items()}

    def calls(self, images: int) -> dict[str, int]:
        """{reward card: images compared}, as `api.Collected.reward_calls` wants it."""
        return dict.fromkeys(self.cards.values(), images)


class Reconstruction(ImageDistances):
    """Distances of decoded sequences, whose `weighted_reward` is their reward; errors as above."""

    def __init__(self, parts: Parts, reward: Callable[[str], api.Reward], *, decode_batch: int) -> None:
        super().__init__(parts, reward)
        self.decode_batch = decode_batch

    def measure(
        self,
        backbone: api.Backbone,
        tokens: Tensor,
        images: Tensor,
        look: Callable[[Tensor], Mapping[str, Tensor]] = lambda images: {},
    ) -> dict[str, Tensor]:
        """Decode [B, G, T] codes and compare with [B, 3, H, W] images, unclamped: {part: [B, G]}.

        With what `look` gives of decoded images [N, 3, H, W], 0 black and 1 white: {name: [B, G, ...]}.
        """
        measured = {part: images.new_empty(tokens.shape[:2]) for part in self.distances}
        looks: dict[str, list[Tensor]] = {}  # in the order of images and of their samples
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
                for name, looked in look((decoded + 1) / 2).items():
                    looks.setdefault(name, []).append(looked)
        return measured | {
            name: torch.cat(parts).unflatten(0, tokens.shape[:2]) for name, parts in looks.items()
        }

    def metrics(
        self, rewards: Tensor, advantages: Tensor, distances: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Rewards and advantages [B, G] and the distances behind them, for the log."""
        metrics = {
            "reward": rewards.mean(),
            "reward_std": rewards.std(dim=1).mean(),
            "flat_groups": (advantages == 0).all(dim=1).float().mean(),
        }
        for part in self.weights:
            mean, std, flat = describe(distances[part], torch.ones_like(distances[part], dtype=torch.bool))
            metrics |= {part: mean, f"reward_std/{part}": std, f"flat/{part}": flat}
        return metrics


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
    """Minus the weighted sum of distances of one shape; larger is better (VA-π Eq. 10)."""
    return -torch.stack([weight * distances[part] for part, weight in weights.items()]).sum(dim=0)


class ImageLoss(ImageDistances):
    """The weighted sum of differentiable distances, averaged over images.

    Raises:
        UserError: every weight is 0, a part of some weight names no reward, or its reward is not a distance.
    """

    def __init__(self, parts: Parts, reward: Callable[[str], api.Reward]) -> None:
        if not any(weight for _, weight in parts.values()):
            raise UserError(
                f"the weights of {' and '.join(parts)} are both 0: decoded images would teach nothing",
                fix="set method.pixel_weight or method.perceptual_weight above 0",
            )
        super().__init__(parts, reward)

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


class Mixed(NamedTuple):
    """The sum that is optimised."""

    values: Tensor
    """[B, G], larger is better; NaN where not valid, so that nothing can take such a value for a score."""
    valid: Tensor
    """[B, G] bool: every term has a valid score for the sample."""


def combine_raw(values: Sequence[Tensor], valid: Sequence[Tensor], weights: Sequence[float]) -> Mixed:
    """Weighted sum of the scores [B, G] of each term (AR-GRPO, arXiv:2508.06924, where all weights are 1).

    Terms of large spread dominate. A sum is valid only where all of its terms are.
    """
    all_valid = torch.stack(list(valid)).all(dim=0)
    parts = [weight * part for weight, part in zip(weights, values, strict=True)]
    return Mixed(torch.stack(parts).sum(dim=0).masked_fill(~all_valid, torch.nan), all_valid)


def described(name: str, values: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """For the log: what `describe` says of a reward's scores, and the share that is not valid."""
    mean, std, flat = describe(values, valid)
    invalid = (~valid).float().mean()
    return {
        f"reward/{name}": mean,
        f"reward_std/{name}": std,
        f"flat/{name}": flat,
        f"invalid/{name}": invalid,
    }


def describe(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Describe [B, G] scores: mean, mean spread within a group, share of groups without spread.

    Over valid scores only. NaN, not 0, where there is nothing to average: every rank logs the same names.
    """
    kept = values.double().masked_fill(~valid, torch.nan)
    count = valid.sum(dim=1)
    squares = (kept - kept.nanmean(dim=1, keepdim=True)).square().nansum(dim=1)
    spread = (squares / (count - 1).clamp(min=1)).sqrt().masked_fill(count < 2, torch.nan)
    flat = (group_advantages(values, valid=valid) == 0).all(dim=1)
    return kept.nanmean(), spread.nanmean(), flat.double().mean()
