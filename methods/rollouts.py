"""Shared by methods: freely generated groups of images, scored by rewards that see image and condition alone.

Methods that share this file and a seed see the same first rollouts and pay for the same reward calls, so
that they differ in what they learn from them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from alignbench import api, randomness
from alignbench.errors import UserError
from alignbench.methods import groups, policy_gradient
from alignbench.methods.image_rewards import combine_raw, describe, described
from alignbench.methods.logits import eval_logits, mode
from alignbench.methods.sets.set_rewards import FEATURES, SetRewards, short_names, unsettled
from alignbench.registry.reward_spec import parse_spec, parse_terms


@runtime_checkable
class KnowsSampling(Protocol):
    """A backbone that can score tokens under guided and filtered sampling."""

    def sampled_logits(self, condition: api.Condition, tokens: Tensor, sampling: api.Sampling) -> Tensor:
        """Logits [N, T, V] of the distributions `generate` drew `tokens` [N, T] from, temperature applied."""
        ...


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """Options of the methods that generate images and score them."""

    rewards: str
    cfg_scale: float
    temperature: float
    top_k: int
    top_p: float
    decode_batch: int

    @property
    def sampling(self) -> api.Sampling:
        """How images are generated."""
        return api.Sampling(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, cfg_scale=self.cfg_scale
        )


@dataclass(frozen=True)
class Groups:
    """B groups of G generated and scored sequences."""

    condition: api.Condition
    """B·G rows, image-major."""
    tokens: Tensor
    """[B·G, T] int64."""
    logprobs: Tensor
    """[B·G, T] float, as the tokens were drawn."""
    values: list[Tensor]
    """Scores [B, G] of each reward."""
    valid: list[Tensor]
    """[B, G] bool for each reward."""
    redrawn: int
    """Groups that were drawn again."""
    reward_failures: Counter[str]
    """Samples without a valid score, by reward card."""
    features: dict[str, Tensor] = field(default_factory=dict)
    """{specification: [B·G, D]} of rewards of scope `set`, whose values are 0 until the step is complete."""

    @property
    def sequences(self) -> int:
        """Sequences generated, the redrawn ones included."""
        return len(self.tokens) + self.redrawn * self.values[0].shape[1]

    def take(self, places: Tensor) -> Tensor:
        """Tokens [B·k, T] of k sequences of each group, by their places [B, k] in it."""
        first = torch.arange(len(places), device=places.device) * self.values[0].shape[1]
        return self.tokens[(places + first.unsqueeze(1)).flatten()]


class Scored(Protocol):
    """Scores [B, G] of each term, and which of them are valid."""

    @property
    def values(self) -> Sequence[Tensor]: ...

    @property
    def valid(self) -> Sequence[Tensor]: ...


class Rollouts:
    """Generates and scores groups, and scores their tokens.

    Args:
        exact: log-probabilities are those of the distribution the samples were drawn from (guided, filtered);
            else of the conditional model at the same temperature.
        completes: the method completes what it collected, so that it can have rewards of scope `set`.

    Raises:
        UserError: rewards that cannot be read or used, or a backbone that cannot score what it sampled.
    """

    def __init__(
        self,
        options: RolloutOptions,
        *,
        exact: bool,
        backbone: api.Backbone,
        reward: Callable[[str], api.Reward],
        seed: int,
        completes: bool = False,
    ) -> None:
        self.options, self.backbone, self.seed = options, backbone, seed
        self.scored = options.sampling if exact else api.Sampling(temperature=options.temperature)
        if not self.plain and not isinstance(backbone, KnowsSampling):
            raise UserError(
                "method.preset=fixed or method.exact=true needs a backbone that scores tokens under guidance "
                "and filters",
                fix="set method.cfg_scale=1, method.top_k=0 and method.top_p=1, or score the conditional "
                "model: method.preset=faithful or method.exact=false",
            )
        terms = parse_terms(options.rewards)
        self.weights = [weight for _, weight in terms]
        self.rewards = {spec: reward(spec) for spec, _ in terms}
        self.sets = SetRewards(self.rewards)
        self.sets.check(completes, getattr(options, "redraws", 0))
        self._cards = Counter(parse_spec(spec).name for spec, _ in terms)

    def draw(self, batch: api.Batch, step: int, group_size: int, redraws: int = 0) -> Groups:
        """Generate `group_size` images of each condition and score them; flat groups are drawn again."""
        failures: Counter[str] = Counter()
        drawn, again = groups.draw(
            lambda rows, tag: self._sample(batch, step, rows, tag, group_size, failures),
            lambda drawn: groups.is_flat(*_scores(drawn)),
            redraws,
        )
        condition = batch.condition.repeat(group_size)
        tokens, logprobs = drawn["tokens"].flatten(0, 1), drawn["logprobs"].flatten(0, 1)
        features = self.sets.features_in(drawn)
        return Groups(condition, tokens, logprobs, *_scores(drawn), again, failures, features)

    def collected(
        self, experience: object, drawn: Groups, metrics: dict[str, Tensor], images: int
    ) -> api.Collected:
        """Say what was collected and what it cost."""
        return api.Collected(
            experience,
            metrics=metrics,
            images=images,
            sequences=drawn.sequences,
            tokens=drawn.sequences * drawn.tokens.shape[-1],
            reward_calls={card: times * drawn.sequences for card, times in self._cards.items()},
            reward_failures=drawn.reward_failures,
        )

    def metrics(self, scored: Scored) -> dict[str, Tensor]:
        """What the log says of the scores; terms behind those of the rewards are left out."""
        values, valid = scored.values[: len(self.rewards)], scored.valid[: len(self.rewards)]
        mean, std, _ = describe(*combine_raw(values, valid, self.weights))
        metrics = {"reward": mean, "reward_std": std}
        for name, value, mask in zip(short_names(list(self.rewards)).values(), values, valid, strict=True):
            metrics |= described(name, value, mask)
        return metrics

    @property
    def plain(self) -> bool:
        """Whether `logits` are those of the conditional model itself."""
        return self.scored.cfg_scale == 1.0 and self.scored.top_k == 0 and self.scored.top_p == 1.0

    @property
    def temperature(self) -> float:
        """What `logits` still have to be divided by."""
        return self.options.temperature if self.plain else 1.0

    def logits(self, backbone: api.Backbone, condition: api.Condition, tokens: Tensor) -> Tensor:
        """Teacher-forced logits [N, T, V] without dropout for tokens [N, T]; see `exact`."""
        if self.plain:
            return eval_logits(backbone, condition, tokens[:, :-1])
        assert isinstance(backbone, KnowsSampling)
        with mode(backbone.policy, training=False):
            return backbone.sampled_logits(condition, tokens, self.scored)

    def logprobs(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """[N, T, V] logits and [N, T] tokens → [N, T]."""
        return policy_gradient.token_logprobs(logits, tokens.unsqueeze(1), self.temperature).squeeze(1)

    def _sample(
        self,
        batch: api.Batch,
        step: int,
        rows: groups.Rows,
        tag: str,
        group_size: int,
        failures: Counter[str],
    ) -> groups.Samples:
        """Generate and score some groups: tokens and logprobs [B, G, T], values and valid [B, G, K]."""
        index = batch.index[rows]
        condition = groups.pick(batch.condition, rows).repeat(group_size)
        numbers = randomness.uniforms(
            self.seed, f"ar-grpo-token{tag}", step, index.tolist(), (group_size, self.backbone.num_tokens)
        )
        uniforms = torch.from_numpy(numbers).flatten(0, 1).to(index.device)
        rollout = self.backbone.generate(condition, uniforms, self.options.sampling)
        places = range(len(batch))[rows] if isinstance(rows, slice) else rows
        asked = [batch.prompts[place].metadata for place in places] if batch.prompts else []
        entries = [entry for entry in asked for _ in range(group_size)]
        images = self._decode(rollout.tokens)
        features = self.sets.features(images)
        request = api.ScoreRequest(
            images=images,
            group=index.repeat_interleave(group_size),
            labels=condition.ids if isinstance(condition, api.ClassLabels) else None,
            texts=condition.texts,
            metadata={"prompt": entries} if entries else {},
        )
        scores = [
            unsettled(features[f"{FEATURES}{spec}"]) if spec in self.sets.rewards else reward.score(request)
            for spec, reward in self.rewards.items()
        ]
        for spec, score in zip(self.rewards, scores, strict=True):
            failures[parse_spec(spec).name] += int((~score.valid).sum())
        drawn = {"tokens": rollout.tokens, "logprobs": rollout.logprobs}
        drawn["values"] = torch.stack([score.values for score in scores], dim=-1)
        drawn["valid"] = torch.stack([score.valid for score in scores], dim=-1)
        drawn |= features
        return {name: part.unflatten(0, (len(index), group_size)) for name, part in drawn.items()}

    def _decode(self, tokens: Tensor) -> Tensor:
        """[N, T] codes → [N, 3, H, W], 0 black and 1 white, not clamped; `decode_batch` at a time."""
        pieces = [
            self.backbone.tokenizer.decode(piece, self.backbone.grid)
            for piece in tokens.split(self.options.decode_batch)
        ]
        return (torch.cat(pieces) + 1) / 2


def _scores(drawn: groups.Samples) -> tuple[list[Tensor], list[Tensor]]:
    """Values and valid, [B, G], of each reward."""
    return list(drawn["values"].unbind(-1)), list(drawn["valid"].unbind(-1))
