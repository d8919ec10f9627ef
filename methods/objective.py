"""The loss on sequences drawn from one set of logits: clipped policy gradient plus a prior (VA-π Eq. 11)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from alignbench import api
from alignbench.methods import policy_gradient


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

    def __call__(self, logits: Tensor, targets: Tensor, draws: Draws | None) -> api.Loss:
        """The loss of R rows; all S draws of a row share its logits.

        Args:
            logits: [R, T, V].
            targets: [R, T] int64, clean tokens.
            draws: R rows, or None for the prior alone. With `reference_logprobs` the prior is the k3
                estimate of the divergence from the reference instead of the cross-entropy of the targets.

        Returns:
            Metrics: `policy_loss`, `clip_fraction`, `ratio_deviation` (mean |ρ − 1|) and the unweighted
            prior as `prior_loss` (cross-entropy) or `kl`.
        """
        value, metrics = logits.new_zeros(()), dict[str, Tensor]()
        reference = None
        if draws is not None:
            new = policy_gradient.token_logprobs(logits, draws.tokens, self.temperature)
            surrogate = policy_gradient.clipped_surrogate(
                new, draws.logprobs, draws.advantages, self.clip_range, self.advantage_clip
            )
            metrics["policy_loss"] = surrogate.sequence_loss.mean()
            metrics["clip_fraction"] = surrogate.clip_fraction
            metrics["ratio_deviation"] = (surrogate.ratio - 1).abs().mean()
            value = value + self.policy_weight * metrics["policy_loss"]
            reference = draws.reference_logprobs
        if reference is not None:
            prior = metrics["kl"] = policy_gradient.k3_kl(new, reference).mean()
        else:
            prior = metrics["prior_loss"] = policy_gradient.prior_cross_entropy(logits, targets).mean()
        value = value + self.prior_weight * prior
        return api.Loss(value, {name: metric.detach() for name, metric in metrics.items()})
