"""Kernel distance (KID, arXiv:1801.01401): unbiased squared MMD with a cubic kernel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from alignbench.metrics.arrays import Device, as_rows, require


def kernel_distance(
    generated: np.ndarray,
    real: np.ndarray,
    *,
    subsets: int,
    subset_size: int,
    seed: int,
    device: Device = None,
) -> tuple[float, float]:
    """Return mean and population standard deviation over random subsets of both sets.

    Conventions of torch-fidelity: kernel (x·y/D + 1)³; subsets drawn without replacement with numpy's
    `RandomState(seed)`, first of the generated, then of the real rows.

    Args:
        generated, real: [N, D] and [M, D], any float type; computed in float64.
        subsets: how many pairs of subsets.
        subset_size: rows of each, ≥ 2.
        seed: of the draws.
        device: where the kernels are computed.

    Raises:
        ValueError: sets of different width, no subsets, or subsets of one row.
        UserError: fewer rows than a subset needs, or a value that is not finite.
    """
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"{subsets} subsets of {subset_size} rows")
    for rows, what in ((generated, "generated images"), (real, "real images")):
        require(len(rows), subset_size, what=what, why=f"a kernel distance over subsets of {subset_size}")
    ours, theirs = as_rows(generated, device), as_rows(real, device)
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"sets of {ours.shape[1]} and of {theirs.shape[1]} features")
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        drawn = [
            rows[torch.from_numpy(rng.choice(len(rows), subset_size, replace=False)).to(rows.device)]
            for rows in (ours, theirs)
        ]
        values.append(_mmd(*drawn))
    return float(np.mean(values)), float(np.std(values))


def _mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of two [m, D] sets."""
    m = len(x)
    within = sum(float(k.sum() - k.diagonal().sum()) for k in (_kernel(x, x), _kernel(y, y)))
    return within / (m * (m - 1)) - 2 * float(_kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
