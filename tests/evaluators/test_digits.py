"""The distribution evaluator of digits against torch-fidelity and direct computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from alignbench.api import ImageBatch, Reference
from alignbench.errors import UserError
from alignbench.evaluators import digits as distribution
from alignbench.nets import digits
from alignbench.registry.lookup import Registry
from tests.helpers.toys import Memory


def strokes(count: int, seed: int, *, side: int = 8) -> Tensor:
    """[count, 3, side, side] uint8 grey blobs with more variety than 8 numbers."""
    rng = np.random.default_rng(seed)
    grey = np.kron(rng.integers(0, 256, (count, 4, 4)), np.ones((2, 2))) * rng.random((count, 8, 8))
    big = np.kron(grey, np.ones((side // 8, side // 8)))
    return torch.from_numpy(np.repeat(big[:, None], 3, axis=1).astype(np.uint8))


def evaluator(**changes: int) -> distribution.DigitsDistribution:
    card = Registry.default().evaluator("distribution-digits")
    options = {name: option.default for name, option in card.options.items()} | changes
    return distribution.build(card, options=options, assets={}, device=torch.device("cpu"))


def measured(images: Tensor, labels: Tensor | None = None, *, batch: int = 64) -> Memory:
    parts = []
    for start in range(0, len(images), batch):
        ids = range(start, min(start + batch, len(images)))
        part = slice(ids.start, ids.stop)
        of_part = labels[part] if labels is not None else None
        parts.append(evaluator().measure(ImageBatch(ids=ids, images=images[part], labels=of_part)))
    return Memory({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def scores(samples: Memory, reference: Memory, **changes: int) -> dict[str, float]:
    found = evaluator(**changes).score(samples, Reference(digest="r", measured=reference))
    return {metric.name: metric.value for metric in found}


def test_rows_are_one_per_image_in_float64() -> None:
    labels = torch.arange(6)
    images = strokes(6, 0, side=16)
    rows = measured(images, labels).rows
    assert {name: (column.shape, column.dtype.type) for name, column in rows.items()} == {
        "pixels": ((6, 64), np.float64),
        "penultimate": ((6, 32), np.float64),
        "logits": ((6, 10), np.float64),
        "label": ((6,), np.int64),
        "correct": ((6,), np.float64),
        "recognised": ((6,), np.int64),
        "probability": ((6,), np.float64),
        "requested": ((6,), np.float64),
    }
    powers = np.exp(rows["logits"])
    shares = powers / powers.sum(axis=1, keepdims=True)
    assert rows["probability"] == pytest.approx(shares.max(axis=1), rel=1e-12)
    assert rows["requested"] == pytest.approx(shares[range(6), labels], rel=1e-12)
    assert np.array_equal(rows["recognised"], shares.argmax(axis=1))
    assert (measured(images, labels + 10).rows["requested"] == 0).all()  # a class the network does not know
    assert "requested" not in measured(images).rows
    assert np.array_equal(rows["correct"], rows["logits"].argmax(axis=1) == labels.numpy())
    grey = images[:, :, ::2, ::2].double().mean(1).flatten(1) / 127.5 - 1
    assert rows["pixels"] == pytest.approx(grey.numpy())
    logits = digits.load("digits-features-a").double().logits(images[..., ::2, ::2].double() / 127.5 - 1)
    assert rows["logits"] == pytest.approx(logits.numpy(), abs=1e-9)


def frechet(generated: Tensor, real: Tensor) -> float:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    moments = [fid_features_to_statistics(rows) for rows in (generated, real)]
    return float(fid_statistics_to_metric(*moments, verbose=False)["frechet_inception_distance"])


def test_all_metrics_are_torch_fidelitys() -> None:
    """It made the published records, so its last digits count: precision and recall are float32."""
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    generated, real = measured(strokes(400, 0), torch.arange(400) % 10), measured(strokes(300, 1))
    found = scores(generated, real)
    ours, theirs = (
        {name: torch.from_numpy(rows.column(name)) for name in rows.rows} for rows in (generated, real)
    )
    for metric, column in (("fd-digits", "penultimate"), ("fd-pixels", "pixels")):
        assert found[metric] == pytest.approx(frechet(ours[column], theirs[column]), rel=1e-9)
    score = isc_features_to_metric(ours["logits"], splits=10, shuffle=True, rng_seed=2020)
    assert found["is-digits"] == pytest.approx(score["inception_score_mean"], rel=1e-12)
    shares = prc_features_to_metric(
        ours["penultimate"], theirs["penultimate"], prc_neighborhood=3, verbose=False
    )
    assert {name: found[name] for name in ("precision", "recall")} == {
        name: shares[name] for name in ("precision", "recall")
    }
    assert found["class-accuracy"] == generated.column("correct").mean()
    assert 0 < found["precision"] < 1 and 0 < found["recall"] < 1


def test_pixel_repeated_copies_and_other_batches_score_the_same() -> None:
    reference = measured(strokes(140, 1))  # more rows than the 64 pixels: regular covariances
    small = scores(measured(strokes(150, 0)), reference)
    large = scores(measured(strokes(150, 0, side=32), batch=7), reference)
    assert small == pytest.approx(large, rel=1e-9)


def test_too_few_images_and_no_real_ones_are_an_error() -> None:
    rows = measured(strokes(30, 0)).rows
    for samples, reference, changes, words in (
        (0, 30, {}, "0 samples"),
        (9, 30, {}, "9 samples.*10 splits need at least 10"),
        (3, 30, {"splits": 1}, "3 samples: 3 neighbours"),
        (30, 3, {}, "3 reference images"),
    ):
        few, real = (
            Memory({name: column[:count] for name, column in rows.items()}) for count in (samples, reference)
        )
        with pytest.raises(UserError, match=words):
            scores(few, real, **changes)
    for nothing in (None, Reference(digest="only statistics")):
        with pytest.raises(UserError, match="compared with real digits"):
            evaluator().score(Memory(rows), nothing)


def test_features_that_are_not_finite_are_an_error() -> None:
    broken = evaluator()
    with torch.no_grad():
        broken._net.dense.bias[0] = torch.nan
    with pytest.raises(UserError, match=r"images 4 to 8: .*not finite"):
        broken.measure(ImageBatch(ids=range(4, 9), images=strokes(5, 0)))
