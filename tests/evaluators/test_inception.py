"""The ADM metrics against torch-fidelity and against closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from alignbench.api import ImageBatch, Metric, Reference
from alignbench.errors import RunFailed
from alignbench.metrics.bootstrap import resamples
from alignbench.metrics.precision_recall import precision_recall
from alignbench.nets import inception
from tests.helpers.data_sets import refused
from tests.helpers.inception_toys import (
    batch_of,
    evaluator,
    network,
    pictures,
    random_weights,
    save_pngs,
    scorer,
)  # fmt: skip
from tests.helpers.toys import Memory

GENERATED, REAL = 10, 9
WIDTH = 24
"""Of made-up features: formulas do not know the network's."""


@pytest.fixture(scope="module")
def sets() -> dict[str, Memory]:
    """What the evaluator remembers of two small sets."""
    images = {"generated": pictures(GENERATED, seed=1), "real": pictures(REAL, seed=2, cells=6)}
    measuring = scorer(net=network())
    return {name: Memory(measuring.measure(batch_of(pixels))) for name, pixels in images.items()}


def made_up(count: int, seed: int, *, spread: float = 1.0, width: int = WIDTH) -> Memory:
    """Rows that no network made."""
    rng = np.random.default_rng(seed)
    names = ("pool", "logits", "spatial")
    return Memory({name: (spread * rng.random((count, width))).astype(np.float32) for name in names})


def against(real: Memory | None, **statistics: np.ndarray) -> Reference:
    return Reference(digest="r", measured=real, statistics=statistics)


def named(metrics: list[Metric]) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


def values(metrics: list[Metric]) -> dict[str, float]:
    return {metric.name: metric.value for metric in metrics}


def test_metrics_agree_with_torch_fidelity(sets: dict[str, Memory], tmp_path: Path) -> None:
    """Its whole path: PNG files, its own decoding, network pass and formulas."""
    import torch_fidelity

    built = scorer(is_splits=3, kid_subset_size=6, kid_subsets=20, bootstrap=0)
    found = values(built.score(sets["generated"], against(sets["real"])))
    official = torch_fidelity.calculate_metrics(
        input1=str(save_pngs(tmp_path / "generated", pictures(GENERATED, seed=1))),
        input2=str(save_pngs(tmp_path / "real", pictures(REAL, seed=2, cells=6))),
        isc=True, kid=True, prc=True,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(random_weights()),
        isc_splits=3, kid_subset_size=6, kid_subsets=20, prc_neighborhood=3, rng_seed=2020,
        cuda=False, cache=False, save_cpu_ram=True, verbose=False, batch_size=GENERATED,
    )  # fmt: skip
    assert found["is"] == pytest.approx(official["inception_score_mean"], rel=1e-6)
    # Its kernel matrices are float32.
    kid = official["kernel_inception_distance_mean"]
    assert found["kid"] == pytest.approx(kid, abs=1e-5 * official["kernel_inception_distance_std"])
    assert found["precision-adm"] == pytest.approx(official["precision"], abs=1e-6)
    assert found["recall-adm"] == pytest.approx(official["recall"], abs=1e-6)
    assert 0 < found["precision-adm"] < 1 or 0 < found["recall-adm"] < 1


def test_frechet_distances_agree_with_torch_fidelity_where_covariances_have_full_rank() -> None:
    from torch_fidelity import metric_fid

    rng = np.random.default_rng(0)
    mixing = {name: rng.standard_normal((12, 12)) for name in ("pool", "spatial", "logits")}
    ours, real = (
        Memory({name: rng.standard_normal((count, 12)) @ mix + shift for name, mix in mixing.items()})
        for count, shift in ((90, 0.3), (70, 0.0))
    )
    metrics = scorer(kid_subset_size=30, bootstrap=5).score(ours, against(real))
    found = values(metrics)
    for metric, column in (("fid", "pool"), ("sfid", "spatial")):
        features = (torch.from_numpy(x.column(column)) for x in (ours, real))
        moments = [metric_fid.fid_features_to_statistics(x) for x in features]
        expected = metric_fid.fid_statistics_to_metric(*moments, verbose=False)
        assert found[metric] == pytest.approx(expected[metric_fid.KEY_METRIC_FID], rel=1e-9)
    low, high = named(metrics)["fid-corrected"].interval or (math.nan, math.nan)
    assert low < found["fid-corrected"] < high
    # Fewer images, larger FID: both corrections go down.
    assert found["fid-corrected"] < found["fid"] and found["fid-inf"] < found["fid"]


def test_kernel_distance_is_the_unbiased_estimate_in_float64() -> None:
    """With one subset of everything the draw is a permutation, and the closed form holds."""
    samples, real = made_up(20, seed=0), made_up(20, seed=1, spread=1.2)
    x, y = (rows.column("pool").astype(np.float64) for rows in (samples, real))
    xx, yy, xy = ((a @ b.T / WIDTH + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (20 * 19)
    found = values(scorer(kid_subsets=1, kid_subset_size=20, bootstrap=0).score(samples, against(real)))
    assert found["kid"] == pytest.approx(within - 2 * xy.mean(), rel=1e-10)


def test_a_statistics_file_goes_before_images_for_fid_alone() -> None:
    built = scorer(bootstrap=0, kid_subset_size=10)
    pool, spatial = inception.POOL, inception.SPATIAL
    samples, real = (
        Memory({**made_up(n, s).rows, "pool": made_up(n, s, width=pool).column("pool"),
                "spatial": made_up(n, s, width=spatial).column("spatial")})
        for n, s in ((20, 0), (12, 1))
    )  # fmt: skip
    alone = values(built.score(samples, against(real)))
    statistics = {
        "mu": np.full(pool, 0.5), "sigma": np.eye(pool) * 0.1,
        "mu_s": np.full(spatial, 0.5), "sigma_s": np.eye(spatial) * 0.1,
    }  # fmt: skip
    both = values(built.score(samples, against(real, **statistics)))
    differ = {name for name in both if both[name] != alone[name] and not math.isnan(alone[name])}
    assert differ == {"fid", "sfid"}
    x = samples.column("pool").astype(np.float64)
    roots = np.linalg.svd((x - x.mean(axis=0)) / math.sqrt(19), compute_uv=False)
    gap = ((x.mean(axis=0) - 0.5) ** 2).sum()
    expected = gap + (roots**2).sum() + 204.8 - 2 * (roots * math.sqrt(0.1)).sum()
    assert both["fid"] == pytest.approx(expected, rel=1e-9)
    # Without images and spatial moments, and with fewer images than features, some metrics are blank.
    found = built.score(samples, against(None, mu=statistics["mu"], sigma=statistics["sigma"]))
    blank = {metric.name for metric in found if math.isnan(metric.value)}
    assert blank == {"sfid", "precision-adm", "recall-adm", "kid", "fid-corrected", "fid-inf"}
    assert all(metric.n == 20 for metric in found)
    spatial_alone = {name: statistics[name] for name in ("mu_s", "sigma_s")}
    assert math.isnan(values(built.score(samples, against(None, **spatial_alone)))["fid"])
    small = against(None, mu=np.zeros(192), sigma=np.eye(192))
    assert "statistics of another network" in refused(built.score, samples, small)


def test_intervals_surround_their_values() -> None:
    samples, reference = made_up(40, seed=0, width=50), against(made_up(40, seed=1, width=50))
    metrics = named(scorer(bootstrap=4).score(samples, reference))
    for name in ("fid", "is", "precision-adm", "recall-adm"):
        low, high = metrics[name].interval or (math.nan, math.nan)
        assert low <= metrics[name].value <= high and low < high
    for name in ("sfid", "fid-inf", "kid", "fid-corrected"):  # the last for want of images
        assert metrics[name].interval is None
    in_order = named(scorer(is_order="in-order", bootstrap=0).score(samples, reference))
    assert in_order["is"].interval is None and in_order["fid"].interval is None


def test_resamples_are_of_the_same_images_for_every_set() -> None:
    """Each against its own computation from repeated rows."""
    built, plain = scorer(bootstrap=3, bootstrap_seed=5), scorer(bootstrap=0)
    real = made_up(30, seed=1)
    drawn = list(resamples(40, replicates=3, seed=5))
    assert all(times.sum() == 40 for times in drawn) and len({bytes(times) for times in drawn}) == 3
    for seed in (0, 7):
        samples = made_up(40, seed=seed)
        metrics = named(built.score(samples, against(real)))
        for k, times in enumerate(drawn):
            again = Memory({name: np.repeat(rows, times, axis=0) for name, rows in samples.rows.items()})
            fid = values(plain.score(again, against(real)))["fid"]
            assert metrics["fid"].resampled[k] == pytest.approx(fid, rel=1e-7)
        inside = precision_recall(samples.column("pool"), real.column("pool"), k=3).inside_real
        expected = [float(times @ inside) / 40 for times in drawn]
        assert metrics["precision-adm"].resampled == pytest.approx(expected)
        assert {name for name, metric in metrics.items() if metric.resampled} == {"fid", "precision-adm"}


def test_too_few_images_and_no_reference_are_refused() -> None:
    for options, samples, real, reason in (
        ({"is_splits": 30}, 20, 20, "20 images are too few for an Inception Score over 30 splits"),
        ({"neighbours": 20}, 20, 30, "20 images are too few for precision and recall with 20 neighbours"),
        ({}, 20, 3, "3 reference images are too few for precision and recall with 3 neighbours"),
    ):
        found = made_up(samples, seed=0)
        assert reason in refused(scorer(net=None, **options).score, found, against(made_up(real, seed=1)))
    for reference, reason in ((None, "needs a reference"), (against(None), "neither moments nor images")):
        assert reason in refused(scorer().score, made_up(20, seed=0), reference)


def test_numbers_that_are_not_finite_name_the_image() -> None:
    class Broken:
        def rows(self, images: torch.Tensor, *, batch: int) -> dict[str, np.ndarray]:
            rows = dict(made_up(3, seed=0).rows)
            rows["logits"][1, 5] = np.nan
            return rows

    built = scorer(net=Broken())  # type: ignore[arg-type]
    with pytest.raises(RunFailed, match="image 8: the Inception network's logits"):
        built.measure(ImageBatch(ids=range(7, 10), images=torch.zeros(3, 3, 24, 24, dtype=torch.uint8)))


def test_identity_covers_options_and_weights() -> None:
    built = evaluator(random_weights())
    assert built.identity == evaluator(random_weights()).identity
    assert len({built.identity, evaluator(random_weights(), neighbours=5).identity, scorer().identity}) == 3


def test_the_real_images_are_spread_over_a_large_reference() -> None:
    samples, real = made_up(20, seed=0), made_up(40, seed=1)
    few = Memory({**real.rows, "pool": real.column("pool")[::4]})
    limited = scorer(reference_images=10, bootstrap=0).score(samples, against(real))
    for name in ("precision-adm", "recall-adm"):
        direct = scorer(bootstrap=0).score(samples, against(few))
        assert values(limited)[name] == values(direct)[name]
