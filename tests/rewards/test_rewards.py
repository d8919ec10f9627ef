"""Distances against plain loops and the lpips package; `tests/contract` has what every distance promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from alignbench import api
from alignbench.errors import UserError
from alignbench.hub.verify import AssetFile
from alignbench.nets import lpips
from alignbench.registry.lookup import Registry, import_target
from alignbench.rewards import perceptual
from alignbench.rewards.build import build
from alignbench.rewards.perceptual import PerceptualDistance, require_trunk
from alignbench.rewards.pixel import PixelDistance, PixelLoss, pixel_distance
from tests.helpers.lpips_trunks import random_trunk
from tests.helpers.reward_toys import BUILT_IN, request

REGISTRY = Registry([("built-in", BUILT_IN)])


def images(count: int, side: int = 8, seed: int = 0) -> Tensor:
    return request(count, side, seed=seed).images * 2.4 - 1.2


def apart(distance: api.Distance, decoded: Tensor, reference: Tensor) -> Tensor:
    """Distance of each image to its own reference."""
    return distance.distance(decoded, distance.prepare(reference), repeats=1)


# --- pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_pixel_distance_is_a_plain_mean_without_clamping(loss: PixelLoss) -> None:
    decoded, reference = images(6).double(), images(2, seed=1).double()
    result = pixel_distance(decoded, reference, loss, repeats=3)
    for sample in range(6):
        difference = decoded[sample].numpy() - reference[sample // 3].numpy()
        expected = np.mean(difference**2) if loss == "mse" else np.mean(np.abs(difference))
        assert result[sample].item() == pytest.approx(expected, abs=1e-15)


def test_pixel_distance_is_differentiable() -> None:
    decoded = images(2).requires_grad_()
    apart(PixelDistance("mse"), decoded, images(2, seed=1)).sum().backward()
    expected = 2 * (decoded.detach() - images(2, seed=1)) / decoded[0].numel()
    assert decoded.grad is not None and torch.allclose(decoded.grad, expected)


def test_the_digits_reward_is_not_the_network_of_the_digits_evaluator() -> None:
    assert REGISTRY.reward("perceptual-digits").networks == ["digits-features-b"]


# --- LPIPS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_the_feature_distance_of_the_trunk_with_the_package_s_heads(
    net: lpips.Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = random_trunk(net, tmp_path / "trunk.pth")  # tests/nets/test_lpips.py compares with the package
    monkeypatch.setattr(perceptual, "require_trunk", lambda name, given: path)
    decoded, reference = images(2, side=48), images(2, side=48, seed=1)
    reward = import_target(REGISTRY.reward(f"lpips-{net}").target)(torch.device("cpu"))
    given = request(2, images=(decoded + 1) / 2, reference=(reference + 1) / 2)
    expected = apart(lpips.FeatureDistance(lpips.load_trunk(net, path), lpips.heads(net)), decoded, reference)
    assert expected.min().item() > 1e-4
    assert torch.allclose(reward.score(given).values, expected, rtol=1e-5, atol=0)


def test_lpips_takes_the_trunk_that_the_user_names(tmp_path: Path) -> None:
    path = random_trunk("alex", tmp_path / "mine.pth")
    real = request(2, 48, seed=1).images
    given = request(2, 48, reference=real)
    distance = lpips.FeatureDistance(lpips.load_trunk("alex", path), lpips.heads("alex"))
    expected = apart(distance, 2 * given.images - 1, 2 * real - 1)
    assets = {"lpips-alexnet-trunk": str(path)}
    for text, paths in (("lpips-alex", assets), (f"lpips-alex(path={path})", {"lpips-alexnet-trunk": "/no"})):
        reward = build(text, REGISTRY, torch.device("cpu"), image_size=48, assets=paths)
        assert torch.allclose(-reward.score(given).values, expected, rtol=1e-5, atol=0)


def test_dead_pixels_pass_finite_gradients() -> None:
    distance = PerceptualDistance(lambda batch: [batch.relu()])
    batch = images(1).requires_grad_()
    with torch.no_grad():
        batch[0, :, 2, 3] = -1.0  # zero in all channels after the ReLU
    apart(distance, batch, images(1, seed=1)).sum().backward()
    assert batch.grad is not None and batch.grad.isfinite().all()
    assert batch.grad.abs().max().item() > 0


@pytest.mark.parametrize("name", ["lpips-vgg", "lpips-alex"])
def test_a_missing_trunk_is_named_with_the_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch home"))
    card = REGISTRY.reward(name)
    with pytest.raises(UserError) as caught:
        import_target(card.target)(torch.device("cpu"))
    asset = REGISTRY.asset(card.files[0].asset)
    assert asset.file in caught.value.what and f"alignbench fetch {card.files[0].asset}" in caught.value.fix
    assert int(Path(asset.file).stem.rpartition("-")[2], 16) > 0, "the start of a digest is in the name"


def test_a_damaged_trunk_is_refused_and_torchvision_s_copy_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / REGISTRY.asset("lpips-alexnet-trunk").file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights" * 1000)
    with pytest.raises(UserError, match=r"alexnet-owt-7be5be79\.pth is damaged: its sha256 begins with"):
        require_trunk("lpips-alexnet-trunk")
    whole = tmp_path / "alexnet-owt-0123abcd.pth"
    verified = AssetFile("", whole, "0123abcd" + "0" * 56)
    monkeypatch.setattr("alignbench.rewards.perceptual.verify_asset", lambda status: verified)
    assert require_trunk("lpips-alexnet-trunk") == whole
