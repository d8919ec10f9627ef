"""The transform chain of a reward: `clip-score|scale(5)|clip(0,1)`. Pure functions of raw scores.

All keep the shape, and leave NaN (no score) as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignbench.errors import UserError, suggest

Transforms = Sequence[tuple[str, tuple[float, ...]]]
"""(name, arguments) in the order of application."""


def scale(values: Tensor, factor: float) -> Tensor:
    """Multiply by a factor other than 0."""
    if factor == 0:
        raise ValueError("a factor of 0 makes all scores equal")
    return values * factor


def clip(values: Tensor, low: float, high: float) -> Tensor:
    """Limit to [low, high]."""
    if low >= high:
        raise ValueError(f"{low:g} is not below {high:g}")
    return values.clamp(low, high)


def quantise(values: Tensor, step: float) -> Tensor:
    """Round to the nearest multiple of a step above 0; halves go to the even multiple."""
    if step <= 0:
        raise ValueError("the step must be above 0")
    return (values / step).round() * step


def levels(values: Tensor, *numbers: float) -> Tensor:
    """Replace scores by levels: `levels(l0, e1, l1, e2, l2, …)` gives l0 below e1, l1 from e1 up to e2, ….

    AR-GRPO's map of a cosine (arXiv:2508.06924) is `levels(-1, 0, 0.5, 0.3, 1, 0.6, 1.5)`.
    """
    edges, steps = list(numbers[1::2]), values.new_tensor(numbers[::2])
    if len(numbers) < 3 or len(numbers) % 2 == 0 or edges != sorted(set(edges)):
        raise ValueError("give level, edge, level, … with rising edges")
    level = torch.bucketize(values.detach(), values.new_tensor(edges), right=True)
    return steps[level].where(~values.isnan(), values)


@dataclass(frozen=True)
class Transform:
    """A function and what may be written in its parentheses."""

    apply: Callable[..., Tensor]
    arguments: int | None
    """How many numbers it takes; None: any."""
    smooth: bool = True
    """Its gradient is not zero almost everywhere."""


TRANSFORMS = {
    "scale": Transform(scale, 1),
    "shift": Transform(torch.add, 1),
    "negate": Transform(torch.neg, 0),
    "clip": Transform(clip, 2),
    "quantise": Transform(quantise, 1, smooth=False),
    "levels": Transform(levels, None, smooth=False),
}


def check(transforms: Transforms) -> None:
    """Raise UserError if a transform is unknown or cannot take its numbers."""
    for name, numbers in transforms:
        if name not in TRANSFORMS:
            hint = suggest(name, TRANSFORMS)
            raise UserError(f"no transform named {name!r}.{hint}", fix=f"there are {', '.join(TRANSFORMS)}")
        wanted = TRANSFORMS[name].arguments
        if wanted is not None and len(numbers) != wanted:
            raise UserError(f"transform {name} takes {wanted} numbers, not {len(numbers)}")
        try:
            TRANSFORMS[name].apply(torch.zeros(1), *numbers)
        except ValueError as error:
            raise UserError(f"transform {name}({', '.join(f'{n:g}' for n in numbers)}): {error}") from error


def apply(transforms: Transforms, values: Tensor) -> Tensor:
    """Apply a checked chain from left to right."""
    for name, numbers in transforms:
        values = TRANSFORMS[name].apply(values, *numbers)
    return values


def smooth(transforms: Transforms) -> bool:
    """Whether gradients pass through the whole chain."""
    return all(TRANSFORMS[name].smooth for name, _ in transforms)
