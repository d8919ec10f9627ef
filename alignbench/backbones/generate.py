"""Drawing token sequences with a key/value cache, classifier-free guidance and filtered sampling.

Order of operations as in LlamaGen: guidance on float32 logits, temperature, top-k, top-p, draw. A token is
the inverse of the cumulative distribution at a given uniform number, so a sequence depends on its own
condition and numbers only, never on the batch it was drawn in.

Deviation: LlamaGen goes on computing the unconditional half after `cfg_interval` and throws it away; here
it is dropped, which changes no token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from alignbench.api import Condition, Rollout, Sampling
from alignbench.backbones.cuda_graphs import GraphedStep, graphed
from alignbench.randomness import inverse_cdf

MIN_TEMPERATURE = 1e-5


class CachedPolicy(Protocol):
    """A network that draws with a key/value cache; `gpt.GPT` is one. Only it knows what its cache is."""

    training: bool

    def train(self, mode: bool = True) -> Any: ...

    def null(self, condition: Condition) -> Condition:
        """Return as many null conditions, for classifier-free guidance."""
        ...

    def cache_for(self, condition: Condition, count: int) -> Any:
        """Return an empty cache for drawing `count` tokens: a list of entries with `keep(rows)`."""
        ...

    def prefill(self, condition: Condition, cache: Any) -> Tensor:
        """Read the conditions; returns logits of token 0, [N, V]."""
        ...

    def step(self, tokens: Tensor, condition: Condition, cache: Any) -> Tensor:
        """Feed one token per sequence, [N]; returns logits of the next one, [N, V]."""
        ...


@dataclass(frozen=True)
class Trace(Rollout):
    """A rollout with what led to it.

    Log-probabilities are those under the filtered distribution, also when greedy; -inf for a forced token
    that was filtered out.
    """

    logits: Tensor | None = None
    """[N, T, V] float32 after guidance and before the temperature, if kept."""


def filter_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """Apply temperature, top-k and top-p to [..., V] logits, out of place; removed codes become -inf.

    Codes tied with the k-th are kept, as is the code whose mass crosses p; the best code always stays.
    """
    logits = logits / max(sampling.temperature, MIN_TEMPERATURE)
    if sampling.top_k > 0:
        k = min(sampling.top_k, logits.shape[-1])
        threshold = logits.topk(k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if sampling.top_p < 1.0:
        # Not a stable sort: which of several equal codes at the edge stays is torch's choice, as in LlamaGen.
        ordered, order = logits.sort(dim=-1, descending=True)
        mass = ordered.softmax(dim=-1).cumsum(dim=-1)
        exceeded = mass > sampling.top_p
        # A code is removed if the codes before it already exceed p.
        remove = exceeded.roll(1, dims=-1)
        remove[..., 0] = False
        logits = logits.masked_fill(remove.scatter(-1, order, remove), -torch.inf)
    return logits


def sampled_logits(
    policy: Callable[[Condition, Tensor], Tensor],
    condition: Condition,
    null: Condition,
    tokens: Tensor,
    sampling: Sampling,
) -> Tensor:
    """Teacher-forced logits, [N, T, V], of the distributions that `generate_steps` drew tokens [N, T] from.

    After guidance, temperature and filters; removed codes are -inf. Differentiable. A code that was drawn
    stays in its distribution even if rounding, or an update since, has moved it over the edge of the top-k
    or top-p set: its log-probability is finite. The null conditions are used with guidance only.
    """
    context = tokens[:, :-1]
    if sampling.cfg_scale > 1.0:
        both = policy(condition.join(null), torch.cat([context, context]))
        logits, without = both.chunk(2)
        guided = without + sampling.cfg_scale * (logits - without)
        if sampling.cfg_interval >= 0:
            position = torch.arange(tokens.shape[1], device=tokens.device)[:, None]
            guided = torch.where(position <= sampling.cfg_interval + 1, guided, logits)
        logits = guided
    else:
        logits = policy(condition, context)
    drawn = tokens[..., None]
    unfiltered = logits.gather(-1, drawn) / max(sampling.temperature, MIN_TEMPERATURE)
    return filter_logits(logits, sampling).scatter(-1, drawn, unfiltered)


@torch.no_grad()
def generate_steps(
    gpt: CachedPolicy,
    condition: Condition,
    uniforms: Tensor,
    sampling: Sampling,
    *,
    forced: Tensor | None = None,
    keep_logits: bool = False,
) -> Trace:
    """Draw sequences token by token, dropout off; optionally keep the logits or follow forced tokens.

    Args:
        uniforms: [N, L] float in [0, 1), L ≤ T; the number of columns is the number of tokens drawn.
        forced: [N, L] int64 tokens to follow; negative: drawn here.
        keep_logits: whether to return the guided logits, N·L·V floats.
    """
    rows, count = uniforms.shape
    tokens = torch.empty(rows, count, dtype=torch.int64, device=uniforms.device)
    logprobs = torch.empty(rows, count, dtype=torch.float32, device=uniforms.device)
    kept = []
    with _evaluating(gpt):
        decoder = _Decoder(gpt, condition, count, sampling)
        for position in range(count):
            logits = decoder.logits(tokens[:, position - 1] if position else None)
            if keep_logits:
                kept.append(logits)
            filtered = filter_logits(logits, sampling)
            if sampling.greedy:
                chosen = filtered.argmax(dim=-1)
            else:
                chosen = inverse_cdf(filtered.softmax(dim=-1), uniforms[:, position, None])[:, 0]
            if forced is not None:
                given = forced[:, position].long()
                chosen = given.where(given >= 0, chosen)
            tokens[:, position] = chosen
            logprobs[:, position] = filtered.log_softmax(dim=-1).gather(-1, chosen[:, None])[:, 0]
    return Trace(tokens, logprobs, torch.stack(kept, dim=1) if keep_logits else None)


class _Decoder:
    """Feeds tokens and returns guided logits, [N, V]; knows which tokens are guided."""

    def __init__(self, gpt: CachedPolicy, condition: Condition, count: int, sampling: Sampling) -> None:
        self._gpt = gpt
        self._scale = sampling.cfg_scale
        self._rows = len(condition)
        self._position = 0
        self._guided = sampling.cfg_scale > 1.0
        self._last_guided = sampling.cfg_interval + 1 if sampling.cfg_interval >= 0 else count
        self._condition = condition.join(gpt.null(condition)) if self._guided else condition
        self._cache = gpt.cache_for(condition, count)
        self._steps = count - 1
        self._graphed: GraphedStep | None = None

    def logits(self, tokens: Tensor | None) -> Tensor:
        """Return the logits of the next token; `tokens` [N] are the ones just drawn, None at the start."""
        if self._guided and self._position > self._last_guided:
            self._drop_null_half()
        if tokens is None:
            logits = self._gpt.prefill(self._condition, self._cache)
            self._graphed = graphed(self._gpt, self._condition, self._cache, steps=self._steps)
        else:
            fed = torch.cat([tokens, tokens]) if self._guided else tokens
            if self._graphed is not None:
                logits = self._graphed(fed)
            else:
                logits = self._gpt.step(fed, self._condition, self._cache)
        self._position += 1
        if not self._guided:
            return logits
        conditional, null = logits.chunk(2)
        return null + self._scale * (conditional - null)

    def _drop_null_half(self) -> None:
        self._guided = False
        self._condition = self._condition.select(slice(0, self._rows))
        if self._graphed is not None:
            self._graphed.keep(self._rows)
            return
        for layer in self._cache:
            layer.keep(self._rows)


@contextlib.contextmanager
def _evaluating(gpt: CachedPolicy) -> Iterator[None]:
    """Switch dropout off for a block and restore the mode afterwards."""
    training = gpt.training
    gpt.train(False)
    try:
        yield
    finally:
        gpt.train(training)
