"""The Inception network and its metrics against torch-fidelity and against closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from alignbench.api import ImageBatch, Reference, Rows
from alignbench.errors import RunFailed, UserError
from alignbench.metrics.bootstrap import resamples
from alignbench.metrics.intervals import share_interval
from alignbench.metrics.precision_recall import precision_recall
from alignbench.nets import inception
from tests.helpers.inception_toys import evaluator, pictures, save_pngs

GENERATED, REAL = 14, 12


class Held:
    """Rows in memory, cut into shards of 5."""

    digest = "sha256:held"

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows["pool"])

    def column(self, name: str) -> np.ndarray:
        return self.rows[name]

    def shards(self, name: str) -> Iterator[np.ndarray]:
        for start in range(0, len(self), 5):
            yield self.rows[name][start : start + 5]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    inception.save_random(path)
    return path


@pytest.fixture(scope="module")
def rows(weights: Path) -> dict[str, Rows]:
    """What the evaluator remembers of two small sets."""
    built = evaluator(weights)
    sets = {"generated": pictures(GENERATED, seed=1), "real": pictures(REAL, seed=2, cells=6)}
    return {name: built.measure(batch_of(pixels)) for name, pixels in sets.items()}


def batch_of(pixels: np.ndarray) -> ImageBatch:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return ImageBatch(ids=range(len(pixels)), images=images)


def made_up(count: int, seed: int, *, spread: float = 1.0) -> Held:
    """Rows of the right widths that no network made."""
    rng = np.random.default_rng(seed)
    widths = {"pool": inception.POOL, "logits": inception.CLASSES, "spatial": inception.SPATIAL}
    return Held({n: (spread * rng.random((count, w))).astype(np.float32) for n, w in widths.items()})


def values(metrics: list[object]) -> dict[str, float]:
    return {metric.name: metric.value for metric in metrics}  # type: ignore[attr-defined]


# --- the network ----------------------------------------------------------------------------------


def test_features_are_torch_fidelity_s_bit_for_bit(weights: Path, rows: dict[str, Rows]) -> None:
    official = FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased", "logits"],
        feature_extractor_weights_path=str(weights),
    )
    images = batch_of(pictures(GENERATED, seed=1)).images[:3]
    with torch.no_grad():
        pool, logits, biased = official(images)
    ours = evaluator(weights).measure(ImageBatch(ids=range(3), images=images))
    assert np.array_equal(ours["pool"], pool.numpy())
    assert np.array_equal(ours["logits"], logits.numpy())
    assert not np.allclose(ours["logits"], biased.numpy())
    # The company of other images moves at most the last digits.
    np.testing.assert_allclose(ours["pool"], rows["generated"]["pool"][:3], rtol=2e-4, atol=2e-4)


def test_spatial_features_are_seven_channels_laid_out_channels_last(weights: Path) -> None:
    net = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
    )
    images = batch_of(pictures(2, seed=3)).images
    x = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
    x = (x - 128) / 128
    blocks = [
        net.Conv2d_1a_3x3, net.Conv2d_2a_3x3, net.Conv2d_2b_3x3, net.MaxPool_1, net.Conv2d_3b_1x1,
        net.Conv2d_4a_3x3, net.MaxPool_2, net.Mixed_5b, net.Mixed_5c, net.Mixed_5d, net.Mixed_6a,
        net.Mixed_6b, net.Mixed_6c, net.Mixed_6d.branch1x1,
    ]  # fmt: skip
    with torch.no_grad():
        for block in blocks:
            x = block(x)
    found = inception.load(weights, torch.device("cpu")).features(images).spatial
    assert x.shape == (2, 192, 17, 17) and found.shape == (2, 2023)
    for row, column, channel in ((0, 0, 0), (0, 1, 6), (5, 9, 3), (16, 16, 6)):
        assert torch.equal(found[:, (row * 17 + column) * 7 + channel], x[:, channel, row, column])


def test_features_differ_between_images_of_the_random_network(rows: dict[str, Rows]) -> None:
    for values_ in rows["generated"].values():
        assert values_.dtype == np.float32
        assert values_.std(axis=0).mean() > 0.05 * np.abs(values_).mean()


def test_batches_do_not_change_rows(weights: Path) -> None:
    images = batch_of(pictures(5, seed=4))
    one, many = (evaluator(weights, batch=size).measure(images) for size in (2, 64))
    for name, found in one.items():
        np.testing.assert_allclose(found, many[name], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda state: {"state": state}, "something else than tensors"),
        (lambda state: {k: v for k, v in state.items() if k != "fc.bias"}, "fc.bias is missing"),
        (lambda state: {**state, "head": torch.zeros(1)}, "head is not part of it"),
        (lambda state: {**state, "fc.weight": torch.zeros(1000, 2048)}, r"fc.weight is \[1000, 2048\]"),
        (lambda state: {**state, "fc.bias": torch.full((1008,), math.nan)}, "fc.bias is not finite"),
    ],
)
def test_other_weights_are_refused(weights: Path, tmp_path: Path, spoil: object, reason: str) -> None:
    path = tmp_path / "other.pth"
    torch.save(spoil(torch.load(weights)), path)  # type: ignore[operator]
    with pytest.raises(UserError, match=reason):
        inception.load(path, torch.device("cpu"))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    for name, content in (("pickle.pth", Payload()), ("nothing.pth", None)):
        path = tmp_path / name
        torch.save(content, path)
        with pytest.raises(UserError, match="no weights of the FID Inception network"):
            inception.load(path, torch.device("cpu"))
    (tmp_path / "text.pth").write_text("not a file of tensors")
    for name in ("text.pth", "absent.pth"):
        with pytest.raises(UserError):
            inception.load(tmp_path / name, torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


# --- the metrics ----------------------------------------------------------------------------------


def test_metrics_agree_with_torch_fidelity(weights: Path, rows: dict[str, Rows], tmp_path: Path) -> None:
    """Its whole path: PNG files, its own decoding, network pass and formulas."""
    built = evaluator(weights, is_splits=3, kid_subset_size=8, kid_subsets=20, bootstrap=0)
    measured = Reference(digest="sha256:real", measured=Held(rows["real"]))
    found = values(built.score(Held(rows["generated"]), measured))
    official = torch_fidelity.calculate_metrics(
        input1=str(save_pngs(tmp_path / "generated", pictures(GENERATED, seed=1))),
        input2=str(save_pngs(tmp_path / "real", pictures(REAL, seed=2, cells=6))),
        fid=True, isc=True, kid=True, prc=True,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights),
        isc_splits=3, kid_subset_size=8, kid_subsets=20, prc_neighborhood=3, rng_seed=2020,
        cuda=False, cache=False, save_cpu_ram=True, verbose=False, batch_size=GENERATED,
    )  # fmt: skip
    assert found["is"] == pytest.approx(official["inception_score_mean"], rel=1e-6)
    # Its kernel matrices are float32.
    kid = official["kernel_inception_distance_mean"]
    assert found["kid"] == pytest.approx(kid, abs=1e-5 * official["kernel_inception_distance_std"])
    # With fewer images than features it adds up roots of some 2,000 eigenvalues that are rounding errors.
    assert found["fid"] == pytest.approx(official["frechet_inception_distance"], rel=3e-5)
    assert found["precision-adm"] == pytest.approx(official["precision"], abs=1e-6)
    assert found["recall-adm"] == pytest.approx(official["recall"], abs=1e-6)
    assert 0 < found["precision-adm"] < 1 or 0 < found["recall-adm"] < 1


def test_formulas_agree_with_torch_fidelity_where_covariances_have_full_rank(weights: Path) -> None:
    rng = np.random.default_rng(0)
    mixing = {name: rng.standard_normal((12, 12)) for name in ("pool", "spatial", "logits")}

    def held(count: int, shift: float) -> Held:
        return Held({name: rng.standard_normal((count, 12)) @ mix + shift for name, mix in mixing.items()})

    ours, real = held(90, 0.3), held(70, 0.0)
    built = evaluator(weights, kid_subset_size=30, bootstrap=5, is_splits=7)
    metrics = built.score(ours, Reference(digest="r", measured=real))
    found = values(metrics)
    features = {n: [torch.from_numpy(x.column(n)) for x in (ours, real)] for n in mixing}
    for metric, column in (("fid", "pool"), ("sfid", "spatial")):
        moments = [metric_fid.fid_features_to_statistics(x) for x in features[column]]
        expected = metric_fid.fid_statistics_to_metric(*moments, verbose=False)
        assert found[metric] == pytest.approx(expected[metric_fid.KEY_METRIC_FID], rel=1e-9)
    score = metric_isc.isc_features_to_metric(features["logits"][0], splits=7, shuffle=True, rng_seed=2020)
    assert found["is"] == pytest.approx(score[metric_isc.KEY_METRIC_ISC_MEAN], rel=1e-12)
    kid = metric_kid.kid_features_to_metric(
        *features["pool"], kid_subset_size=30, rng_seed=2020, verbose=False
    )
    assert found["kid"] == pytest.approx(kid[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-9)
    shares = metric_prc.prc_features_to_metric(*features["pool"], prc_neighborhood=3, verbose=False)
    assert found["precision-adm"] == pytest.approx(shares[metric_prc.KEY_METRIC_PRECISION], abs=1e-6)
    assert found["recall-adm"] == pytest.approx(shares[metric_prc.KEY_METRIC_RECALL], abs=1e-6)
    assert 0 < found["precision-adm"] < 1 and 0 < found["recall-adm"] < 1
    low, high = {m.name: m.interval for m in metrics}["fid-corrected"] or (math.nan, math.nan)
    assert low < found["fid-corrected"] < high
    # Fewer images, larger FID: both corrections go down.
    assert found["fid-corrected"] < found["fid"] and found["fid-inf"] < found["fid"]


def test_frechet_distances_equal_the_nuclear_norm_form(weights: Path, rows: dict[str, Rows]) -> None:
    """tr (ΣaΣb)^½ is the sum of the singular values of A Bᵀ, with A, B the centred rows over √(n−1)."""
    built = evaluator(weights, bootstrap=0)
    reference = Reference(digest="sha256:real", measured=Held(rows["real"]))
    found = values(built.score(Held(rows["generated"]), reference))
    for metric, column in (("fid", "pool"), ("sfid", "spatial")):
        a, b = (rows[name][column].astype(np.float64) for name in ("generated", "real"))
        gap = a.mean(axis=0) - b.mean(axis=0)
        a, b = ((x - x.mean(axis=0)) / math.sqrt(len(x) - 1) for x in (a, b))
        expected = gap @ gap + (a**2).sum() + (b**2).sum() - 2 * np.linalg.svd(a @ b.T)[1].sum()
        # Roots of the few eigenvalues that are zero but for rounding.
        assert found[metric] == pytest.approx(expected, rel=1e-6), found[metric] / expected - 1


def test_a_statistics_file_goes_before_images_for_fid_alone(weights: Path) -> None:
    built = evaluator(weights, bootstrap=0, kid_subset_size=10)
    samples, real = made_up(20, seed=0), made_up(12, seed=1, spread=1.1)
    alone = values(built.score(samples, Reference(digest="r", measured=real)))
    statistics = {
        "mu": np.full(inception.POOL, 0.5),
        "sigma": np.eye(inception.POOL) * 0.1,
        "mu_s": np.full(inception.SPATIAL, 0.5),
        "sigma_s": np.eye(inception.SPATIAL) * 0.1,
    }
    both = values(built.score(samples, Reference(digest="r", measured=real, statistics=statistics)))
    assert {name for name in both if both[name] != alone[name]} >= {"fid", "sfid"}
    assert [both[n] for n in ("is", "precision-adm", "kid")] == [
        alone[n] for n in ("is", "precision-adm", "kid")
    ]
    x = samples.column("pool").astype(np.float64)
    roots = np.linalg.svd((x - x.mean(axis=0)) / math.sqrt(19), compute_uv=False)
    expected = (
        ((x.mean(axis=0) - 0.5) ** 2).sum() + (roots**2).sum() + 204.8 - 2 * (roots * math.sqrt(0.1)).sum()
    )
    assert both["fid"] == pytest.approx(expected, rel=1e-9)


def test_what_a_reference_does_not_allow_is_blank(weights: Path) -> None:
    built = evaluator(weights, bootstrap=2)
    statistics = {"mu": np.zeros(inception.POOL), "sigma": np.eye(inception.POOL)}
    found = built.score(made_up(30, seed=0), Reference(digest="r", statistics=statistics))
    blank = {metric.name for metric in found if math.isnan(metric.value)}
    few = {"fid-corrected", "fid-inf"}  # fewer images than features
    assert blank == {"sfid", "precision-adm", "recall-adm", "kid"} | few
    assert all(metric.n == 30 for metric in found)


def test_intervals_surround_their_values(weights: Path) -> None:
    built = evaluator(weights, bootstrap=4)
    reference = Reference(digest="r", measured=made_up(40, seed=1))
    metrics = {metric.name: metric for metric in built.score(made_up(40, seed=0), reference)}
    for name in ("fid", "is", "precision-adm", "recall-adm"):
        low, high = metrics[name].interval or (math.nan, math.nan)
        assert low <= metrics[name].value <= high and low < high
    for name in ("sfid", "fid-inf", "kid", "fid-corrected"):  # the last for want of images
        assert metrics[name].interval is None
    in_order = evaluator(weights, is_order="in-order", bootstrap=0).score(made_up(40, seed=0), reference)
    assert {m.name: m.interval for m in in_order}["is"] is None
    assert {m.name: m.interval for m in in_order}["fid"] is None


def test_resamples_are_of_the_same_images_for_every_set(weights: Path) -> None:
    """Each against its own computation from repeated rows."""
    built = evaluator(weights, bootstrap=3, bootstrap_seed=5)
    real = made_up(30, seed=1)
    reference = Reference(digest="r", measured=real)
    drawn = list(resamples(40, replicates=3, seed=5))
    assert all(weights.sum() == 40 for weights in drawn) and len({bytes(w) for w in drawn}) == 3
    for seed in (0, 7):
        samples = made_up(40, seed=seed)
        metrics = {metric.name: metric for metric in built.score(samples, reference)}
        plain = evaluator(weights, bootstrap=0)
        for k, times in enumerate(drawn):
            again = Held({name: np.repeat(rows, times, axis=0) for name, rows in samples.rows.items()})
            (fid,) = [m.value for m in plain.score(again, reference) if m.name == "fid"]
            assert metrics["fid"].resampled[k] == pytest.approx(fid, rel=1e-7)
        inside = precision_recall(samples.column("pool"), real.column("pool"), k=3).inside_real
        expected = [float(times @ inside) / 40 for times in drawn]
        assert metrics["precision-adm"].resampled == pytest.approx(expected)
        assert {name for name, metric in metrics.items() if metric.resampled} == {"fid", "precision-adm"}


def test_share_interval_is_wilson_s() -> None:
    # Solutions p of |share − p| = z √(p (1 − p) / n).
    for share, count in ((0.3, 50), (0.0, 20), (1.0, 300)):
        for bound in share_interval(share, count):
            bound = min(max(bound, 0.0), 1.0)
            assert abs(share - bound) == pytest.approx(
                1.959963984540054 * math.sqrt(bound * (1 - bound) / count), abs=1e-7
            )


def test_a_sorted_set_scores_like_a_shuffled_one(weights: Path) -> None:
    classes = np.repeat(np.arange(4), 50)
    logits = np.zeros((200, inception.CLASSES), np.float32)
    logits[np.arange(200), classes] = 20
    rng = np.random.default_rng(0)
    others = made_up(200, seed=0).rows
    reference = Reference(digest="r", measured=made_up(8, seed=1))

    def score(order: str, rows_: np.ndarray) -> float:
        built = evaluator(weights, is_order=order, is_splits=2, bootstrap=0)
        return values(built.score(Held({**others, "logits": rows_}), reference))["is"]

    mixed = logits[rng.permutation(200)]
    assert score("shuffled", logits) == pytest.approx(score("shuffled", mixed), rel=0.03)
    assert score("in-order", logits) < 0.6 * score("in-order", mixed)


@pytest.mark.parametrize(
    ("options", "samples", "real", "reason"),
    [
        ({"is_splits": 30}, 20, 20, "20 images are too few for an Inception Score over 30 splits"),
        ({"neighbours": 20}, 20, 30, "20 images are too few for precision and recall with 20 neighbours"),
        ({}, 20, 3, "3 reference images are too few for precision and recall with 3 neighbours"),
    ],
)
def test_too_few_images_are_refused(
    weights: Path, options: dict[str, int], samples: int, real: int, reason: str
) -> None:
    reference = Reference(digest="r", measured=made_up(real, seed=1))
    with pytest.raises(UserError, match=reason):
        evaluator(weights, **options).score(made_up(samples, seed=0), reference)


def test_a_reference_that_does_not_fit_is_refused(weights: Path) -> None:
    built, samples = evaluator(weights), made_up(20, seed=0)
    for reference, reason in (
        (None, "needs a reference"),
        (Reference(digest="r"), "neither moments nor images"),
        (
            Reference(digest="r", statistics={"mu": np.zeros(192), "sigma": np.eye(192)}),
            "statistics of another network",
        ),
    ):
        with pytest.raises(UserError, match=reason):
            built.score(samples, reference)


def test_numbers_that_are_not_finite_name_the_image(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = evaluator(weights)
    broken = made_up(3, seed=0).rows
    broken["logits"][1, 5] = np.nan
    monkeypatch.setattr(built._net, "rows", lambda images, batch: broken)
    with pytest.raises(RunFailed, match="image 8: the Inception network's logits"):
        built.measure(ImageBatch(ids=range(7, 10), images=torch.zeros(3, 3, 24, 24, dtype=torch.uint8)))


def test_identity_covers_options_and_weights(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    inception.save_random(other, seed=1)
    identities = {
        evaluator(weights).identity,
        evaluator(weights).identity,
        evaluator(weights, neighbours=5).identity,
        evaluator(other).identity,
    }
    assert len(identities) == 3


def test_the_real_images_are_spread_over_a_large_reference(weights: Path) -> None:
    real = made_up(40, seed=1)
    chosen = evaluator(weights, reference_images=10)._chosen(real)
    assert np.array_equal(chosen, real.column("pool")[::4])
    assert len(evaluator(weights, reference_images=40)._chosen(real)) == 40
