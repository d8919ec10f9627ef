"""AR-GRPO (arXiv:2508.06924): group-relative policy gradient on freely generated images and external rewards.

Images are generated token by token from the conditions of the batch, G of each, and scored by rewards that
see nothing but the image and its condition. Each sample is compared with its group; a k3 estimate of the
divergence from the starting model holds the policy back. The batch's own images are not used.

Two presets differ in what the published program gets wrong or leaves to chance:

              log-probabilities in the ratio and the KL            several rewards
    faithful  of the conditional model, also when samples          summed raw, then normalised in the group
              were drawn with guidance or filters                  (standard deviation + 1e-4)
    fixed     of the distribution the samples were drawn from:     each normalised in the group,
              guided, same temperature, top-k and top-p            then summed by weight

Deviation: the published text-conditional run keeps weights and optimiser in bf16, where most of its updates
round to nothing, and pads captions on the right; here master weights are fp32 and captions are padded on the
left in both presets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from alignbench import api
from alignbench.methods import groups, policy_gradient
from alignbench.methods.groups import GroupOptions
from alignbench.methods.image_rewards import combine_raw
from alignbench.methods.rollouts import RolloutOptions, Rollouts
from alignbench.methods.sets.pending import Pending, Terms
from alignbench.methods.tokens.signals import Signals, entropy_bonus, entropy_of, measure
from alignbench.methods.tokens.weights import TokenOptions, build

FAITHFUL_EPSILON = 1e-4
"""Added to a group's standard deviation by the published program."""


@dataclass(frozen=True)
class Experience:
    """N = B·G generated sequences, image-major."""

    condition: api.Condition
    """N rows."""
    tokens: Tensor
    """[N, T] int64."""
    logprobs: Tensor
    """[N, T] before the update; teacher-forced, so that the first ratio is 1 in any precision."""
    reference_logprobs: Tensor | None
    """[N, T] under the frozen starting model; None without a KL term in the loss."""
    advantages: Tensor
    """[N]; 0 where the score is not valid."""
    valid: Tensor
    """[N] bool; False leaves a sequence out of the loss, its KL included."""
    unscaled: policy_gradient.UnscaledAdvantages | None = None
    """What the advantages still have to be divided by."""
    signals: Signals | None = None
    """What the weights of tokens depend on; their advantages are those above, once these are complete."""
    pending: Pending | None = None
    """Set rewards that wait for the whole step; until then the advantages are those of the other terms."""
    logged: Mapping[str, Tensor] = field(default_factory=dict)
    """What the log says once they are known."""


class ArGrpo:
    """The method; see `api.Method`.

    Raises:
        UserError: rewards that cannot be read, or a backbone that cannot score what it sampled.
    """

    updates: api.Updates = "policy"

    @dataclass(frozen=True, kw_only=True)
    class Config(GroupOptions, RolloutOptions, TokenOptions):
        """Options; the method's card holds their defaults and documentation."""

        preset: Literal["fixed", "faithful"]
        kl_weight: float

    def __init__(
        self, config: Config, *, backbone: api.Backbone, reward: Callable[[str], api.Reward], seed: int
    ) -> None:
        config.check_kl(config.kl_weight > 0, "set method.kl_weight above 0")
        self.config, self.backbone = config, backbone
        self.rollouts = Rollouts(
            config, exact=config.preset == "fixed", backbone=backbone, reward=reward, seed=seed,
            completes=True,
        )  # fmt: skip
        self.weights = build(config, self.rollouts, ratio=config.ratio, referenced=config.kl_weight > 0)
        sets = self.rollouts.sets
        self.state, self.load_state, self.advance = sets.state, sets.load_state, sets.advance
        self.reference = backbone.reference() if config.kl_weight else None

    @torch.no_grad()
    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        """Generate G images of each condition, score them, and keep the log-probabilities of their tokens."""
        rollouts = self.rollouts
        drawn = rollouts.draw(batch, step, self.config.group_size, self.config.redraws)
        condition, tokens = drawn.condition, drawn.tokens
        logits = rollouts.logits(self.backbone, condition, tokens)
        logprobs = rollouts.logprobs(logits, tokens)
        entropy = entropy_of(logits / rollouts.temperature)
        needs = self.weights.needs if self.weights else ()
        found = measure(needs, rollouts, drawn, logits, entropy)
        del logits  # of the size of the reference's, which are next
        terms, reference = Terms(drawn.values, drawn.valid, rollouts.weights), None
        more = {"entropy": entropy.mean(), "rollout_gap": (logprobs - drawn.logprobs).abs().mean()}
        if self.reference is not None:
            logits = rollouts.logits(self.reference, condition, tokens)
            reference = rollouts.logprobs(logits, tokens)
            if "reference" in needs:
                found["reference"] = reference.unflatten(0, drawn.values[0].shape)
            if self.config.entropy_reward:
                start = entropy_of(logits / rollouts.temperature).mean(dim=-1).view_as(drawn.values[0])
                bonus = entropy_bonus(combine_raw(*terms).values, entropy.mean(dim=-1).view_as(start), start)
                terms = terms.plus(bonus, self.config.entropy_reward)
                more["reference_entropy"] = start.mean()
            if self.config.kl_in == "reward":
                penalty, reference = self.config.penalty(logprobs, reference).view_as(drawn.values[0]), None
                terms = terms.plus(-penalty, self.config.kl_weight)
                more["kl"] = penalty.mean() / tokens.shape[-1]
        if self.config.redraws:
            more["redrawn_groups"] = logprobs.new_tensor(drawn.redrawn / len(batch))
        compared = self._compare(*terms)
        old = logprobs.unflatten(0, compared.valid.shape)
        signals = Signals(self.backbone.grid, compared.advantages, compared.valid, old, **found)
        experience = Experience(
            condition, tokens, logprobs, reference, compared.advantages.flatten(), compared.valid.flatten(),
            compared.unscaled, signals if self.weights else None,
            Pending(rollouts.sets, drawn.features, terms, list(rollouts.rewards)) if drawn.features else None,
        )  # fmt: skip
        metrics = rollouts.metrics(drawn) | compared.shares | more
        return rollouts.collected(experience, drawn, metrics, images=len(batch))

    def sums(self, experience: object) -> Mapping[str, Any]:
        """What `complete` needs of the whole step."""
        assert isinstance(experience, Experience)
        waiting = experience.pending or experience.unscaled
        return waiting.sums if waiting else {}

    def complete(self, experience: object, sums: Mapping[str, Any]) -> object:
        """Compare with the credits of set rewards; then divide the advantages by the spread in the step."""
        assert isinstance(experience, Experience)
        if experience.pending:
            compared, logged = experience.pending.settled(sums, self._compare, self.rollouts.metrics)
            signals = experience.signals and replace(experience.signals, valid=compared.valid)
            return replace(
                experience, advantages=compared.advantages.flatten(), valid=compared.valid.flatten(),
                unscaled=compared.unscaled, signals=signals, pending=None, logged=logged,
            )  # fmt: skip
        assert experience.unscaled
        return replace(experience, advantages=experience.unscaled.divided(sums).flatten(), unscaled=None)

    def loss(self, experience: object) -> api.Loss:
        """Clipped surrogate plus kl_weight · divergence: a mean over sequences, and over tokens by weight.

        Sequences without a valid score count in the denominator alone, so that a sequence weighs the same
        whatever becomes of its neighbours.
        """
        assert isinstance(experience, Experience)
        assert experience.unscaled is None and experience.pending is None, "`complete` was not called"
        logits = self.rollouts.logits(self.backbone, experience.condition, experience.tokens)
        new = self.rollouts.logprobs(logits, experience.tokens)
        weights = None
        if self.weights and experience.signals:
            weights = self.weights.now(experience.signals, experience.advantages, new)
        surrogate = policy_gradient.clipped_surrogate(
            new, experience.logprobs, experience.advantages, self.config.clip_range, torch.inf,
            clip_range_high=self.config.clip_range_high, kind=self.config.ratio,
            token_weights=weights.policy if weights else None,
        )  # fmt: skip
        value = policy = surrogate.sequence_loss.mean()  # advantages are 0 where there is no score
        metrics = {
            "policy_loss": policy,
            "clip_fraction": surrogate.clip_fraction,
            "ratio_deviation": (surrogate.ratio - 1).abs().mean(),
        }
        if weights:
            metrics["selected_tokens"] = weights.selected.mean()
        if (reference := experience.reference_logprobs) is not None:
            divergence = policy_gradient.kl_estimate(new, reference, self.config.kl_estimator)
            metrics["kl"] = divergence.mean(dim=-1).mean()
            if weights:
                divergence = divergence * weights.divergence
            divergence = divergence.mean(dim=-1).where(experience.valid, 0.0)
            value = policy + self.config.kl_weight * divergence.mean()
        return api.Loss(value, {**{name: one.detach() for name, one in metrics.items()}, **experience.logged})

    def _compare(
        self, values: Sequence[Tensor], valid: Sequence[Tensor], weights: Sequence[float]
    ) -> groups.GroupAdvantages:
        """Scores [B, G] of each term → advantages, as the preset says."""
        if self.config.preset == "fixed":
            return groups.compare(values, valid, weights, self.config)
        mixed = combine_raw(values, valid, weights)
        return groups.compare([mixed.values], [mixed.valid], [1.0], self.config, FAITHFUL_EPSILON)
