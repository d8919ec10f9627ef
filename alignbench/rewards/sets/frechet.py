"""Fréchet distances of Gaussians from raw moments, and what leaving one image out changes. All in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FLOOR = 1e-12
"""Added to variances under the root by the released program of arXiv:2603.23086."""
CHUNK = 2**26
"""Numbers of the matrices whose eigenvalues are taken at once: 512 MiB."""


class RawMoments(NamedTuple):
    """Raw moments."""

    first: Tensor
    """[..., D]."""
    second: Tensor
    """[..., D] of squares, or [..., D, D] of products."""


class Gaussian(NamedTuple):
    """What is compared with."""

    mean: Tensor
    """[D]."""
    covariance: Tensor
    """[D] variances, or [D, D]."""

    def to(self, device: torch.device) -> Gaussian:
        return Gaussian(self.mean.to(device), self.covariance.to(device))


# --- distances ------------------------------------------------------------------------------------


def diagonal_distance(real: Gaussian, moments: RawMoments) -> Tensor:
    """Return Σ (m − μ)² + (s − √(q − μ² + 1e-12))², [...]."""
    deviation = ((moments.second - moments.first.square()).clamp_min(0) + FLOOR).sqrt()
    gaps = (real.mean - moments.first).square() + (real.covariance.sqrt() - deviation).square()
    return gaps.sum(dim=-1)


def full_distance(real: Gaussian, moments: RawMoments) -> Tensor:
    """Return |m − μ|² + tr S + tr C − 2 tr (Rᵀ C R)^½ of one pair of moments, R Rᵀ = S."""
    covariance = moments.second - torch.outer(moments.first, moments.first)
    root = matrix_root(real.covariance)
    cross = roots(torch.linalg.eigvalsh(root.T @ covariance @ root)).sum()
    gap = (real.mean - moments.first).square().sum()
    return gap + real.covariance.trace() + covariance.trace() - 2 * cross


def matrix_root(covariance: Tensor) -> Tensor:
    """[D, D] covariance S → R with R Rᵀ = S."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * roots(values)
    return root


def roots(values: Tensor) -> Tensor:
    """Square roots of eigenvalues [..., D] in ascending order; rounding of the largest counts as 0."""
    floor = values[..., -1:].clamp_min(0) * values.shape[-1] * torch.finfo(values.dtype).eps
    return values.where(values > floor, 0.0).sqrt()


# --- leaving one out ------------------------------------------------------------------------------


class SetMoments(NamedTuple):
    """The images of a step, and the running pair."""

    images: Tensor
    """Their number n, a float64 scalar."""
    sums: RawMoments
    """Of features and their squares or products."""
    running: RawMoments | None
    decay: float

    def mixed(self, sums: RawMoments, count: Tensor) -> RawMoments:
        """Mix what `count` images come to with the running pair."""
        first, second = (part / count for part in sums)
        if self.running is None:
            return RawMoments(first, second)
        a = self.decay
        old = self.running
        return RawMoments(a * old.first + (1 - a) * first, a * old.second + (1 - a) * second)

    @property
    def whole(self) -> RawMoments:
        return self.mixed(self.sums, self.images)


def diagonal_credit(real: Gaussian, features: Tensor, step: SetMoments) -> Tensor:
    """[N, D] features of images of the step → [N]."""
    left = RawMoments(step.sums.first - features, step.sums.second - features.square())
    without = diagonal_distance(real, step.mixed(left, step.images - 1))
    return without - diagonal_distance(real, step.whole)


def full_credit(real: Gaussian, features: Tensor, step: SetMoments, *, linear: bool = False) -> Tensor:
    """[N, D] → [N]; the covariance without an image is one matrix for all less two of rank one.

    Without image f, the mean of products is B − w·ffᵀ, w = (1 − a)/(n − 1), with a B that is the same for all
    images; so the symmetric product is RᵀBR − w·gg' − hh', g = Rᵀf and h = Rᵀ of the mean without f. Its
    eigenvalues cost about 4/3·D³ operations an image.

    Args:
        linear: take the derivative of the root's trace in place of its difference: D² operations an image, an
            error of the order of 1/n in the share of the credit that is the covariance's.
    """
    whole, a = step.whole, step.decay if step.running is not None else 0.0
    weight = (1 - a) / (step.images - 1)
    base = step.mixed(step.sums, step.images - 1).second
    mean = step.mixed(RawMoments(step.sums.first - features, step.sums.second), step.images - 1).first
    gap = (real.mean - mean).square().sum(dim=-1) - (real.mean - whole.first).square().sum()
    traces = base.trace() - weight * features.square().sum(dim=-1) - mean.square().sum(dim=-1)
    covariance = whole.second - torch.outer(whole.first, whole.first)
    root = matrix_root(real.covariance)
    values, vectors = torch.linalg.eigh(root.T @ covariance @ root)
    middle = root.T @ base @ root
    g, h = features @ root, mean @ root
    if linear:
        inverse = roots(values).reciprocal()
        slope = vectors * inverse.where(inverse.isfinite(), 0.0) @ vectors.T

        def along(rows: Tensor) -> Tensor:
            form: Tensor = ((rows @ slope) * rows).sum(dim=-1)
            return form

        now = roots(values).sum()  # of slope times the whole's product
        moved = (slope * middle).sum() - weight * along(g) - along(h) - now
        cross = moved / 2
    else:
        cross = _cross(middle, g * weight.sqrt(), h) - roots(values).sum()
    credit: Tensor = gap + traces - covariance.trace() - 2 * cross
    return credit


def _cross(middle: Tensor, *rows: Tensor) -> Tensor:
    """tr (middle − Σ rr')^½ for each row r of some [N, D], a few matrices at a time."""
    size = max(1, CHUNK // middle.numel())
    found = []
    for pieces in zip(*(part.split(size) for part in rows), strict=True):
        products = middle - sum(piece[:, :, None] * piece[:, None, :] for piece in pieces)
        found.append(roots(torch.linalg.eigvalsh(products)).sum(dim=-1))
    return torch.cat(found)
