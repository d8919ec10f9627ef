"""Sums over what the ranks of a run bring: numbers and tensors in one exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

Sum = float | Tensor
"""What can be added up; tensors as float64."""
Summed = TypeVar("Summed", bound=Sum)


def flatten(
    values: Mapping[str, Summed], device: torch.device
) -> tuple[Tensor, Callable[[Tensor], dict[str, Summed]]]:
    """Put values into one float64 vector on a device, and return how it becomes {name: value} again.

    Numbers come back as numbers, tensors in their shapes on the device that they came from.
    """
    tensors = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()}
    sizes = [tensor.numel() for tensor in tensors.values()]

    def restore(flat: Tensor) -> dict[str, Summed]:
        found: dict[str, Summed] = {}
        for (name, value), piece in zip(values.items(), flat.split(sizes), strict=True):
            found[name] = (
                piece.view(value.shape).to(value.device) if isinstance(value, Tensor) else piece.item()
            )
        return found

    return torch.cat([tensor.flatten().to(device) for tensor in tensors.values()]), restore
