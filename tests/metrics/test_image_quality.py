"""PSNR and SSIM against scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage import metrics as skimage
from torch import Tensor

from alignbench.metrics import image_quality
from alignbench.metrics.image_quality import mean_squared_error, psnr, ssim


def pairs(height: int, width: int, count: int = 5) -> tuple[Tensor, Tensor]:
    """Smooth, flat, noisy and saturated images, with distortions from one level to everything."""
    numbers = np.random.default_rng(height * width)
    ramp = np.linspace(0, 255, height * width).reshape(1, 1, height, width)
    originals = np.broadcast_to(ramp, (count, 3, height, width)).copy()
    originals[1] = 200
    originals[2] = numbers.integers(0, 256, (3, height, width))
    originals[3] = 255 * (numbers.random((3, height, width)) > 0.5)
    noise = numbers.normal(size=originals.shape) * np.array([0.5, 1, 10, 40, 400])[:count, None, None, None]
    images = np.clip(np.rint(originals + noise), 0, 255)
    return torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(originals.astype(np.uint8))


def last(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("shape", [(7, 7), (32, 21)])
def test_equal_to_scikit_image(shape: tuple[int, int]) -> None:
    images, originals = pairs(*shape)
    signal, structure, doubled = (
        psnr(images, originals), ssim(images, originals), ssim(images, originals, data_range=510)
    )  # fmt: skip
    assert signal.dtype == structure.dtype == torch.float64 and signal.shape == structure.shape == (5,)
    for row, (image, original) in enumerate(zip(map(last, images), map(last, originals), strict=True)):
        expected = skimage.peak_signal_noise_ratio(original, image)
        assert signal[row].item() == pytest.approx(expected, rel=1e-12)
        expected = skimage.structural_similarity(original, image, channel_axis=-1)
        assert structure[row].item() == pytest.approx(expected, abs=1e-10)
        expected = skimage.structural_similarity(original / 255, image / 255, data_range=2.0, channel_axis=-1)
        assert doubled[row].item() == pytest.approx(expected, abs=1e-10)
    assert (doubled[[0, 2]] > structure[[0, 2]]).all()  # the released program's range reads high


def test_the_released_program_s_calls_in_its_precision() -> None:
    """LlamaGen compares float32 images in [0, 1]; what it gets is ours but for its rounding."""
    images, originals = pairs(64, 64)
    for row, (image, original) in enumerate(zip(map(last, images), map(last, originals), strict=True)):
        restored = image.astype(np.float32) / 255.0
        truth = ((original.astype(np.float32) / 255 - 0.5) / 0.5 + 1.0) / 2.0
        official = skimage.peak_signal_noise_ratio(restored, truth)
        assert psnr(images, originals)[row].item() == pytest.approx(official, abs=1e-4)
        official = skimage.structural_similarity(restored, truth, data_range=2.0, channel_axis=-1)
        assert ssim(images, originals, data_range=510)[row].item() == pytest.approx(official, abs=1e-4)


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_equal_images() -> None:
    images, _ = pairs(16, 16)
    assert (mean_squared_error(images, images) == 0).all()
    assert torch.allclose(ssim(images, images), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-15)
    best = psnr(images, images)
    assert best.tolist() == [pytest.approx(10 * math.log10(255**2 * 3 * 256))] * 5
    almost = images.clone()
    almost[:, 1, 3, 5] ^= 1  # one level in one channel of one pixel
    assert torch.equal(psnr(almost, images), best)
    assert math.isinf(skimage.peak_signal_noise_ratio(last(images[0]), last(images[0])))


def test_extremes() -> None:
    black, white = (torch.full((1, 3, 9, 9), level, dtype=torch.uint8) for level in (0, 255))
    assert mean_squared_error(black, white).item() == 255**2
    assert psnr(black, white).item() == 0
    assert ssim(black, white).item() == pytest.approx(0.01**2 / (1 + 0.01**2), rel=1e-12)


def test_images_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    images, originals = pairs(32, 21)
    whole = ssim(images, originals)
    monkeypatch.setattr(image_quality, "CHUNK_VALUES", 1)
    assert torch.equal(ssim(images, originals), whole)


def test_what_cannot_be_compared_is_refused() -> None:
    images, originals = pairs(8, 8)
    with pytest.raises(ValueError, match="at least 7×7"):
        ssim(images[..., :6], originals[..., :6])
    with pytest.raises(ValueError, match="uint8"):
        psnr(images / 255, originals / 255)
    with pytest.raises(ValueError, match="originals are"):
        ssim(images, originals[:4])
