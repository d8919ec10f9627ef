"""Maximum mean discrepancy under a Gaussian kernel, without ever holding all kernel values."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from alignbench.metrics.arrays import Device, as_rows, require

BLOCK = 2048
"""Rows of each set whose kernel values are in memory together."""


def gaussian_mmd(
    generated: np.ndarray, real: np.ndarray, weights: np.ndarray, *, sigma: float, device: Device = None
) -> list[float]:
    """Return the squared discrepancy for each weighting of the generated rows, diagonals included.

    k̄xx + k̄yy − 2 k̄xy with k(a, b) = exp(−|a − b|² / 2σ²): the biased estimate (V-statistic) of Gretton et al.
    2012, eq. 5. Memory: the rows in float64, and a few blocks.

    Args:
        generated, real: [N, D] and [M, D], any float type.
        weights: [K, N], how often each generated row is taken; whole numbers ≥ 0. Ones: the plain value.

    Raises:
        ValueError: shapes that do not fit together, or sigma ≤ 0.
        UserError: an empty set, or a value that is not finite.
    """
    if not sigma > 0 or weights.shape[1:] != (len(generated),):
        raise ValueError(f"sigma {sigma}, weights {list(weights.shape)} of {len(generated)} rows")
    for rows, what in ((generated, "generated images"), (real, "real images")):
        require(len(rows), 1, what=what, why="a kernel distance")
    ours, theirs = as_rows(generated, device), as_rows(real, device)
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"sets of {ours.shape[1]} and of {theirs.shape[1]} features")
    shares = torch.from_numpy(np.asarray(weights, dtype=np.float64)).to(ours.device)
    shares /= shares.sum(dim=1, keepdim=True)
    even = ours.new_full((1, len(theirs)), 1 / len(theirs))
    within = _mean_kernel(ours, shares, ours, shares, sigma)
    between = _mean_kernel(ours, shares, theirs, even.expand(len(shares), -1), sigma)
    result: list[float] = (within + _mean_kernel(theirs, even, theirs, even, sigma) - 2 * between).tolist()
    return result


def _mean_kernel(a: Tensor, a_shares: Tensor, b: Tensor, b_shares: Tensor, sigma: float) -> Tensor:
    """Σij p_i q_j (k(a_i, b_j) − 1) for each pair of rows p [K, N], q [K, M] of the shares: [K] float64.

    One is taken off, which cancels between the three means: kernels are near 1, and their differences count.
    """
    total = a.new_zeros(len(a_shares))
    a_norms, b_norms = a.square().sum(dim=1), b.square().sum(dim=1)
    for top in range(0, len(a), BLOCK):
        rows, p = a[top : top + BLOCK], a_shares[:, top : top + BLOCK]
        # Blocks below the diagonal of a symmetric matrix are those above it.
        for left in range(top if a is b else 0, len(b), BLOCK):
            columns, q = b[left : left + BLOCK], b_shares[:, left : left + BLOCK]
            norms = a_norms[top : top + BLOCK, None] + b_norms[left : left + BLOCK]
            squared = norms.addmm_(rows, columns.T, alpha=-2).clamp_min_(0)
            if a is b and top == left:
                squared.fill_diagonal_(0)
            kernel = squared.mul_(-0.5 / sigma**2).expm1_()
            part = ((p @ kernel) * q).sum(dim=1)
            total += part if a is not b or top == left else 2 * part
    return total
