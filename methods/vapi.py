"""VA-π (arXiv:2512.19680): group-relative policy gradient on pixel reconstruction, under teacher forcing.

Tokens are drawn in parallel from the policy's predictions given the (possibly noisy) tokens of a real
image, decoded, and rewarded for resembling that image; a cross-entropy prior on the same context keeps the
policy a language model of clean tokens. This file gathers experience and states the loss; it owns no loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from alignbench import api, randomness
from alignbench.errors import UserError
from alignbench.methods import policy_gradient
from alignbench.methods.image_rewards import ImageOptions, Reconstruction, describe, parts_of, weighted_reward
from alignbench.methods.logits import Experience, eval_logits, mode, teacher_forced
from alignbench.methods.policy_gradient import Draws, Objective


class VaPi:
    """The method; see `api.Method`.

    Raises:
        UserError: the weights leave nothing to train or contradict each other.
    """

    updates: api.Updates = "policy"

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageOptions):
        """Options; the method's card holds their defaults and documentation."""

        group_size: int
        policy_weight: float
        prior_weight: float
        prior: Literal["ce", "kl"]
        noise: float
        noise_kernel: policy_gradient.NoiseKernel
        clip_range: float
        advantage_clip: float
        temperature: float
        fidelity: Literal["exact", "official"]
        decode_batch: int

    def __init__(
        self, config: Config, *, backbone: api.Backbone, reward: Callable[[str], api.Reward], seed: int
    ) -> None:
        _check(config)
        self.config, self.backbone, self.seed = config, backbone, seed
        self.objective = Objective(**{part.name: getattr(config, part.name) for part in fields(Objective)})
        self.reconstruction = Reconstruction(
            parts_of(config) if config.policy_weight else {}, reward, decode_batch=config.decode_batch
        )
        self.reference = backbone.reference() if config.prior == "kl" else None

    @torch.no_grad()
    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        """Tokenise images, draw G sequences from each shared context, decode and score them."""
        noise, kernel = self.config.noise, self.config.noise_kernel
        experience = teacher_forced(
            self.backbone, batch, step, seed=self.seed, purpose="vapi-noise", rate=noise, kernel=kernel
        )
        context = experience.context
        if not self.config.policy_weight:
            return api.Collected(experience, images=len(batch))
        logits = eval_logits(self.backbone, batch.condition, context)
        tokens, entropy = self._draw(logits, step, experience.index)
        logprobs = policy_gradient.token_logprobs(logits, tokens, self.config.temperature)
        distances = self.reconstruction.measure(self.backbone, tokens, batch.images)
        rewards = weighted_reward(distances, self.reconstruction.weights)
        advantages = policy_gradient.group_advantages(rewards)
        reference = None
        if self.reference is not None:
            logits = eval_logits(self.reference, batch.condition, context)
            reference = policy_gradient.token_logprobs(logits, tokens, self.config.temperature)
        metrics = {
            "reward": rewards.mean(),
            "reward_std": rewards.std(dim=1).mean(),
            "flat_groups": (advantages == 0).all(dim=1).float().mean(),
            "entropy": entropy,
        }
        for part, values in distances.items():
            mean, std, flat = describe(values, torch.ones_like(values, dtype=torch.bool))
            metrics |= {part: mean, f"reward_std/{part}": std, f"flat/{part}": flat}
        return api.Collected(
            replace(experience, draws=Draws(tokens, logprobs, advantages, reference)),
            metrics=metrics,
            images=len(batch),
            sequences=rewards.numel(),
            reward_calls=self.reconstruction.calls(rewards.numel()),
        )

    def loss(self, experience: object) -> api.Loss:
        """Policy and prior terms of one micro-batch, averaged over its images.

        `exact`: no dropout, one forward for all samples of an image, the gradient of the per-sample form.
        `official`: a train-mode forward for each sample with its own dropout, as in the released program,
        so that ratios scatter around 1 although nothing was updated in between.
        """
        assert isinstance(experience, Experience)
        if self.config.fidelity == "exact":
            logits = eval_logits(self.backbone, experience.condition, experience.context)
            return self.objective(logits, experience.targets, experience.draws)
        losses = [self._official_loss(experience, image) for image in range(len(experience.index))]
        return api.Loss(
            torch.stack([loss.value for loss in losses]).mean(),
            {name: torch.stack([loss.metrics[name] for loss in losses]).mean() for name in losses[0].metrics},
        )

    def _official_loss(self, experience: Experience, image: int) -> api.Loss:
        """One image as G train-mode rows; its dropout depends on nothing but (seed, step, sample number)."""
        copies, rows = self.config.group_size, slice(image, image + 1)
        condition = experience.condition.select(rows).repeat(copies)
        context = experience.context[rows].repeat_interleave(copies, dim=0)
        targets = experience.targets[rows].repeat_interleave(copies, dim=0)
        address = (self.seed, "vapi-dropout", experience.step, experience.index[image])
        with mode(self.backbone.policy, training=True), randomness.torch_seed(context.device, *address):
            logits = self.backbone.logits(condition, context)
        draws = None if experience.draws is None else experience.draws.one_per_row(image)
        return self.objective(logits, targets, draws)

    def _draw(self, logits: Tensor, step: int, index: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """[B, T, V] logits → (tokens [B, G, T], mean entropy in nats)."""
        probabilities = (logits / self.config.temperature).softmax(dim=-1)
        shape = (self.config.group_size, logits.shape[1])
        uniforms = torch.from_numpy(randomness.uniforms(self.seed, "vapi-sample", step, index, shape))
        uniforms = uniforms.to(logits.device).transpose(1, 2).contiguous()
        drawn = randomness.inverse_cdf(probabilities, uniforms)
        return drawn.transpose(1, 2).contiguous(), torch.special.entr(probabilities).sum(dim=-1).mean()


def _check(config: VaPi.Config) -> None:
    """Refuse combinations that would train on nothing."""
    if not config.policy_weight and (config.prior == "kl" or not config.prior_weight):
        raise UserError(
            "method.policy_weight is 0 and no cross-entropy prior is left: nothing would be trained",
            fix="set method.prior=ce and method.prior_weight above 0, or raise method.policy_weight",
        )
    if config.policy_weight and not (config.pixel_weight or config.perceptual_weight):
        raise UserError(
            "method.pixel_weight and method.perceptual_weight are both 0: every reward would be the same",
            fix="set one of them, or method.policy_weight=0 to train on the prior alone",
        )
