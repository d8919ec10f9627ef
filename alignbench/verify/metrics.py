"""Check the arithmetic of distribution metrics against golden numbers.

Cases are found by their arrays; sizes, neighbours, splits, seeds and chunks are read from the set, so other
sets of the same form work too. Everything is computed in float64.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import scipy.special

from alignbench.errors import UserError
from alignbench.metrics.frechet import frechet_distance
from alignbench.metrics.inception_score import Order, inception_score, inception_score_of_probabilities
from alignbench.metrics.moments import Moments, moments_of
from alignbench.metrics.precision_recall import precision_recall
from alignbench.verify.metrics_form import MetricNumbers
from alignbench.verify.report import CheckReport, MissingTensor

RELATIVE = 1e-9
"""Of Fréchet distances."""
SINGULAR = 1e-4
"""Absolute, where a covariance is singular: reference codes then take roots of rounded zeros."""
SHARE = 1e-6
"""Of shares that reference codes give in float32."""
HANDFUL = 3
"""Rows that may change sides in a reference code known to disagree."""
SCORE = 1e-10
"""Relative, of Inception Scores and of the spread of their parts, which is a difference of them."""
MEAN, COVARIANCE = 1e-9, 1e-7
"""Absolute, of streamed moments."""


def check(folder: Path) -> CheckReport:
    """Compare every number and every result array of a folder with `arrays.npz` and `expected.json`.

    Raises:
        UserError: a file that cannot be read.
    """
    report = CheckReport()
    golden = MetricNumbers(folder, report)
    for case in sorted(golden.cases):
        with report.part(case, partial(golden.left, f"{case}/", f"{case}.")):
            for inputs, compare in KINDS.items():
                if any(f"{case}.{name}" in golden.values for name in inputs):
                    compare(golden, case, *(golden.input(f"{case}.{name}") for name in inputs))
                    break
            else:
                raise UserError("no arrays of a form that is known here")
    golden.finish()
    return report


def _pair(golden: MetricNumbers, case: str, real: np.ndarray, generated: np.ndarray) -> None:
    """Fréchet distance, precision and recall of two sets of rows."""
    ours, theirs = Moments.of(generated), Moments.of(real)
    distance = frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)
    tolerance = _frechet_tolerance(distance, ours.covariance, theirs.covariance)
    if np.array_equal(real, generated):
        tolerance = max(tolerance, 1e-9)
    golden.compare(f"{case}/fid", distance, tolerance, needed=True)
    for code in ("torch_fidelity", "adm_sqrtm"):
        golden.compare(f"{case}/fid_{code}", distance, tolerance)
    for key, value in (("n_ref", len(real)), ("n_gen", len(generated)), ("dim", real.shape[1])):
        golden.compare(f"{case}/{key}", value)
    start = re.escape(case)
    forms = (rf"{start}/pr/(\d+)/.*", rf"{start}\.inside_(?:ref|gen)_manifold_k(\d+)")
    for k in sorted({int(match[1]) for form in forms for match in golden.matching(form)}):
        _manifold(golden, case, k, generated, real)


def _manifold(golden: MetricNumbers, case: str, k: int, generated: np.ndarray, real: np.ndarray) -> None:
    found = precision_recall(generated, real, k=k)
    prefix = f"{case}/pr/{k}"
    agree = golden.values.get(f"{prefix}/all_agree") is True
    tolerance = SHARE if agree else SHARE + HANDFUL / min(len(generated), len(real))
    results: dict[str, tuple[Any, float]] = {
        f"{prefix}/precision": (found.precision, 1e-12),
        f"{prefix}/recall": (found.recall, 1e-12),
        f"{prefix}/n_precise": (int(found.inside_real.sum()), 0.0),
        f"{prefix}/n_recalled": (int(found.inside_generated.sum()), 0.0),
        f"{prefix}/adm": ([found.precision, found.recall], tolerance),
        f"{prefix}/torch_fidelity": ([found.precision, found.recall], tolerance),
        f"{case}.inside_ref_manifold_k{k}": (found.inside_real, 0.0),
        f"{case}.inside_gen_manifold_k{k}": (found.inside_generated, 0.0),
    }
    for name, (value, allowed) in results.items():
        golden.compare(name, value, allowed)


def _moments(golden: MetricNumbers, case: str, *moments: np.ndarray) -> None:
    """Fréchet distance of given moments."""
    distance = frechet_distance(*moments)
    tolerance = _frechet_tolerance(distance, moments[1], moments[3])
    golden.compare(f"{case}/frechet", distance, tolerance, needed=True)
    for name in ("frechet_60_digits", "adm", "torch_fidelity"):
        golden.compare(f"{case}/{name}", distance, tolerance)
    golden.compare(f"{case}/dim", len(moments[0]))


def _stream(golden: MetricNumbers, case: str, rows: np.ndarray, sizes: np.ndarray) -> None:
    """Moments of rows that come in pieces."""
    if sizes.sum() != len(rows):
        raise ValueError(f"pieces of {int(sizes.sum())} rows in all, {len(rows)} rows")
    edges = itertools.pairwise([0, *np.cumsum(sizes)])
    found = moments_of(rows[start:stop] for start, stop in edges)
    golden.compare(f"{case}.mu", found.mean, MEAN, needed=True)
    golden.compare(f"{case}.sigma", found.covariance, COVARIANCE, needed=True)
    golden.compare(f"{case}/n", found.count)
    golden.compare(f"{case}/dim", rows.shape[1])


def _score(golden: MetricNumbers, case: str, logits: np.ndarray, probabilities: np.ndarray) -> None:
    """Inception Scores, from logits and from the same rows as probabilities."""
    softmax = scipy.special.softmax(logits, axis=1)
    if softmax.shape != probabilities.shape or np.abs(softmax - probabilities).max() > 1e-12:
        raise ValueError(f"{case}.probs is not the softmax of {case}.logits")
    golden.compare(f"{case}/n", len(logits))
    golden.compare(f"{case}/classes", logits.shape[1])
    names = {match[1] for match in golden.matching(rf"{re.escape(case)}/({'|'.join(SCORES)})(/.*)?")}
    if not names:
        raise MissingTensor(golden.row(f"{case}/torch_fidelity_*"))
    for name in sorted(names):
        how = _convention(golden, case, name)
        mean, spread = inception_score(logits, **how)
        also_mean, also_spread = inception_score_of_probabilities(probabilities, **how)
        for key in ("", "/mean"):
            golden.compare(f"{case}/{name}{key}", mean, SCORE * mean, also=also_mean)
        for key in ("/std", "/std_of_chunks"):
            golden.compare(f"{case}/{name}{key}", spread, SCORE * spread + 1e-14 * mean, also=also_spread)
        if how["split_size"]:
            golden.compare(f"{case}/{name}/n_chunks", -(-len(logits) // how["split_size"]))


SCORES = (
    r"torch_fidelity_\d+_shuffled_seed\d+",
    r"torch_fidelity_\d+_in_order",
    r"adm_chunks_in_order",
    r"adm_default_split_\d+",
)


class Convention(TypedDict):
    """Arguments of an Inception Score."""

    splits: int
    order: Order
    seed: int
    split_size: int


def _convention(golden: MetricNumbers, case: str, name: str) -> Convention:
    """Read from its name how a score was made."""
    numbers = [int(digits) for digits in re.findall(r"\d+", name)]
    if name.startswith("adm"):
        size = numbers[0] if numbers else golden.setting(f"{case}/adm_split_size")
        return {"splits": 1, "order": "in-order", "seed": 0, "split_size": size}
    order: Order = "in-order" if name.endswith("in_order") else "shuffled"
    return {"splits": numbers[0], "order": order, "seed": numbers[-1], "split_size": 0}


def _frechet_tolerance(distance: float, cov_one: np.ndarray, cov_two: np.ndarray) -> float:
    traces = float(np.trace(cov_one) + np.trace(cov_two))
    if min(np.linalg.matrix_rank(cov, hermitian=True) for cov in (cov_one, cov_two)) < len(cov_one):
        return max(SINGULAR, 1e-6 * traces)
    # Below the last digits of the traces, float64 knows nothing of their difference.
    return RELATIVE * abs(distance) + 1e-12 * traces


KINDS: dict[tuple[str, ...], Callable[..., None]] = {
    ("ref", "gen"): _pair,
    ("mu1", "sigma1", "mu2", "sigma2"): _moments,
    ("x", "chunk_sizes"): _stream,
    ("logits", "probs"): _score,
}
"""{arrays any of which marks a form of case: what compares its numbers, given all of them}."""
