"""What a network computes, and how far float32 rounding alone carries it.

A golden number is one float32 evaluation of a function and ours is another. Where the function amplifies
rounding, two correct evaluations differ by more than the usual tolerance; the quantiser's entropy loss does,
which divides distances by a temperature of 0.01. How much is allowed there is measured: by the scatter of
float32 evaluations, with every weight moved by at most one unit in the last place, around the float64 value.
A wrong formula is wrong in float64 too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property, partial
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from alignbench.verify.golden_files import Alternative, GoldenFile

DRAWS = 3
"""Float32 evaluations with moved weights, besides the one with the weights as they are."""
FACTOR = 3.0
"""The official evaluation may lie this many times as far off as the farthest of ours."""

Module = TypeVar("Module", bound=nn.Module)


class Evaluations(Generic[Module]):
    """Named results of a module; those beyond the plain float32 ones are computed when first asked for."""

    def __init__(self, module: Module, compute: Callable[[Module], dict[str, Tensor]]) -> None:
        self._module, self._compute = module, compute
        self.single = compute(module)

    def compare(self, name: str, expected: GoldenFile, tensor: str = "") -> None:
        """Compare a result with a tensor, of its own name if no other is given."""
        expected.compare(tensor or name, self.single[name], otherwise=partial(self.exact, name))

    def exact(self, name: str) -> Alternative:
        """Return a result in float64."""
        distance = max(float((draw[name] - self._double[name]).abs().max()) for draw in self._draws)
        return Alternative(self._double[name], "in float64", FACTOR * distance)

    def exact_norm(self, name: str) -> Alternative:
        """Return a result's L2 norm in float64."""
        # By how much a norm is off is at most the norm of what the vector is off.
        distance = max(float((draw[name] - self._double[name]).norm()) for draw in self._draws)
        return Alternative(self._double[name].norm().reshape(1), "in float64", FACTOR * distance)

    @cached_property
    def _double(self) -> dict[str, Tensor]:
        return self._compute(copy.deepcopy(self._module).double())

    @cached_property
    def _draws(self) -> list[dict[str, Tensor]]:
        return [self.single, *(self._compute(_moved(self._module, seed)) for seed in range(DRAWS))]


@torch.no_grad()
def _moved(module: Module, seed: int) -> Module:
    """Return a copy with every weight moved by at most one unit in the last place."""
    moved = copy.deepcopy(module)
    generator = torch.Generator("cpu").manual_seed(seed)
    for parameter in moved.parameters():
        share = torch.rand(parameter.shape, generator=generator, device="cpu") * 2 - 1
        parameter.mul_(1 + share.to(parameter.device) * torch.finfo(torch.float32).eps)
    return moved
