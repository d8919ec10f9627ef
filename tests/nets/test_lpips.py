"""LPIPS against the lpips package: on random trunks always, on the real ones where they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from alignbench.errors import UserError
from alignbench.nets import lpips
from tests.conftest import DATA
from tests.helpers.lpips_trunks import random_trunk

NETS: tuple[lpips.Net, ...] = ("alex", "vgg")
TRUNKS = "ALIGNBENCH_LPIPS_TRUNKS"
EXAMPLES = {"alex": (0.7219, 0.1376), "vgg": (0.5686, 0.4217)}
"""Distances of p0 and p1 to ref; those of AlexNet are the well-known 0.722 and 0.138."""


def images(count: int, side: int = 48, seed: int = 0) -> Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=numbers) * 2.4 - 1.2


def ours(net: lpips.Net, path: Path) -> lpips.FeatureDistance:
    return lpips.FeatureDistance(lpips.load_trunk(net, path), lpips.heads(net))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def theirs(net: lpips.Net, path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """The package's own model with the weights of a file put into its slices."""
    import lpips as package

    with torch.random.fork_rng():
        model: Any = package.LPIPS(net=net, pnet_rand=True, verbose=False)
    state = torch.load(path)
    for name, parameter in model.net.named_parameters():
        parameter.copy_(state[f"features.{name.partition('.')[2]}"])
    return lambda first, second: model(first, second).flatten()


def apart(distance: lpips.FeatureDistance, first: Tensor, second: Tensor, *, repeats: int = 1) -> Tensor:
    return distance.distance(first, distance.prepare(second), repeats=repeats)


def close(ours_: Tensor, theirs_: Tensor) -> bool:
    return bool((ours_ - theirs_).abs().max() <= 1e-6 * max(1.0, float(theirs_.max())))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("net", NETS)
@torch.no_grad()
def test_equal_to_the_package_on_a_random_trunk(net: lpips.Net, tmp_path: Path) -> None:
    path = random_trunk(net, tmp_path / "trunk.pth")
    first, second = images(4), images(2, seed=1)
    repeated = second.repeat_interleave(2, dim=0)
    expected = theirs(net, path)(first, repeated)
    assert expected.min() > 1e-4
    state = torch.random.get_rng_state()
    distance = ours(net, path)
    assert torch.equal(torch.random.get_rng_state(), state)  # building draws nothing
    assert close(apart(distance, first, repeated), expected)
    assert close(apart(distance, first, second, repeats=2), expected)


def test_the_trunk_is_frozen_and_passes_gradients(tmp_path: Path) -> None:
    distance = ours("alex", random_trunk("alex", tmp_path / "trunk.pth"))
    assert isinstance(distance.features, lpips.Trunk)
    assert not any(parameter.requires_grad for parameter in distance.features.parameters())
    assert not any(part.training for part in distance.features.modules())
    batch = images(1).requires_grad_()
    apart(distance, batch, images(1, seed=1)).sum().backward()
    assert batch.grad is not None and batch.grad.abs().max() > 0


def test_files_that_are_no_trunk_are_named(tmp_path: Path) -> None:
    path = tmp_path / "trunk.pth"
    for content, complaint in [
        (b"weights", "cannot be read as weights"),
        ({"features.0.weight": torch.zeros(1)}, "does not hold torchvision's alexnet"),
        ([1, 2], "does not hold torchvision's alexnet"),
    ]:
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(UserError, match=complaint) as caught:
            lpips.load_trunk("alex", path)
        assert str(path) in caught.value.what
    with pytest.raises(UserError, match="does not hold torchvision's vgg16"):
        lpips.load_trunk("vgg", random_trunk("alex", path))


def test_the_heads_are_those_of_version_0_1() -> None:
    assert lpips.heads_digest("vgg").startswith("a78928a0")
    assert lpips.heads_digest("alex").startswith("df73285e")
    assert [len(head) for head in lpips.heads("vgg")] == [64, 128, 256, 512, 512]
    assert all((head >= 0).all() for head in lpips.heads("alex"))


# --- real weights ---------------------------------------------------------------------------------


def real_trunk(net: lpips.Net) -> Path:
    folder = os.environ.get(TRUNKS)
    if not folder:
        pytest.skip(f"{TRUNKS} is not set; python -m tests.nets.real_trunks OUT makes the trunks (64 MB)")
    path = Path(folder) / f"{net}.pth"
    assert path.is_file(), f"{path}: python -m tests.nets.real_trunks {folder}"
    return path


def picture(name: str) -> Tensor:
    with Image.open(DATA / "lpips" / f"{name}.png") as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.mark.weights
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("net", NETS)
@torch.no_grad()
def test_real_trunks_know_the_example_images_and_photographs(net: lpips.Net) -> None:
    path = real_trunk(net)
    from sklearn.datasets import load_sample_image

    photos = [load_sample_image(name)[100:228, 200:360] for name in ("china.jpg", "flower.jpg")]
    originals = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float() / 127.5 - 1
    noisy = originals + 0.1 * images(2, side=160)[:, :, :128]
    assert close(apart(ours(net, path), noisy, originals), theirs(net, path)(noisy, originals))
    distorted = torch.cat([picture("ex_p0"), picture("ex_p1")])
    distances = apart(ours(net, path), distorted, picture("ex_ref"), repeats=2)
    assert distances.tolist() == pytest.approx(EXAMPLES[net], abs=6e-5)
    assert close(distances, theirs(net, path)(distorted, picture("ex_ref").expand(2, -1, -1, -1)))
