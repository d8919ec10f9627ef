"""Weights of single tokens in a policy gradient: which tokens learn, and how much of the advantage.

A specification names factors, which are multiplied: `critical(0.1,0.1,0.1)*divergence(0.5)` is GCPO's.
Weights are normalised in each group, so that no micro-batch changes them.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from torch import Tensor

from alignbench.errors import UserError, suggest
from alignbench.methods.rollouts import Rollouts
from alignbench.methods.tokens.factors import FACTORS, Divergence, Factor
from alignbench.methods.tokens.signals import Need, Signals, Weights, check

WeightSum = Literal["selected", "weights", "tokens"]
_CALL = re.compile(r"([\w-]+)\s*(?:\(([^()]*)\))?")


@dataclass(frozen=True, kw_only=True)
class TokenOptions:
    """Options of the methods that look at single tokens."""

    token_weights: str
    weight_sum: WeightSum
    entropy_reward: float


@dataclass(frozen=True)
class TokenWeights:
    """A product of factors, scaled so that a plain mean over all tokens of a group is a weighted one.

    `weight_sum` says what the weighted policy losses of a group are divided by: `selected`, the number of
    tokens that selecting factors leave (GCPO); `weights`, the sum of the weights (STAGE); `tokens`, the
    number of all tokens. Divergences are divided by the number of selected tokens, or of all with `tokens`.
    Where all weights are 1 the three are the same, and change no bit.

    Deviation: STAGE adds 1e-6 to the sum of the weights; here a group without any weight has no loss.
    """

    factors: tuple[Factor, ...]
    weight_sum: WeightSum = "selected"

    @property
    def needs(self) -> set[Need]:
        """What the signals must hold."""
        return {need for factor in self.factors for need in factor.needs}

    def __call__(self, signals: Signals) -> Weights:
        """Return [B, G, T], scaled; `selected` is not."""
        parts = zip(*(factor(signals) for factor in self.factors), strict=True)
        policy, divergence, selected = (functools.reduce(operator.mul, part) for part in parts)
        size = policy[0].numel()
        counted = _sum(selected) if self.weight_sum != "tokens" else size
        total = _sum(policy) if self.weight_sum == "weights" else counted
        return Weights(policy * (size / total), divergence * (size / counted), selected)

    def now(self, signals: Signals, advantages: Tensor, logprobs: Tensor) -> Weights:
        """Return [B·G, T], with the final advantages [B·G] and present log-probabilities [B·G, T]."""
        shape = signals.logprobs.shape
        current = replace(signals, advantages=advantages.view(shape[:2]), current=logprobs.view(shape))
        return Weights(*(part.flatten(0, 1) for part in self(current)))


def _sum(weights: Tensor) -> Tensor:
    """Of each group, [B, G, T] → [B, 1, 1]; never 0."""
    return weights.sum(dim=(1, 2), keepdim=True).clamp(min=1e-6)


def build(options: TokenOptions, rollouts: Rollouts, *, ratio: str, referenced: bool) -> TokenWeights | None:
    """Read a specification and see that all it needs is there; None: all tokens are alike.

    Raises:
        UserError: it cannot be read, selects nothing, or contradicts another option.
    """
    text, weight_sum = options.token_weights, options.weight_sum
    if options.entropy_reward and not referenced:
        raise UserError(
            "method.entropy_reward compares with the starting model, which method.kl_weight=0 leaves out",
            fix="set method.kl_weight above 0",
        )
    if options.entropy_reward and rollouts.sets.rewards:
        raise UserError(
            "method.entropy_reward goes to the best of a group, which rewards of scope set leave open",
            fix="leave one of them out",
        )
    if not text:
        if weight_sum != "selected":
            raise UserError(
                "method.weight_sum changes nothing without weights", fix="set method.token_weights"
            )
        return None
    if ratio in ("sequence", "gspo"):
        raise UserError(
            f"method.token_weights weighs tokens, but method.ratio={ratio} has one for a sequence",
            fix="set method.ratio to token or cispo",
        )
    weights = TokenWeights(parse(text), weight_sum)
    tokens = rollouts.backbone.num_tokens
    if not all(factor.chosen(tokens) for factor in weights.factors):
        raise UserError(f"token weights {text!r} select none of {tokens} tokens", fix="raise a share")
    attached = any(isinstance(one, Divergence) and one.gradient == "attached" for one in weights.factors)
    if attached and weight_sum == "weights":
        raise UserError(
            "method.weight_sum=weights would take the gradient of an attached weight away again",
            fix="set method.weight_sum to selected or tokens",
        )
    check(weights.needs, rollouts, referenced)
    return weights


def parse(text: str) -> tuple[Factor, ...]:
    """`"critical(0.1,0.1,0.1)*divergence(0.5,gradient=attached)"` → its factors.

    Raises:
        UserError: not of that form, an unknown factor, one named twice, or a value it does not take.
    """
    found: dict[str, Factor] = {}
    for piece in text.split("*"):
        match = _CALL.fullmatch(piece.strip())
        if match is None:
            raise UserError(
                f"token weights {text!r}: cannot read {piece.strip()!r}",
                fix="write for example critical(0.1,0.1,0.1)*divergence(0.5)",
            )
        name, inside = match[1], match[2] or ""
        if name not in FACTORS:
            raise UserError(
                f"token weights {text!r}: there is no factor {name!r}.{suggest(name, FACTORS)}",
                fix=f"there are {', '.join(FACTORS)}",
            )
        if name in found:
            raise UserError(f"token weights {text!r}: {name} is named twice", fix="name each factor once")
        try:
            found[name] = _factor(
                FACTORS[name], [item.strip() for item in inside.split(",")] if inside.strip() else []
            )
        except ValueError as error:
            raise UserError(f"token weights {text!r}: {name}: {error}") from None
    return tuple(found.values())


def _factor(kind: Callable[..., Factor], items: list[str]) -> Factor:
    """Call a factor with what stands in its parentheses; ValueError: it does not take that."""
    options: dict[str, Any] = {field.name: field.default for field in fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for place, item in enumerate(items):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            if place >= len(options):
                raise ValueError(f"{item!r} is one value too many; it takes {', '.join(options) or 'none'}")
            key, value = list(options)[place], key
        if key not in options or key in given:
            raise ValueError(
                f"{item!r} is no option of it, or given twice; it takes {', '.join(options) or 'none'}"
            )
        given[key] = value if isinstance(options[key], str) else _number(value)
    return kind(**given)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise ValueError(f"{text!r} is not a finite number")
    return value
