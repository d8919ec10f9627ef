"""Decoding steps of fixed shape, captured once as a CUDA graph and replayed.

A step of a large policy is thousands of small kernels, and launching them takes several times as long as
running them. Where every shape is fixed and the place in the sequence lies on the device, one step can be
recorded and replayed with a single launch. Only the form of the computation differs: attention runs over the
whole cache with a mask in place of its filled part.

Only on CUDA, only for policies that offer it (`FixedPolicy`), and not with ALIGNBENCH_CUDA_GRAPHS=0.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from alignbench.api import Condition
from alignbench.errors import RunFailed

SWITCH = "ALIGNBENCH_CUDA_GRAPHS"
"""Environment variable; 0 switches graphs off."""
WARM_UP = 2
"""Steps that run as they are, so that libraries have chosen and loaded their kernels before the capture."""
WORTHWHILE = 12
"""Steps below which a capture costs more than it saves."""


@dataclass
class CachePosition:
    """Where in a cache of fixed length the next key goes, and which places may be attended; on the device."""

    index: Tensor
    """[1] int64."""
    visible: Tensor
    """[N or 1, 1, 1, L] bool."""

    @classmethod
    def behind(cls, filled: int, length: int, hidden: Tensor | None, device: torch.device) -> CachePosition:
        """Continue after `filled` of `length` positions.

        Args:
            filled: places that hold a key.
            hidden: [N, S] bool, True where one of the first S places is padding; None: nowhere.
        """
        visible = torch.arange(length, device=device) < filled
        visible = visible.expand(1 if hidden is None else len(hidden), 1, 1, length).clone()
        if hidden is not None:
            visible[:, 0, 0, : hidden.shape[1]] &= ~hidden
        return cls(torch.full((1,), filled, device=device), visible)

    def bias(self, dtype: torch.dtype) -> Tensor:
        """Open the next place and return what to add to attention scores: 0 or -inf, [N or 1, 1, 1, L]."""
        self.visible.index_fill_(3, self.index, True)
        return torch.zeros_like(self.visible, dtype=dtype).masked_fill_(~self.visible, -torch.inf)

    def advance(self) -> None:
        """Go on to the next place."""
        self.index.add_(1)

    def keep(self, rows: int) -> None:
        """Forget all sequences but the first `rows`."""
        if len(self.visible) > 1:
            self.visible = self.visible[:rows]


@runtime_checkable
class FixedPolicy(Protocol):
    """A policy that can decode at fixed shapes."""

    def fix(self, condition: Condition, cache: Any) -> Any:
        """Return the state of a filled cache in fixed form, with `keep(rows)`; the cache lends its memory."""
        ...

    def fixed_step(self, tokens: Tensor, state: Any) -> Tensor:
        """Feed one token per sequence, [N], and change `state` in place; returns logits, [N, V].

        Every shape is the same each time, and nothing is read back from the device.
        """
        ...


class GraphedStep:
    """Calls `fixed_step`, from the third time on as a graph."""

    def __init__(self, policy: FixedPolicy, state: Any) -> None:
        self._policy, self._state = policy, state
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._tokens = torch.empty(0)
        self._logits = torch.empty(0)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Feed [N] tokens; returns logits, [N, V].

        Raises:
            RunFailed: the step cannot be captured.
        """
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._beside(tokens)
        if self._graph is None:
            self._capture(tokens)
        assert self._graph is not None
        self._tokens.copy_(tokens)
        self._graph.replay()
        return self._logits.clone()  # the next replay writes there again

    def keep(self, rows: int) -> None:
        """Forget all sequences but the first `rows`; the step is captured anew."""
        self._state.keep(rows)
        self._graph, self._calls = None, 0

    def _beside(self, tokens: Tensor) -> Tensor:
        """One step on a stream of its own, as torch asks for before a capture."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            logits = self._policy.fixed_step(tokens, self._state)
        current.wait_stream(side)
        logits.record_stream(current)
        return logits

    def _capture(self, tokens: Tensor) -> None:
        self._tokens = tokens.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may be busy with the device meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._logits = self._policy.fixed_step(self._tokens, self._state)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RunFailed(
                f"a decoding step cannot be captured as a CUDA graph: {str(error).splitlines()[0]}",
                fix=f"set {SWITCH}=0, which is slower, and run the same command again",
            ) from error
        self._graph = graph


def graphed(policy: object, condition: Condition, cache: Any, *, steps: int) -> GraphedStep | None:
    """Return a graphed step behind a filled cache, or None where plain steps are in order."""
    if steps < WORTHWHILE or os.environ.get(SWITCH) == "0" or not isinstance(policy, FixedPolicy):
        return None
    device = next(policy.parameters()).device  # type: ignore[attr-defined]
    return GraphedStep(policy, policy.fix(condition, cache)) if device.type == "cuda" else None
