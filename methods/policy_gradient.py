"""Shared by methods: the pure maths of advantages, log-probabilities, surrogate, KL, prior and noise.

Everything here is a function of its arguments: no module state, no random generator, no device.
Shapes: B rows of logits, G samples drawn from each row, T tokens, V codes. Log-probabilities and losses
keep the dtype of their input, except that half precision is raised to float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from alignbench import api

NoiseKernel = Literal["exclusive", "inclusive"]
Ratio = Literal["token", "sequence", "gspo", "cispo"]
Estimator = Literal["k1", "k2", "k3"]
Baseline = Literal["mean", "leave-one-out"]

STD_EPSILON = 1e-8
"""Added to a group's standard deviation."""
RELATIVE_SPREAD = 1e-6
"""A group whose scores differ by no more than this share of their mean carries no information."""


class Surrogate(NamedTuple):
    """The clipped policy loss and what it was made of."""

    ratio: Tensor
    """[..., T] probability of each token now over that when it was drawn; [..., 1]: of the sequence."""
    token_loss: Tensor
    """Of that shape, to be minimised."""
    sequence_loss: Tensor
    """[...], mean over the tokens."""
    clip_fraction: Tensor
    """Scalar: share of ratios that are off 1 by more than the clip range."""


def group_advantages(
    rewards: Tensor,
    *,
    valid: Tensor | None = None,
    epsilon: float = STD_EPSILON,
    baseline: Baseline = "mean",
    divide: bool = True,
) -> Tensor:
    """Normalise rewards [B, G] within each group: (r − mean) / (unbiased std + epsilon), in their dtype.

    `leave-one-out` subtracts the mean of the others instead (RLOO, arXiv:2402.14740): n/(n−1) times the same.
    Without `divide` that difference is all there is (Dr. GRPO, arXiv:2503.20783).

    Computed in float64. A group whose spread is at most 1e-6 of its mean gives exactly 0: there the float32
    formula returns rounding error divided by 1e-8 (about 0.6 for every sample), not a signal. Scores that
    are not valid, [B, G] bool, are left out of the statistics and get 0; so do groups with fewer than two
    valid ones. Epsilon is 1e-8 in VA-π, 1e-4 in AR-GRPO.
    """
    scores = rewards.double()
    valid = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid.bool()
    count = valid.sum(dim=-1, keepdim=True)
    mean = scores.where(valid, 0.0).sum(dim=-1, keepdim=True) / count.clamp(min=1)
    centred = (scores - mean).where(valid, 0.0)
    std = (centred.square().sum(dim=-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    highest = scores.where(valid, -torch.inf).amax(dim=-1, keepdim=True)
    lowest = scores.where(valid, torch.inf).amin(dim=-1, keepdim=True)
    flat = (count < 2) | (highest - lowest <= RELATIVE_SPREAD * mean.abs())
    if baseline == "leave-one-out":
        centred = centred * count / (count - 1).clamp(min=1)
    scaled = centred / (std + epsilon) if divide else centred
    return scaled.masked_fill(flat, 0.0).to(rewards.dtype)


@dataclass(frozen=True)
class UnscaledAdvantages:
    """Advantages whose divisor, the spread of the whole step's scores, is not known yet."""

    terms: Tensor
    """[K, B, G], weighted, of K terms."""
    sums: dict[str, float]
    """Number, sum and sum of squares of each term's valid scores, to be added up over the step."""
    epsilon: float

    @classmethod
    def of(
        cls, terms: Tensor, values: Sequence[Tensor], valid: Sequence[Tensor], epsilon: float
    ) -> UnscaledAdvantages:
        sums = {}
        for number, (part, mask) in enumerate(zip(values, valid, strict=True)):
            kept = part.double()[mask]
            for power, total in enumerate((mask.sum(), kept.sum(), kept.square().sum())):
                sums[f"{number}/{power}"] = float(total)
        return cls(terms, sums, epsilon)

    def divided(self, sums: Mapping[str, float]) -> Tensor:
        """Advantages [B, G]: each term over its unbiased standard deviation in the step, summed."""
        scaled = []
        for number, term in enumerate(self.terms):
            count, total, squares = (sums[f"{number}/{power}"] for power in range(3))
            variance = max(squares - total * total / max(count, 1.0), 0.0) / max(count - 1, 1.0)
            scaled.append(term / (variance**0.5 + self.epsilon))
        return torch.stack(scaled).sum(dim=0)


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of tokens under softmax(logits / temperature), [B, G, T] in float32 or better.

    [B, T, V] float logits and [B, G, T] int64 tokens. All G samples of a row read the same logits; nothing of
    size [B, G, T, V] is made.
    """
    scaled = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if temperature != 1.0:
        scaled = scaled / temperature
    chosen = scaled.gather(-1, tokens.transpose(1, 2))
    return (chosen - scaled.logsumexp(dim=-1, keepdim=True)).transpose(1, 2)


def clipped_surrogate(
    new: Tensor,
    old: Tensor,
    advantages: Tensor,
    clip_range: float,
    advantage_clip: float,
    *,
    clip_range_high: float = 0.0,
    kind: Ratio = "token",
    token_weights: Tensor | None = None,
) -> Surrogate:
    """The PPO loss of each token, −min(ρ·A, clip(ρ, 1−ε, 1+ε_high)·A), averaged over those of a sequence.

    Log-probabilities [..., T] under the present policy and (treated as constant) when the tokens were
    drawn; one advantage for each sequence, [...], clamped here to ±`advantage_clip`. An ε_high of 0 means ε.
    ρ is the ratio of a token, or the product over a sequence (`sequence`: VA-π's Eq. 5 and 11 as printed), or
    the T-th root of that (`gspo`, arXiv:2507.18071). `cispo` (arXiv:2506.13585) is −min(ρ, 1+ε_high)·A·log π
    with a constant in place of the ratio, so that no token loses its gradient.

    Token weights [..., T] multiply the loss of each token; they keep their gradient, if any. A mean over some
    tokens alone has weights that were divided by their mean, as `token_weights.TokenWeights` does.

    Deviation: the released code of VA-π takes one ratio for each token, and so does the default here. On
    policy the gradient of the printed form is exactly T times that of the two others.
    """
    advantage = advantages.to(new.dtype).clamp(-advantage_clip, advantage_clip).unsqueeze(-1)
    log_ratio = new - old.detach()
    if kind in ("sequence", "gspo"):
        total = log_ratio.sum(dim=-1, keepdim=True)
        log_ratio = total if kind == "sequence" else total / new.shape[-1]
    ratio, high = log_ratio.exp(), clip_range_high or clip_range
    if kind == "cispo":
        token_loss = -ratio.detach().clamp(max=1 + high) * advantage * new
    else:
        token_loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_range, 1 + high) * advantage)
    if token_weights is not None:
        token_loss = token_loss * token_weights
    excess = ratio.detach() - 1
    outside = ((excess > high) | ((excess < -clip_range) & (kind != "cispo"))).to(new.dtype)
    return Surrogate(ratio, token_loss, token_loss.mean(dim=-1), outside.mean(dim=-1).mean())


def token_mean(values: Tensor, keep_mask: Tensor | None = None) -> Tensor:
    """Mean over the last axis, [..., T] → [...]; of kept tokens only (the first one if none is kept)."""
    if keep_mask is None:
        return values.mean(dim=-1)
    keep = keep_mask.bool().clone()
    keep[..., 0] |= ~keep.any(dim=-1)
    return values.where(keep, 0.0).sum(dim=-1) / keep.sum(dim=-1)


def kl_estimate(current_logp: Tensor, reference_logp: Tensor, estimator: Estimator = "k3") -> Tensor:
    """Estimate KL(current ‖ reference) for each token from d = log reference − log current. Any shape.

    k1 = −d, k2 = d²/2, k3 = e^d − d − 1 (http://joschu.net/blog/kl-approx.html). For tokens drawn from the
    current policy k1 and k3 are unbiased, k2 and k3 never negative. The expected gradient of the value itself
    is then 0 for k1, that of KL(current ‖ reference) for k2 and that of KL(reference ‖ current) for k3.
    """
    difference = reference_logp.detach() - current_logp
    if estimator == "k3":
        return difference.expm1() - difference
    return -difference if estimator == "k1" else difference.square() / 2


def prior_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """−log p(target) per position: logits [B, T, V], targets [B, T] int64 → [B, T] (VA-π Eq. 9).

    Entry t of the logits must be the prediction of target t, made before the policy has seen it.
    """
    return -token_logprobs(logits, targets.unsqueeze(1), 1.0).squeeze(1)


def corrupt(
    tokens: Tensor,
    rate: float | Tensor,
    kernel: NoiseKernel,
    *,
    num_codes: int,
    flip_uniforms: Tensor,
    replacement_uniforms: Tensor,
) -> Tensor:
    """Replace tokens by random ones, each with probability `rate` (VA-π Eq. 28-29).

    Args:
        tokens: [B, L] int64.
        rate: ξ in [0, 1], a number or [B, 1].
        kernel: `exclusive` draws from the other V−1 codes (paper); `inclusive` from all V codes (released
            code), so that only ξ(1 − 1/V) of the tokens really change.
        num_codes: V, at least 2.
        flip_uniforms: [B, L] in [0, 1); a token is replaced where it is below `rate`.
        replacement_uniforms: [B, L] in [0, 1); which code takes its place.
    """
    choices = num_codes - 1 if kernel == "exclusive" else num_codes
    replacement = (replacement_uniforms.double() * choices).long()
    if kernel == "exclusive":
        replacement = replacement + (replacement >= tokens).long()  # step over the true token
    return torch.where(flip_uniforms < rate, replacement, tokens)


@dataclass(frozen=True)
class Draws:
    """Sequences drawn from R rows of logits, S from each, with what the update must know of them."""

    tokens: Tensor
    """[R, S, T] int64."""
    logprobs: Tensor
    """[R, S, T] under the policy that drew them."""
    advantages: Tensor
    """[R, S]."""
    reference_logprobs: Tensor | None = None
    """[R, S, T] under the frozen reference; only for the KL prior."""
    unscaled: UnscaledAdvantages | None = None
    """What the advantages still have to be divided by."""

    def one_per_row(self, row: int) -> Draws:
        """The S draws of one row as S rows of one draw."""
        reference = self.reference_logprobs
        return Draws(
            self.tokens[row].unsqueeze(1),
            self.logprobs[row].unsqueeze(1),
            self.advantages[row].unsqueeze(1),
            None if reference is None else reference[row].unsqueeze(1),
        )


@dataclass(frozen=True, kw_only=True)
class Objective:
    """policy_weight · policy + prior_weight · prior, averaged over rows, draws and tokens."""

    policy_weight: float
    prior_weight: float
    clip_range: float
    advantage_clip: float
    temperature: float
    """Divides the logits in the ratio and the KL, not in the cross-entropy."""
    clip_range_high: float = 0.0
    """0: as `clip_range`."""
    ratio: Ratio = "token"
    kl_estimator: Estimator = "k3"

    def __call__(self, logits: Tensor, targets: Tensor, draws: Draws | None) -> api.Loss:
        """The loss of R rows: logits [R, T, V], clean tokens [R, T] int64; a row's S draws share its logits.

        Without draws it is the prior alone. With `reference_logprobs` the prior is an estimate of the
        divergence from the reference instead of the cross-entropy of the targets. Metrics: `policy_loss`,
        `clip_fraction`, `ratio_deviation` (mean |ρ − 1|) and the unweighted prior as `prior_loss`
        (cross-entropy) or `kl`.
        """
        value, metrics = logits.new_zeros(()), dict[str, Tensor]()
        reference = None
        if draws is not None:
            new = token_logprobs(logits, draws.tokens, self.temperature)
            surrogate = clipped_surrogate(
                new,
                draws.logprobs,
                draws.advantages,
                self.clip_range,
                self.advantage_clip,
                clip_range_high=self.clip_range_high,
                kind=self.ratio,
            )
            metrics["policy_loss"] = surrogate.sequence_loss.mean()
            metrics["clip_fraction"] = surrogate.clip_fraction
            metrics["ratio_deviation"] = (surrogate.ratio - 1).abs().mean()
            value = value + self.policy_weight * metrics["policy_loss"]
            reference = draws.reference_logprobs
        if reference is not None:
            prior = metrics["kl"] = kl_estimate(new, reference, self.kl_estimator).mean()
        else:
            prior = metrics["prior_loss"] = prior_cross_entropy(logits, targets).mean()
        value = value + self.prior_weight * prior
        return api.Loss(value, {name: metric.detach() for name, metric in metrics.items()})
