"""Inception Score (arXiv:1606.03498) of any classifier, in the conventions in use.

The score depends on how rows are cut into parts and in which order they come: a set sorted by class
scores a fraction of the same set shuffled. Both are therefore named by the caller.
"""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np

from alignbench.errors import UserError
from alignbench.metrics.arrays import as_rows, require

Order = Literal["shuffled", "in-order"]


def inception_score(
    logits: np.ndarray, *, splits: int = 10, order: Order, seed: int, split_size: int = 0
) -> tuple[float, float]:
    """Return mean and population standard deviation over parts of exp(mean KL(p(y|x) ‖ p(y))).

    Args:
        logits: [N, C], any float type; computed in float64.
        splits: number of parts, cut at floor(i·N/splits) (torch-fidelity); not used with `split_size`.
        order: "shuffled" permutes the rows with numpy's `RandomState(seed)` first (torch-fidelity's seed
            is 2020); "in-order" takes them as they come (ADM).
        split_size: > 0 takes consecutive parts of this many rows instead; a short last part counts like
            the others (ADM: 5000).

    Raises:
        UserError: fewer rows than parts, or a value that is not finite.
    """
    shifted = as_rows(logits, what="logits").numpy()
    shifted -= shifted.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return _score(np.exp(log_p), log_p, splits=splits, order=order, seed=seed, split_size=split_size)


def inception_score_of_probabilities(
    probabilities: np.ndarray, *, splits: int = 10, order: Order, seed: int, split_size: int = 0
) -> tuple[float, float]:
    """Return the same from [N, C] rows of probabilities, each summing to 1; exact zeros count as 0·log 0 = 0.

    Raises:
        UserError: fewer rows than parts, or a value that is negative or not finite.
    """
    p = as_rows(probabilities, what="probabilities").numpy()
    if (p < 0).any():
        raise UserError("probabilities: negative values", fix="pass rows after the softmax")
    log_p = np.log(np.where(p > 0, p, 1.0))
    return _score(p, log_p, splits=splits, order=order, seed=seed, split_size=split_size)


def _score(
    p: np.ndarray, log_p: np.ndarray, *, splits: int, order: Order, seed: int, split_size: int
) -> tuple[float, float]:
    count = len(p)
    if splits < 1 or split_size < 0:
        raise ValueError(f"{splits} splits of size {split_size}")
    require(count, 1 if split_size else splits, what="images", why=f"a score over {splits} parts")
    rows = np.arange(count)
    if order == "shuffled":
        rows = np.random.RandomState(seed).permutation(count)
    if split_size:
        edges = [*range(0, count, split_size), count]
    else:
        edges = [part * count // splits for part in range(splits + 1)]
    scores = [_part(p[rows[a:b]], log_p[rows[a:b]]) for a, b in itertools.pairwise(edges)]
    return float(np.mean(scores)), float(np.std(scores))


def _part(p: np.ndarray, log_p: np.ndarray) -> float:
    marginal = p.mean(axis=0)
    # A class that no row has any probability of adds nothing.
    log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))
    divergence = np.where(p > 0, p * (log_p - log_marginal), 0.0).sum(axis=1)
    return float(np.exp(divergence.mean()))
