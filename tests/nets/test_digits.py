"""The digit networks: geometry, canonical input, shipped files."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from alignbench.errors import UserError
from alignbench.nets import digits


def images(count: int = 4, side: int = 8) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_shapes_and_one_pass_for_both_outputs() -> None:
    for name, maps, width in (
        ("digits-features-a", [(16, 8, 8), (32, 4, 4)], 32),
        ("digits-features-b", [(12, 8, 8), (24, 4, 4), (32, 2, 2)], 48),
    ):
        net = digits.load(name)
        assert [tuple(part.shape) for part in net.features(images())] == [(4, *shape) for shape in maps]
        assert net.penultimate(images()).shape == (4, width)
        assert net.logits(images()).shape == (4, 10)
        penultimate, logits = net(images())
        assert torch.equal(penultimate, net.penultimate(images()))
        assert torch.equal(logits, net.logits(images()))


def test_layer_maps_match_functional_convolutions() -> None:
    net = digits.load("digits-features-a")
    state = net.state_dict()
    hidden = images().mean(1, keepdim=True)
    first = F.conv2d(hidden, state["convs.0.weight"], state["convs.0.bias"], padding=1).clamp(min=0)
    second = F.conv2d(first, state["convs.1.weight"], state["convs.1.bias"], stride=2, padding=1)
    torch.testing.assert_close(net.features(images()), [first, second.clamp(min=0)])


def test_canonical_digit_is_the_mean_over_channels_and_areas() -> None:
    large = images(2, side=24)
    expected = large.mean(1, keepdim=True).unflatten(-1, (8, 3)).unflatten(2, (8, 3)).mean(dim=(3, 5))
    torch.testing.assert_close(digits.canonical_digits(large), expected)
    small = images(3)
    large = small.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    torch.testing.assert_close(digits.canonical_digits(large), digits.canonical_digits(small))


def test_other_shapes_are_refused() -> None:
    for shape in ((2, 1, 8, 8), (3, 8, 8), (2, 3, 7, 8)):
        with pytest.raises(ValueError, match=r"\[N, 3, H, W\]"):
            digits.canonical_digits(torch.zeros(shape))


def test_loaded_networks_are_frozen_but_pass_gradients_to_images() -> None:
    net = digits.load("digits-features-b")
    pixels = images().requires_grad_()
    sum((part.square().mean() for part in net.features(pixels)), torch.zeros(())).backward()
    assert not net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert pixels.grad is not None and pixels.grad.abs().max() > 0


def test_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="Did you mean digits-features-a"):
        digits.load("digits-feature-a")


def _package(folder: Path, *, data: bytes | None, sha256: str) -> None:
    weights = folder / digits.FOLDER
    weights.mkdir(parents=True)
    name = "digits-features-a.safetensors"
    if data is not None:
        (weights / name).write_bytes(data)
    (weights / "manifest.json").write_text(json.dumps({"files": {name: {"sha256": sha256}}}))


def test_changed_and_missing_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for case, data, words in [
        ("changed", b"x", "sha256 is .* the manifest says 00"),
        ("gone", None, "missing"),
    ]:
        _package(tmp_path / case, data=data, sha256="00")
        monkeypatch.setattr(importlib.resources, "files", lambda _, root=tmp_path / case: root)
        with pytest.raises(UserError, match=words):
            digits.load("digits-features-a")
