"""Check the arithmetic of distribution metrics against golden numbers.

Cases are found by their arrays; sizes, neighbours, splits, seeds and chunks are read from the set, so other
sets of the same form work too. Everything is computed in float64.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from alignbench.errors import UserError
from alignbench.metrics.frechet import frechet_distance
from alignbench.metrics.inception_score import Order, inception_score, inception_score_of_probabilities
from alignbench.metrics.moments import Moments, moments_of
from alignbench.metrics.precision_recall import precision_recall
from alignbench.verify.golden_files import MissingTensor
from alignbench.verify.metrics_form import EXPECTED, MetricNumbers, MetricResult
from alignbench.verify.report import CheckReport

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
    for case in golden.cases:
        kind = next((k for k in KINDS if any(golden.has(f"{case}.{name}") for name in k.inputs)), None)
        if kind is None:
            golden.broken(case, "no arrays of a form that is known here")
            continue
        try:
            for result in kind.results(golden, case):
                golden.compare(result)
        except MissingTensor as error:
            report.missing(str(error), f"needed by {case}")
            golden.broken(case, f"{error} is missing")
        except (UserError, ValueError, TypeError, IndexError) as error:
            golden.broken(case, f"cannot be computed: {error}".splitlines()[0])
    golden.finish()
    return report


@dataclass(frozen=True)
class Kind:
    """One form of case."""

    inputs: tuple[str, ...]
    """Arrays any of which marks it."""
    results: Callable[[MetricNumbers, str], Iterator[MetricResult]]


def _pair(golden: MetricNumbers, case: str) -> Iterator[MetricResult]:
    """Fréchet distance, precision and recall of two sets of rows."""
    real, generated = golden.array(f"{case}.ref"), golden.array(f"{case}.gen")
    ours, theirs = Moments.of(generated), Moments.of(real)
    distance = frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)
    tolerance = _frechet_tolerance(distance, ours.covariance, theirs.covariance)
    if np.array_equal(real, generated):
        tolerance = max(tolerance, 1e-9)
    yield MetricResult(f"{case}/fid", distance, tolerance, needed=True)
    for code in ("torch_fidelity", "adm_sqrtm"):
        yield MetricResult(f"{case}/fid_{code}", distance, tolerance)
    for key, value in (("n_ref", len(real)), ("n_gen", len(generated)), ("dim", real.shape[1])):
        yield MetricResult(f"{case}/{key}", value)
    start = re.escape(case)
    forms = (rf"{start}/pr/(\d+)/.*", rf"{start}\.inside_(?:ref|gen)_manifold_k(\d+)")
    for k in sorted({int(match[1]) for form in forms for match in golden.matching(form)}):
        yield from _manifold(golden, case, k, generated, real)


def _manifold(
    golden: MetricNumbers, case: str, k: int, generated: np.ndarray, real: np.ndarray
) -> Iterator[MetricResult]:
    found = precision_recall(generated, real, k=k)
    shares = [found.precision, found.recall]
    prefix = f"{case}/pr/{k}"
    yield MetricResult(f"{prefix}/precision", found.precision, 1e-12)
    yield MetricResult(f"{prefix}/recall", found.recall, 1e-12)
    yield MetricResult(f"{prefix}/n_precise", int(found.inside_real.sum()))
    yield MetricResult(f"{prefix}/n_recalled", int(found.inside_generated.sum()))
    agree = golden.says(f"{prefix}/all_agree")
    tolerance = SHARE if agree else SHARE + HANDFUL / min(len(generated), len(real))
    for code in ("adm", "torch_fidelity"):
        yield MetricResult(f"{prefix}/{code}", shares, tolerance)
    yield MetricResult(f"{case}.inside_ref_manifold_k{k}", found.inside_real)
    yield MetricResult(f"{case}.inside_gen_manifold_k{k}", found.inside_generated)


def _moments(golden: MetricNumbers, case: str) -> Iterator[MetricResult]:
    """Fréchet distance of given moments."""
    one, cov_one, two, cov_two = (golden.array(f"{case}.{name}") for name in MOMENTS)
    distance = frechet_distance(one, cov_one, two, cov_two)
    tolerance = _frechet_tolerance(distance, cov_one, cov_two)
    yield MetricResult(f"{case}/frechet", distance, tolerance, needed=True)
    for name in ("frechet_60_digits", "adm", "torch_fidelity"):
        yield MetricResult(f"{case}/{name}", distance, tolerance)
    yield MetricResult(f"{case}/dim", len(one))


def _stream(golden: MetricNumbers, case: str) -> Iterator[MetricResult]:
    """Moments of rows that come in pieces."""
    rows, sizes = golden.array(f"{case}.x"), golden.array(f"{case}.chunk_sizes")
    if sizes.sum() != len(rows):
        raise ValueError(f"pieces of {int(sizes.sum())} rows in all, {len(rows)} rows")
    edges = itertools.pairwise([0, *np.cumsum(sizes)])
    found = moments_of(rows[start:stop] for start, stop in edges)
    yield MetricResult(f"{case}.mu", found.mean, MEAN, needed=True)
    yield MetricResult(f"{case}.sigma", found.covariance, COVARIANCE, needed=True)
    yield MetricResult(f"{case}/n", found.count)
    yield MetricResult(f"{case}/dim", rows.shape[1])


def _score(golden: MetricNumbers, case: str) -> Iterator[MetricResult]:
    """Inception Scores, from logits and, where the same rows are there as probabilities, from those."""
    logits, probabilities = golden.array(f"{case}.logits"), golden.array(f"{case}.probs")
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax = powers / powers.sum(axis=1, keepdims=True)
    if softmax.shape != probabilities.shape or np.abs(softmax - probabilities).max() > 1e-12:
        raise ValueError(f"{case}.probs is not the softmax of {case}.logits")
    yield MetricResult(f"{case}/n", len(logits))
    yield MetricResult(f"{case}/classes", logits.shape[1])
    forms = golden.matching(rf"{re.escape(case)}/({'|'.join(SCORES)})(/.*)?")
    if not forms:
        raise MissingTensor(f"{EXPECTED}:{case}/torch_fidelity_*")
    for name in sorted({match[1] for match in forms}):
        how = _convention(golden, case, name)
        mean, spread = inception_score(logits, **how)
        also_mean, also_spread = inception_score_of_probabilities(probabilities, **how)
        by_mean = MetricResult("", mean, SCORE * mean, also=also_mean)
        by_spread = MetricResult("", spread, SCORE * spread + 1e-14 * mean, also=also_spread)
        yield replace(by_mean, name=f"{case}/{name}")
        yield replace(by_mean, name=f"{case}/{name}/mean")
        yield replace(by_spread, name=f"{case}/{name}/std")
        yield replace(by_spread, name=f"{case}/{name}/std_of_chunks")
        if how["split_size"]:
            yield MetricResult(f"{case}/{name}/n_chunks", -(-len(logits) // how["split_size"]))


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


MOMENTS = ("mu1", "sigma1", "mu2", "sigma2")
KINDS = (
    Kind(("ref", "gen"), _pair),
    Kind(MOMENTS, _moments),
    Kind(("x", "chunk_sizes"), _stream),
    Kind(("logits", "probs"), _score),
)
