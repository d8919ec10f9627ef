"""What training costs: images, sequences, tokens, calls of rewards and how many of them failed."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from alignbench.api import Collected, Method
from alignbench.training.parallel import Parallel
from alignbench.training.sums import Sum

COUNTED = ("images", "sequences", "tokens")


@dataclass(frozen=True)
class Costs:
    """Of one step, over all ranks."""

    counted: dict[str, int]
    """{name in `COUNTED`: number}."""
    calls: dict[str, int]
    """{reward: images scored}."""
    failures: dict[str, int]
    """{reward: images without a valid score}, by the same names."""

    def too_many_failures(self, limit: float) -> str:
        """Say which reward failed for more than a share of its images, or for all; empty: none did."""
        for name, failed in self.failures.items():
            calls = self.calls[name]
            if failed and (failed == calls or failed > limit * calls):
                return f"reward {name!r} gave no valid score for {failed} of {calls} images"
        return ""


@dataclass
class Totals:
    """What training cost so far, over all ranks and all resumptions."""

    seconds: float = 0.0
    images: int = 0
    sequences: int = 0
    tokens: int = 0
    reward_calls: dict[str, int] = field(default_factory=dict)
    reward_failures: dict[str, int] = field(default_factory=dict)
    """Images without a valid score; rewards that never failed are left out."""
    peak_memory_gib: float = 0.0
    resumed: int = 0
    """How often the training was started again, with or without a checkpoint."""

    def add(self, costs: Costs, peak_memory_gib: float) -> None:
        """Add a finished step."""
        for name, value in costs.counted.items():
            setattr(self, name, getattr(self, name) + value)
        self.reward_calls = dict(Counter(self.reward_calls) + Counter(costs.calls))
        self.reward_failures = dict(Counter(self.reward_failures) + Counter(costs.failures))
        self.peak_memory_gib = max(self.peak_memory_gib, peak_memory_gib)


def costs_of(collected: Sequence[Collected], parallel: Parallel) -> Costs:
    """Add up what was collected on all ranks; every rank must bring the same rewards."""
    counts: Counter[tuple[str, str]] = Counter()
    for part in collected:
        for name in COUNTED:
            counts["counted", name] += getattr(part, name)
        for name, calls in part.reward_calls.items():
            counts["calls", name] += calls
            counts["failures", name] += part.reward_failures.get(name, 0)
    summed = parallel.sum({"/".join(key): value for key, value in counts.items()})
    groups: dict[str, dict[str, int]] = {"counted": {}, "calls": {}, "failures": {}}
    for (group, name), value in zip(counts, summed.values(), strict=True):
        groups[group][name] = round(value)
    return Costs(**groups)


@runtime_checkable
class NeedsSums(Protocol):
    """A method whose losses depend on numbers of the whole step, added up between collecting and updating."""

    def sums(self, experience: object) -> Mapping[str, Sum]:
        """What to add up over micro-batches and ranks: the same names for each of them, or none at all."""

    def complete(self, experience: object, sums: Mapping[str, Sum]) -> object:
        """Return the experience with what the step's sums decide; not called if there are none.

        What it returns is asked for its `sums` again: those of what only the first sums decided.
        """


@runtime_checkable
class HasState(Protocol):
    """A method that remembers something from step to step; checkpoints hold it. Equal on all ranks."""

    def state(self) -> Mapping[str, Tensor]:
        """What a resumed run needs; may be empty. Tensors that are never changed in place."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state of `state`, on the CPU; LookupError or ValueError: it is not of this method."""

    def advance(self, sums: Mapping[str, Sum]) -> None:
        """Move on by one step; called once, after everything was completed with these sums."""


def complete(
    method: Method, collected: list[Collected], add: Callable[[Mapping[str, Sum]], Mapping[str, Sum]]
) -> list[Collected]:
    """Give a method that `NeedsSums` those of the step; `add` adds up over ranks."""
    if not isinstance(method, NeedsSums):
        return collected
    while own := _added(method, collected):
        sums = add(own)
        collected = [replace(part, experience=method.complete(part.experience, sums)) for part in collected]
        if isinstance(method, HasState):
            method.advance(sums)
    return collected


def state_of(method: Method) -> Mapping[str, Tensor]:
    """What a method remembers; most remember nothing."""
    return method.state() if isinstance(method, HasState) else {}


def load_state(method: Method, state: Mapping[str, Tensor]) -> None:
    """Give a method what it remembered; raises LookupError or ValueError: it is another method's."""
    if isinstance(method, HasState):
        method.load_state(state)
    elif state:
        raise ValueError(f"it remembers nothing, and there is {min(state)}")


def _added(method: NeedsSums, collected: Sequence[Collected]) -> dict[str, Sum]:
    """Add up over micro-batches."""
    own: dict[str, Sum] = {}
    for part in collected:
        for name, value in method.sums(part.experience).items():
            own[name] = own.get(name, 0.0) + value
    return own


def peak_memory_gib(device: torch.device) -> float:
    """Largest device memory allocated so far, or the process's largest resident size on CPU, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
