"""The Inception network against torch-fidelity's, and the files it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignbench.errors import UserError
from alignbench.nets import inception
from tests.helpers.inception_toys import batch_of, network, pictures, random_weights

CPU = torch.device("cpu")


def official(*layers: str) -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3(
        inception.NAME, list(layers), feature_extractor_weights_path=str(random_weights())
    )


@torch.no_grad()
def test_features_are_torch_fidelity_s_bit_for_bit() -> None:
    images = batch_of(pictures(3, seed=1)).images
    pool, logits, biased = official("2048", "logits_unbiased", "logits")(images)
    ours = network().features(images)
    assert torch.equal(ours.pool, pool) and torch.equal(ours.logits, logits)
    assert not torch.allclose(ours.logits, biased)


@torch.no_grad()
def test_spatial_features_are_seven_channels_laid_out_channels_last() -> None:
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    net = official("2048")
    images = batch_of(pictures(2, seed=3)).images
    x = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
    x = (x - 128) / 128
    for block in (
        net.Conv2d_1a_3x3, net.Conv2d_2a_3x3, net.Conv2d_2b_3x3, net.MaxPool_1, net.Conv2d_3b_1x1,
        net.Conv2d_4a_3x3, net.MaxPool_2, net.Mixed_5b, net.Mixed_5c, net.Mixed_5d, net.Mixed_6a,
        net.Mixed_6b, net.Mixed_6c, net.Mixed_6d.branch1x1,
    ):  # fmt: skip
        x = block(x)
    spatial = network().features(images).spatial
    assert x.shape == (2, 192, 17, 17) and spatial.shape == (2, 2023)
    for row, column, channel in ((0, 0, 0), (0, 1, 6), (5, 9, 3), (16, 16, 6)):
        assert torch.equal(spatial[:, (row * 17 + column) * 7 + channel], x[:, channel, row, column])


def test_batches_do_not_change_rows_and_images_do() -> None:
    images = batch_of(pictures(5, seed=4)).images
    one, many = (network().rows(images, batch=size) for size in (2, 64))
    for name, values in one.items():
        np.testing.assert_allclose(values, many[name], rtol=2e-4, atol=2e-4)
        assert values.dtype == np.float32
        assert values.std(axis=0).mean() > 0.05 * np.abs(values).mean()


def test_other_weights_are_refused(tmp_path: Path) -> None:
    state = torch.load(random_weights())
    for content, reason in (
        ({"state": state}, "something else than tensors"),
        ({k: v for k, v in state.items() if k != "fc.bias"}, "fc.bias is missing"),
        ({**state, "head": torch.zeros(1)}, "head is not part of it"),
        ({**state, "fc.weight": torch.zeros(1000, 2048)}, r"fc.weight is \[1000, 2048\]"),
        ({**state, "fc.bias": torch.full((1008,), math.nan)}, "fc.bias is not finite"),
    ):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(UserError, match=reason):
            inception.load(tmp_path / "other.pth", CPU)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save(Payload(), tmp_path / "pickle.pth")
    torch.save(None, tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("not a file of tensors")
    for name in ("pickle.pth", "nothing.pth", "text.pth"):
        with pytest.raises(UserError, match="no weights of the FID Inception network"):
            inception.load(tmp_path / name, CPU)
    with pytest.raises(UserError, match="does not exist"):
        inception.load(tmp_path / "absent.pth", CPU)
    assert not (tmp_path / "ran").exists()
