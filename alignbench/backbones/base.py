"""What backbones have in common whose policy draws with a key/value cache."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from alignbench.api import Condition, Rollout, Sampling, Tokenizer
from alignbench.backbones.generate import generate_steps, sampled_logits


class CachedBackbone:
    """An `api.Backbone` but for `text_condition`, over a `generate.CachedPolicy` with `recompute`."""

    def __init__(self, tokenizer: Tokenizer, policy: nn.Module, grid: tuple[int, int]) -> None:
        self.tokenizer: Any = tokenizer
        self.policy = policy
        """The bare policy, or a wrapper around it that training puts here."""
        self.grid = grid
        self.num_tokens = grid[0] * grid[1]
        # Square for every card; of a non-square grid this is the height.
        self.image_size = grid[0] * tokenizer.downsample
        self.adapter_off: Callable[[], contextlib.AbstractContextManager[None]] | None = None
        """Switches an adapter in the policy off for a block; None: there is none."""
        self._computing: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext

    def logits(self, condition: Condition, context: Tensor) -> Tensor:
        with self._computing():
            out: Tensor = self.policy(condition, context)
        return out

    def generate(self, condition: Condition, uniforms: Tensor, sampling: Sampling) -> Rollout:
        with self._computing():
            return generate_steps(unwrap(self.policy), condition, uniforms, sampling)

    def null(self, condition: Condition) -> Condition:
        """Return as many null conditions of the same shapes, those of classifier-free guidance."""
        null: Condition = unwrap(self.policy).null(condition)
        return null

    def sampled_logits(self, condition: Condition, tokens: Tensor, sampling: Sampling) -> Tensor:
        """Teacher-forced logits of the distributions that `generate` drew `tokens` [N, T] from, [N, T, V].

        After guidance, temperature and filters; see `generate.sampled_logits`.
        """
        null = self.null(condition)
        with self._computing():
            return sampled_logits(self.policy, condition, null, tokens, sampling)

    def recompute(self, enabled: bool) -> None:
        unwrap(self.policy).recompute = enabled

    def reference(self) -> Any:
        twin = copy.copy(self)
        if self.adapter_off is not None:  # the base is in there, frozen: no second copy
            twin._computing = self.adapter_off
            return twin
        twin.policy = copy.deepcopy(unwrap(self.policy)).eval().requires_grad_(False)
        return twin

    def export(self) -> dict[str, dict[str, Tensor]]:
        """Return {role: state dict} under the official key names: detached views, not copies."""
        return {"policy": unwrap(self.policy).state_dict(), "tokenizer": self.tokenizer.state_dict()}


def unwrap(module: nn.Module) -> Any:
    """Return the network inside DistributedDataParallel or another wrapper that keeps it as `.module`."""
    inner: Any = module
    while hasattr(inner, "module"):
        inner = inner.module
    return inner
