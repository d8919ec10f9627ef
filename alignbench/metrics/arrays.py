"""Input of the metrics: copied to float64 on the device, or refused if nothing can be computed from it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from alignbench.errors import UserError

Device = torch.device | str | None
"""Where the heavy part runs; None: the CPU. It must know float64."""


def as_rows(rows: np.ndarray, device: Device = None, *, what: str = "features") -> Tensor:
    """Copy an [N, D] array of any number type to float64 on a device.

    Raises:
        ValueError: not two-dimensional.
        UserError: a value is not finite.
    """
    if rows.ndim != 2:
        raise ValueError(f"{what} must be [N, D], not {list(rows.shape)}")
    return _finite(rows, device, what)


def as_moments(mean: np.ndarray, cov: np.ndarray, device: Device = None) -> tuple[Tensor, Tensor]:
    """Copy a mean [D] and a covariance [D, D] to float64 on a device.

    Raises:
        ValueError: shapes that do not fit together.
        UserError: a value is not finite.
    """
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise ValueError(f"a mean {list(mean.shape)} and a covariance {list(cov.shape)} do not fit together")
    return _finite(mean, device, "mean"), _finite(cov, device, "covariance")


def require(count: int, minimum: int, *, what: str, why: str) -> None:
    """Refuse an estimate from too few rows.

    Raises:
        UserError: `count < minimum`.
    """
    if count < minimum:
        raise UserError(f"{count} {what}: {why} needs at least {minimum}", fix="use more images")


def _finite(array: np.ndarray, device: Device, what: str) -> Tensor:
    tensor = torch.from_numpy(np.array(array, dtype=np.float64)).to(device or "cpu")
    if not bool(tensor.isfinite().all()):
        raise UserError(f"{what}: not all numbers are finite", fix="look for broken images or weights")
    return tensor
