"""FID, sFID, Inception Score, precision, recall and KID on the network and by the rules of ADM's evaluator.

One pass over the images leaves three rows of numbers for each; metrics are computed from those in float64.
What is equal to ADM's evaluator and what is not stands in docs/evaluators/inception.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, cast

import numpy as np
import torch

from alignbench.api import ImageBatch, Measured, Metric, Reference
from alignbench.errors import RunFailed, UserError
from alignbench.files import digest_of
from alignbench.hub.verify import AssetFile
from alignbench.metrics.bootstrap import WeightedFrechet, frechet_at_infinity, frechet_bootstrap, resamples
from alignbench.metrics.frechet import frechet_distance
from alignbench.metrics.inception_score import inception_score
from alignbench.metrics.intervals import LEVEL, t_critical, wilson
from alignbench.metrics.moments import moments_of
from alignbench.metrics.precision_recall import precision_recall
from alignbench.nets import inception
from alignbench.nets.inception import Inception
from alignbench.registry.protocol import EvaluatorCard
from alignbench.registry.schema import Scalar

WEIGHTS = "inception-2015-12-05"
VERSION = 1
"""Of the arithmetic below: rows and results of another version are not used."""

Gaussian = tuple[np.ndarray, np.ndarray]
"""Mean [D] and covariance [D, D], float64."""


class Value(NamedTuple):
    """What a metric says; see `api.Metric`."""

    value: float
    interval: tuple[float, float] | None = None
    resampled: tuple[float, ...] = ()


Values = dict[str, Value]
UNKNOWN = Value(math.nan)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The card's options; each is described there."""

    is_splits: int
    is_split_size: int
    is_order: Literal["shuffled", "in-order"]
    is_seed: int
    neighbours: int
    reference_images: int
    bootstrap: int
    bootstrap_seed: int
    kid_subsets: int
    kid_subset_size: int
    kid_seed: int
    batch: int


class InceptionDistribution:
    """Scores a set of generated images against real ones."""

    def __init__(self, net: Inception, options: Options, *, weights: str, device: torch.device) -> None:
        """Take a loaded network and the SHA-256 of its weights."""
        self.options = options
        self.identity = digest_of({"version": VERSION, "weights": weights, **asdict(options)})
        self._net = net
        # Apple's GPUs know no float64.
        self._device = torch.device("cpu") if device.type == "mps" else device

    def measure(self, batch: ImageBatch) -> dict[str, np.ndarray]:
        """Return float32 columns pool [n, 2048], logits [n, 1008], spatial [n, 2023]; probability [n].

        Raises:
            RunFailed: a feature is not finite.
        """
        rows = self._net.rows(batch.images, batch=self.options.batch)
        for name, values in rows.items():
            bad = ~np.isfinite(values).all(axis=1)
            if bad.any():
                first = batch.ids[int(bad.argmax())]
                raise RunFailed(f"image {first}: the Inception network's {name} features are not finite")
        likely = torch.from_numpy(rows["logits"]).double().softmax(dim=1).amax(dim=1)
        return {**rows, "probability": likely.numpy()}

    def score(self, samples: Measured, reference: Reference | None) -> list[Metric]:
        """Return all metrics of the card; those that the reference does not allow are NaN.

        Of a reference the moments go first where there are any; precision, recall and KID need rows of real
        images.

        Raises:
            UserError: no reference, too few images for what the options ask, or moments of another network.
        """
        if reference is None:
            raise UserError("FID needs a reference", fix="give the protocol a [reference]")
        real = None if reference.measured is None else self._chosen(reference.measured)
        self._require(len(samples), None if real is None else len(real))
        pool = samples.column("pool")
        values = {
            **self._fid(pool, self._moments(reference, "pool", "mu", "sigma")),
            **self._sfid(samples, self._moments(reference, "spatial", "mu_s", "sigma_s")),
            **self._inception_score(samples.column("logits")),
            **self._precision_recall(pool, real),
            **self._kid(pool, real),
        }
        return [
            Metric(name, one.value, len(samples), one.interval, one.resampled) for name, one in values.items()
        ]

    def _require(self, generated: int, real: int | None) -> None:
        options = self.options
        wanted = {f"precision and recall with {options.neighbours} neighbours": options.neighbours + 1}
        if not options.is_split_size:
            wanted[f"an Inception Score over {options.is_splits} splits"] = options.is_splits
        for what, minimum in {**wanted, "a covariance": 2}.items():
            if generated < minimum:
                raise UserError(f"{generated} images are too few for {what}", fix=f"score {minimum} or more")
        if real is not None and real <= options.neighbours:
            what = next(iter(wanted))
            raise UserError(f"{real} reference images are too few for {what}", fix="use another reference")

    # --- the reference ------------------------------------------------------------------------------

    def _moments(self, reference: Reference, column: str, mean: str, cov: str) -> Gaussian | None:
        """Return the moments to compare with; None where a statistics file lacks them."""
        if not reference.statistics:
            if reference.measured is None:
                raise UserError("the reference has neither moments nor images")
            real = moments_of(reference.measured.shards(column), self._device)
            return real.mean, real.covariance
        # Moments of all images and of the few in the file are not mixed: metrics would mean different things.
        if mean not in reference.statistics:
            return None
        moments = (reference.statistics[mean], reference.statistics[cov])
        width = {"pool": inception.POOL, "spatial": inception.SPATIAL}[column]
        if [part.shape for part in moments] != [(width,), (width, width)]:
            raise UserError(f"{mean} and {cov} of the reference are statistics of another network")
        return moments

    def _chosen(self, measured: Measured) -> np.ndarray:
        """Return the pool features of at most `reference_images` real images, drawn evenly over the set."""
        pool = measured.column("pool")
        limit = self.options.reference_images
        if len(pool) <= limit:
            return pool
        return pool[np.arange(limit) * len(pool) // limit]

    # --- the metrics --------------------------------------------------------------------------------

    def _fid(self, pool: np.ndarray, target: Gaussian | None) -> Values:
        if target is None:
            return dict.fromkeys(("fid", "fid-corrected", "fid-inf"), UNKNOWN)
        options = self.options
        # With fewer images than features neither estimate comes near the truth, as measured in
        # docs/evaluators/error-bars.md.
        enough = len(pool) >= pool.shape[1]
        infinity = math.nan
        if enough:
            infinity = frechet_at_infinity(pool, *target, seed=options.bootstrap_seed, device=self._device)
        if options.bootstrap < 2:
            fid = self._distance(pool, target)
            return {"fid": Value(fid), "fid-corrected": UNKNOWN, "fid-inf": Value(infinity)}
        bootstrap = frechet_bootstrap(
            pool, *target, replicates=options.bootstrap, seed=options.bootstrap_seed, device=self._device
        )
        return {
            "fid": Value(bootstrap.value, bootstrap.interval, bootstrap.resampled),
            "fid-corrected": Value(bootstrap.corrected, bootstrap.corrected_interval) if enough else UNKNOWN,
            "fid-inf": Value(infinity),
        }

    def _sfid(self, samples: Measured, target: Gaussian | None) -> Values:
        if target is None:
            return {"sfid": UNKNOWN}
        if len(samples) <= len(target[0]):
            return {"sfid": Value(self._distance(samples.column("spatial"), target))}
        moments = moments_of(samples.shards("spatial"), self._device)
        value = frechet_distance(moments.mean, moments.covariance, *target, device=self._device)
        return {"sfid": Value(value)}

    def _distance(self, rows: np.ndarray, target: Gaussian) -> float:
        return WeightedFrechet(rows, *target, device=self._device).distance(np.ones(len(rows)))

    def _inception_score(self, logits: np.ndarray) -> Values:
        options = self.options
        mean, sd = inception_score(
            logits,
            splits=options.is_splits,
            order=options.is_order,
            seed=options.is_seed,
            split_size=options.is_split_size,
        )
        parts = -(-len(logits) // options.is_split_size) if options.is_split_size else options.is_splits
        # Rows in their own order may be sorted: then the parts are no independent draws.
        if parts < 2 or options.is_order == "in-order":
            return {"is": Value(mean)}
        half = t_critical(LEVEL, parts - 1) * sd / math.sqrt(parts - 1)
        return {"is": Value(mean, (mean - half, mean + half))}

    def _precision_recall(self, pool: np.ndarray, real: np.ndarray | None) -> Values:
        if real is None:
            return {"precision-adm": UNKNOWN, "recall-adm": UNKNOWN}
        near = precision_recall(pool, real, k=self.options.neighbours, device=self._device)
        # Recall is a share of the real images: resampling generated ones would move the balls around them.
        precise = near.inside_real.astype(np.float64)
        drawn = resamples(len(pool), replicates=self.options.bootstrap, seed=self.options.bootstrap_seed)
        shares = tuple(float(weights @ precise) / len(pool) for weights in drawn)
        return {
            "precision-adm": Value(near.precision, wilson(near.precision, len(pool)), shares),
            "recall-adm": Value(near.recall, wilson(near.recall, len(real))),
        }

    def _kid(self, pool: np.ndarray, real: np.ndarray | None) -> Values:
        options = self.options
        if real is None or min(len(pool), len(real)) < options.kid_subset_size:
            return {"kid": UNKNOWN}
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric  # heavy

        kid = kid_features_to_metric(
            *(torch.from_numpy(features.astype(np.float64)) for features in (pool, real)),
            kid_subsets=options.kid_subsets,
            kid_subset_size=options.kid_subset_size,
            rng_seed=options.kid_seed,
            verbose=False,
        )
        return {"kid": Value(kid[KEY_METRIC_KID_MEAN])}


def build(
    card: EvaluatorCard,
    *,
    options: Mapping[str, Scalar],
    assets: Mapping[str, AssetFile],
    device: torch.device,
) -> InceptionDistribution:
    """Build the evaluator of the card.

    Raises:
        UserError: the weights file is not the FID Inception network.
    """
    file = assets[WEIGHTS]
    order = cast('Literal["shuffled", "in-order"]', options["is_order"])
    numbers = {name: int(value) for name, value in options.items() if name != "is_order"}
    net = inception.load(file.path, device)
    return InceptionDistribution(net, Options(is_order=order, **numbers), weights=file.sha256, device=device)
