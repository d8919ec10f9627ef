"""VA-π (arXiv:2512.19680): group-relative policy gradient on pixel reconstruction, under teacher forcing.

Tokens are drawn in parallel from the policy's predictions given the (possibly noisy) tokens of a real
image, decoded, and rewarded for resembling that image; a cross-entropy prior on the same context keeps the
policy a language model of clean tokens. Rewards of scope `set` can be further terms. No loop is owned here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from alignbench import api, randomness
from alignbench.errors import UserError
from alignbench.methods import groups, policy_gradient
from alignbench.methods.groups import GroupOptions
from alignbench.methods.image_rewards import ImageOptions, Reconstruction, parts_of, weighted_reward
from alignbench.methods.logits import Experience, eval_logits, mode, teacher_forced
from alignbench.methods.policy_gradient import Draws, Objective
from alignbench.methods.sets.pending import Pending
from alignbench.methods.sets.set_rewards import SetOptions


class VaPi:
    """The method; see `api.Method`.

    Raises:
        UserError: the weights leave nothing to train or contradict each other.
    """

    updates: api.Updates = "policy"

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageOptions, GroupOptions, SetOptions):
        """Options; the method's card holds their defaults and documentation."""

        policy_weight: float
        prior_weight: float
        prior: Literal["ce", "kl"]
        noise: float
        noise_kernel: policy_gradient.NoiseKernel
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
        if config.kl_in == "reward":
            self.objective = replace(self.objective, prior_weight=0.0)
        self.reconstruction = Reconstruction(
            parts_of(config) if config.policy_weight else {}, reward, decode_batch=config.decode_batch
        )
        self.reference = backbone.reference() if config.prior == "kl" else None
        self.sets = config.build_sets(reward, used=config.policy_weight > 0)
        self.state, self.load_state, self.advance = self.sets.state, self.sets.load_state, self.sets.advance

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
        drawn, again, entropy = self._draw(logits, batch, step)
        tokens, rewards = drawn["tokens"], weighted_reward(drawn, self.reconstruction.weights)
        logprobs = policy_gradient.token_logprobs(logits, tokens, self.config.temperature)
        reference = None
        if self.reference is not None:
            logits = eval_logits(self.reference, batch.condition, context)
            reference = policy_gradient.token_logprobs(logits, tokens, self.config.temperature)
        scores, more = rewards, dict[str, Tensor]()
        if reference is not None and self.config.kl_in == "reward":
            penalty, reference = self.config.penalty(logprobs, reference), None
            scores = rewards - self.config.prior_weight * penalty
            more["kl"] = penalty.mean() / tokens.shape[-1]
        if self.config.redraws:
            more["redrawn_groups"] = rewards.new_tensor(again / len(batch))
        features = self.sets.features_in(drawn)
        pending = Pending.behind(scores, self.sets, features, self.config.set_terms)
        compared = groups.compare(*pending.terms, self.config)
        draws = Draws(tokens, logprobs, compared.advantages, reference, compared.unscaled)
        sequences = rewards.numel() + again * self.config.group_size
        return api.Collected(
            replace(experience, draws=draws, pending=pending if features else None),
            metrics={
                **self.reconstruction.metrics(rewards, compared.advantages, drawn),
                "entropy": entropy,
                **more,
            },
            images=len(batch),
            sequences=sequences,
            reward_calls=self.reconstruction.calls(sequences) | self.sets.calls(sequences),
            reward_failures=self.sets.failures(features),
        )

    def sums(self, experience: object) -> Mapping[str, Any]:
        """What `complete` needs of the whole step."""
        assert isinstance(experience, Experience)
        if experience.pending:
            return experience.pending.sums
        unscaled = experience.draws.unscaled if experience.draws else None
        return unscaled.sums if unscaled else {}

    def complete(self, experience: object, sums: Mapping[str, Any]) -> object:
        """Compare with the credits of a set reward; then divide the advantages by the spread in the step."""
        assert isinstance(experience, Experience) and experience.draws
        if experience.pending:
            compare = partial(groups.compare, options=self.config)
            compared, logged = experience.pending.settled(sums, compare)
            draws = replace(experience.draws, advantages=compared.advantages, unscaled=compared.unscaled)
            return replace(experience, draws=draws, pending=None, logged=logged)
        assert experience.draws.unscaled
        advantages = experience.draws.unscaled.divided(sums)
        return replace(experience, draws=replace(experience.draws, advantages=advantages, unscaled=None))

    def loss(self, experience: object) -> api.Loss:
        """Policy and prior terms of one micro-batch, averaged over its images.

        `exact`: no dropout, one forward for all samples of an image, the gradient of the per-sample form.
        `official`: a train-mode forward for each sample with its own dropout, as in the released program,
        so that ratios scatter around 1 although nothing was updated in between.
        """
        assert isinstance(experience, Experience)
        assert experience.draws is None or not (experience.draws.unscaled or experience.pending), "incomplete"
        if self.config.fidelity == "exact":
            logits = eval_logits(self.backbone, experience.condition, experience.context)
            losses = [self.objective(logits, experience.targets, experience.draws)]
        else:
            losses = [self._official_loss(experience, image) for image in range(len(experience.index))]
        parts = {name: torch.stack([loss.metrics[name] for loss in losses]) for name in losses[0].metrics}
        metrics = {name: part.mean() for name, part in parts.items()}
        return api.Loss(torch.stack([loss.value for loss in losses]).mean(), {**metrics, **experience.logged})

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

    def _draw(self, logits: Tensor, batch: api.Batch, step: int) -> tuple[groups.Samples, int, Tensor]:
        """[B, T, V] logits → (tokens [B, G, T] and distances, groups drawn again, mean entropy in nats)."""
        probabilities = (logits / self.config.temperature).softmax(dim=-1)
        shape = (self.config.group_size, logits.shape[1])

        def sample(rows: groups.Rows, tag: str) -> groups.Samples:
            index = batch.index[rows].tolist()
            numbers = randomness.uniforms(self.seed, f"vapi-sample{tag}", step, index, shape)
            uniforms = torch.from_numpy(numbers).to(logits.device).transpose(1, 2).contiguous()
            drawn = randomness.inverse_cdf(probabilities[rows], uniforms).transpose(1, 2).contiguous()
            look, images = self.sets.features, batch.images[rows]
            return {"tokens": drawn, **self.reconstruction.measure(self.backbone, drawn, images, look)}

        def flat(drawn: groups.Samples) -> Tensor:
            rewards = weighted_reward(drawn, self.reconstruction.weights)
            return groups.is_flat([rewards], [torch.ones_like(rewards, dtype=torch.bool)])

        entropy = torch.special.entr(probabilities).sum(dim=-1).mean()
        return *groups.draw(sample, flat, self.config.redraws), entropy


def _check(config: VaPi.Config) -> None:
    """Refuse combinations that would train on nothing, and switches that nothing would read."""
    config.check_kl(config.prior == "kl", "set method.prior=kl")
    if not config.policy_weight and (config.prior == "kl" or not config.prior_weight):
        raise UserError(
            "method.policy_weight is 0 and no cross-entropy prior is left: nothing would be trained",
            fix="set method.prior=ce and method.prior_weight above 0, or raise method.policy_weight",
        )
    if config.policy_weight and not (config.pixel_weight or config.perceptual_weight):
        raise UserError(
            "method.pixel_weight and method.perceptual_weight are both 0: no reconstruction is rewarded",
            fix="set one of them, or train on the prior alone: method.policy_weight=0, no set_rewards",
        )
