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

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from alignbench import api, randomness
from alignbench.errors import UserError
from alignbench.methods import groups, policy_gradient
from alignbench.methods.groups import GroupOptions
from alignbench.methods.image_rewards import combine_raw, describe
from alignbench.methods.logits import eval_logits, mode
from alignbench.registry.reward_spec import parse_spec, parse_terms

FAITHFUL_EPSILON = 1e-4
"""Added to a group's standard deviation by the published program."""
NO_CLIP = float("inf")
"""AR-GRPO does not clip advantages."""


@runtime_checkable
class KnowsSampling(Protocol):
    """A backbone that can score tokens under guided and filtered sampling."""

    def sampled_logits(self, condition: api.Condition, tokens: Tensor, sampling: api.Sampling) -> Tensor:
        """Logits [N, T, V] of the distributions `generate` drew `tokens` [N, T] from, temperature applied."""
        ...


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


class ArGrpo:
    """The method; see `api.Method`.

    Raises:
        UserError: rewards that cannot be read, or a backbone that cannot score what it sampled.
    """

    updates: api.Updates = "policy"

    @dataclass(frozen=True, kw_only=True)
    class Config(GroupOptions):
        """Options; the method's card holds their defaults and documentation."""

        preset: Literal["fixed", "faithful"]
        rewards: str
        kl_weight: float
        cfg_scale: float
        temperature: float
        top_k: int
        top_p: float
        decode_batch: int

    def __init__(
        self, config: Config, *, backbone: api.Backbone, reward: Callable[[str], api.Reward], seed: int
    ) -> None:
        config.check_kl(config.kl_weight > 0, "set method.kl_weight above 0")
        self.config, self.backbone, self.seed = config, backbone, seed
        self.sampling = api.Sampling(
            temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, cfg_scale=config.cfg_scale
        )
        # The log-probabilities that count; without guidance and filters both presets have the same.
        self.scored = (
            self.sampling if config.preset == "fixed" else api.Sampling(temperature=config.temperature)
        )
        if not _is_plain(self.scored) and not isinstance(backbone, KnowsSampling):
            raise UserError(
                "method.preset=fixed needs a backbone that scores tokens under guidance and filters",
                fix="set method.cfg_scale=1, method.top_k=0 and method.top_p=1, or method.preset=faithful",
            )
        terms = parse_terms(config.rewards)
        self.weights = [weight for _, weight in terms]
        self.rewards = {spec: reward(spec) for spec, _ in terms}
        self.calls = Counter(parse_spec(spec).name for spec, _ in terms)
        self.reference = backbone.reference() if config.kl_weight else None

    @torch.no_grad()
    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        """Generate G images of each condition, score them, and keep the log-probabilities of their tokens."""
        failures: Counter[str] = Counter()
        drawn, again = groups.draw(
            lambda rows, tag: self._sample(batch, step, rows, tag, failures),
            lambda drawn: groups.is_flat(*_scores(drawn)),
            self.config.redraws,
        )
        condition, tokens = batch.condition.repeat(self.config.group_size), drawn["tokens"].flatten(0, 1)
        logits = self._logits(self.backbone, condition, tokens)
        logprobs = self._logprobs(logits, tokens)
        entropy = torch.special.entr((logits / self._temperature).softmax(dim=-1)).sum(-1).mean()
        del logits  # of the size of the reference's, which are next
        values, valid = _scores(drawn)
        weights, reference, more = self.weights, None, {}
        if self.reference is not None:
            logits = self._logits(self.reference, condition, tokens)
            reference = self._logprobs(logits, tokens)
            if self.config.kl_in == "reward":  # one more term, of weight β
                penalty, reference = self.config.penalty(logprobs, reference).view_as(values[0]), None
                values, valid = [*values, -penalty], [*valid, torch.ones_like(valid[0])]
                weights = [*weights, self.config.kl_weight]
                more["kl"] = penalty.mean() / tokens.shape[-1]
        if self.config.redraws:
            more["redrawn_groups"] = logprobs.new_tensor(again / len(batch))
        compared = self._compare(values, valid, weights)
        experience = Experience(
            condition, tokens, logprobs, reference, compared.advantages.flatten(), compared.valid.flatten(),
            compared.unscaled,
        )  # fmt: skip
        gap = (logprobs - drawn["logprobs"].flatten(0, 1)).abs().mean()
        sequences = len(tokens) + again * self.config.group_size
        return api.Collected(
            experience,
            metrics={**self._metrics(drawn, compared), "entropy": entropy, "rollout_gap": gap, **more},
            images=len(batch),
            sequences=sequences,
            tokens=sequences * tokens.shape[-1],
            reward_calls={card: times * sequences for card, times in self.calls.items()},
            reward_failures=failures,
        )

    def sums(self, experience: object) -> Mapping[str, float]:
        """What `complete` needs of the whole step."""
        assert isinstance(experience, Experience)
        return experience.unscaled.sums if experience.unscaled else {}

    def complete(self, experience: object, sums: Mapping[str, float]) -> object:
        """Divide the advantages by the spread in the whole step."""
        assert isinstance(experience, Experience) and experience.unscaled
        advantages = experience.unscaled.divided(sums).flatten()
        return dataclasses.replace(experience, advantages=advantages, unscaled=None)

    def loss(self, experience: object) -> api.Loss:
        """Clipped surrogate plus kl_weight · divergence, averaged over all tokens of all sequences.

        Sequences without a valid score count in the denominator alone, so that a sequence weighs the same
        whatever becomes of its neighbours.
        """
        assert isinstance(experience, Experience) and experience.unscaled is None
        logits = self._logits(self.backbone, experience.condition, experience.tokens)
        new = self._logprobs(logits, experience.tokens)
        surrogate = policy_gradient.clipped_surrogate(
            new, experience.logprobs, experience.advantages, self.config.clip_range, NO_CLIP,
            clip_range_high=self.config.clip_range_high, kind=self.config.ratio,
        )  # fmt: skip
        value = policy = surrogate.sequence_loss.mean()  # advantages are 0 where there is no score
        metrics = {
            "policy_loss": policy,
            "clip_fraction": surrogate.clip_fraction,
            "ratio_deviation": (surrogate.ratio - 1).abs().mean(),
        }
        if experience.reference_logprobs is not None:
            divergence = policy_gradient.kl_estimate(
                new, experience.reference_logprobs, self.config.kl_estimator
            ).mean(dim=-1)
            metrics["kl"] = divergence.mean()
            value = policy + self.config.kl_weight * divergence.where(experience.valid, 0.0).mean()
        return api.Loss(value, {name: metric.detach() for name, metric in metrics.items()})

    # --- sampling and scoring ---

    def _sample(
        self, batch: api.Batch, step: int, rows: groups.Rows, tag: str, failures: Counter[str]
    ) -> groups.Samples:
        """Generate and score some groups: tokens and logprobs [B, G, T], values and valid [B, G, K]."""
        index, group = batch.index[rows], self.config.group_size
        condition = groups.pick(batch.condition, rows).repeat(group)
        numbers = randomness.uniforms(
            self.seed, f"ar-grpo-token{tag}", step, index.tolist(), (group, self.backbone.num_tokens)
        )
        uniforms = torch.from_numpy(numbers).flatten(0, 1).to(index.device)
        rollout = self.backbone.generate(condition, uniforms, self.sampling)
        places = range(len(batch))[rows] if isinstance(rows, slice) else rows
        asked = [batch.prompts[place].metadata for place in places] if batch.prompts else []
        entries = [entry for entry in asked for _ in range(group)]
        request = api.ScoreRequest(
            images=self._decode(rollout.tokens),
            group=index.repeat_interleave(group),
            labels=condition.ids if isinstance(condition, api.ClassLabels) else None,
            texts=condition.texts,
            metadata={"prompt": entries} if entries else {},
        )
        scores = [reward.score(request) for reward in self.rewards.values()]
        for spec, score in zip(self.rewards, scores, strict=True):
            failures[parse_spec(spec).name] += int((~score.valid).sum())
        drawn = {"tokens": rollout.tokens, "logprobs": rollout.logprobs}
        drawn["values"] = torch.stack([score.values for score in scores], dim=-1)
        drawn["valid"] = torch.stack([score.valid for score in scores], dim=-1)
        return {name: part.unflatten(0, (len(index), group)) for name, part in drawn.items()}

    def _metrics(self, drawn: groups.Samples, compared: groups.GroupAdvantages) -> dict[str, Tensor]:
        """What the log says of the scores."""
        values, valid = _scores(drawn)
        mean, std, _ = describe(*combine_raw(values, valid, self.weights))
        metrics = {
            "reward": mean,
            "reward_std": std,
            "flat_groups": (compared.advantages == 0).all(dim=1).float().mean(),
            "invalid_groups": (~compared.valid.any(dim=1)).float().mean(),
        }
        for name, value, mask in zip(short_names(list(self.rewards)), values, valid, strict=True):
            mean, std, flat = describe(value, mask)
            metrics |= {f"reward/{name}": mean, f"reward_std/{name}": std, f"flat/{name}": flat}
            metrics[f"invalid/{name}"] = (~mask).float().mean()
        return metrics

    def _compare(
        self, values: Sequence[Tensor], valid: Sequence[Tensor], weights: Sequence[float]
    ) -> groups.GroupAdvantages:
        """Scores [B, G] of each term → advantages, as the preset says."""
        if self.config.preset == "fixed":
            return groups.compare(values, valid, weights, self.config)
        mixed = combine_raw(values, valid, weights)
        return groups.compare([mixed.values], [mixed.valid], [1.0], self.config, FAITHFUL_EPSILON)

    def _decode(self, tokens: Tensor) -> Tensor:
        """[N, T] codes → [N, 3, H, W], 0 black and 1 white, not clamped; `decode_batch` at a time."""
        pieces = [
            self.backbone.tokenizer.decode(piece, self.backbone.grid)
            for piece in tokens.split(self.config.decode_batch)
        ]
        return (torch.cat(pieces) + 1) / 2

    # --- log-probabilities ---

    @property
    def _temperature(self) -> float:
        """What `_logits` still have to be divided by."""
        return self.config.temperature if _is_plain(self.scored) else 1.0

    def _logits(self, backbone: api.Backbone, condition: api.Condition, tokens: Tensor) -> Tensor:
        """Teacher-forced logits without dropout that the preset scores tokens [N, T] with, [N, T, V]."""
        if _is_plain(self.scored):
            return eval_logits(backbone, condition, tokens[:, :-1])
        assert isinstance(backbone, KnowsSampling)
        with mode(backbone.policy, training=False):
            return backbone.sampled_logits(condition, tokens, self.scored)

    def _logprobs(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """[N, T, V] logits and [N, T] tokens → [N, T]."""
        return policy_gradient.token_logprobs(logits, tokens.unsqueeze(1), self._temperature).squeeze(1)


def _is_plain(sampling: api.Sampling) -> bool:
    """Whether samples follow the conditional model itself, up to the temperature."""
    return sampling.cfg_scale == 1.0 and sampling.top_k == 0 and sampling.top_p == 1.0


def _scores(drawn: groups.Samples) -> tuple[list[Tensor], list[Tensor]]:
    """Values and valid, [B, G], of each reward."""
    return list(drawn["values"].unbind(-1)), list(drawn["valid"].unbind(-1))


def short_names(specs: Sequence[str]) -> list[str]:
    """What the log calls each reward: its card, or the whole specification where a card is used twice."""
    cards = [parse_spec(spec).name for spec in specs]
    return [card if cards.count(card) == 1 else spec for spec, card in zip(specs, cards, strict=True)]
