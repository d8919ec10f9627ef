"""A run's own training rewards on the images that are scored, for the log of samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from alignbench.api import ImageBatch, Reward, ScoreRequest
from alignbench.config.plan import Plan
from alignbench.errors import UserError
from alignbench.files import digest_of
from alignbench.registry.lookup import Registry
from alignbench.registry.reward_spec import Resolved, parse_terms, resolve
from alignbench.training.setup import reward_builder

SUM = "weighted-sum"


def terms_of(plan: Plan) -> dict[str, float]:
    """Return {reward specification: weight} of what a plan's method is trained on.

    A reward option's weight is the option of its name with `_weight`, else 1; `pixel_loss` names a part too.
    """
    if plan.method is None:
        return {}
    options = plan.config.section("method")
    parts = plan.method.rewards_in_use(options)
    if "pixel_loss" in options and options.get("pixel_weight", 1) and plan.method.trains_on_rewards(options):
        parts = {"pixel": f"pixel-{options['pixel_loss']}", **parts}
    return {
        spec: weight * float(options.get(f"{name}_weight", 1))
        for name, text in parts.items()
        for spec, weight in parse_terms(text)
    }


class TrainingRewards:
    """The rewards that need nothing but an image and what it was asked to show (`sample_log.ImageRewards`).

    Reconstructions have their originals, so distances can be computed of them too. Scores are transformed as
    in training, and such that larger is better.
    """

    def __init__(self, plan: Plan, registry: Registry, device: torch.device) -> None:
        self.weights = terms_of(plan)
        self.left_out: dict[str, str] = {}
        self.facts: dict[str, Mapping[str, Any]] = {}
        self._device = device
        self._rewards: dict[str, Reward] = {}
        reward = reward_builder(plan, registry, device, image_size=plan.protocol.image_size)
        resolved = {spec: resolve(spec, registry, plan.config.section("assets")) for spec in self.weights}
        for spec, weight in self.weights.items():
            card = resolved[spec].card
            try:
                if reason := _missing(resolved[spec], plan):
                    raise UserError(reason)
                self._rewards[spec] = reward(spec)
            except UserError as error:
                self.left_out[spec] = error.what
            else:
                self.facts[spec] = {
                    "title": card.title, "direction": "higher", "weight": weight,
                    "doc": f"{'Minus: ' if card.direction == 'lower' else ''}{card.summary}",
                }  # fmt: skip
        if self.weights and not self.left_out:
            doc = "Scores times weights; before what the method does to them within a group."
            self.facts[SUM] = {"title": "Training reward", "direction": "higher", "doc": doc}
        made_of = {spec: [weight, resolved[spec].options] for spec, weight in self.weights.items()}
        self.identity = digest_of({"rewards": made_of, "left out": self.left_out})

    @torch.no_grad()
    def measure(self, batch: ImageBatch) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
        """Return {specification, or SUM: ([n] float64, [n] bool: valid)}; errors as of `api.Reward`."""
        entries = [prompt.metadata for prompt in batch.prompts]
        request = ScoreRequest(
            images=self._on_device(batch.images),
            group=torch.arange(len(batch), device=self._device),
            labels=None if batch.labels is None else batch.labels.to(self._device),
            texts=tuple(prompt.text for prompt in batch.prompts),
            reference=None if batch.originals is None else self._on_device(batch.originals),
            metadata={"prompt": entries} if entries else {},
        )
        found = {spec: reward.score(request) for spec, reward in self._rewards.items()}
        values = {spec: scores.values for spec, scores in found.items()}
        if SUM in self.facts:
            values[SUM] = torch.stack([self.weights[spec] * part for spec, part in values.items()]).sum(dim=0)
        return {name: _column(part) for name, part in values.items()}

    def _on_device(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(self._device).float() / 255


def _column(values: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    numbers = values.double().cpu().numpy()
    valid = np.isfinite(numbers)  # rewards give NaN where they have no score
    return np.where(valid, numbers, 0.0), valid


def _missing(reward: Resolved, plan: Plan) -> str:
    """Say what a reward needs that the images of the plan's protocol lack."""
    card, generated = reward.card, plan.protocol.task == "generation"
    if card.scope == "distance" and generated:
        return "compares with the real image behind a sample; generated images have none"
    if card.scope == "set":
        return "credits an image with what it does to all images of a training step; there is no step here"
    if "label" in card.needs and plan.model.condition != "class":
        return "needs class labels; these images have prompts"
    if "text" in card.needs and plan.model.condition == "text" and not generated:
        return "reads a caption; reconstructions have none"
    if "metadata" in card.needs and not any(prompt.metadata for prompt in plan.prompts):
        return "reads entries of a prompt file; these images have none"
    return ""
