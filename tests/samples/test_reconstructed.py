"""Reconstructions of a data set: which images, in which order, through which tokenizer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignbench.backbones.llamagen.model import build
from alignbench.data.digits import Digits
from alignbench.errors import UserError
from alignbench.files import package_file
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import ProtocolCard
from alignbench.samples.pixels import from_uint8, to_uint8
from alignbench.samples.reconstructed import ReconstructedImages
from tests.helpers.data_sets import opened

REGISTRY = Registry.default()
CPU = torch.device("cpu")


def protocol(**changes: object) -> ProtocolCard:
    return REGISTRY.protocol("digits8-reconstruction").model_copy(update=changes)


class Pixels:
    """A tokenizer that loses nothing: each pixel of each image has a code of its own."""

    downsample = 1

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def encode(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return torch.arange(images[:, 0].numel()).view(len(images), -1)

    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        assert tokens.shape[1] == grid[0] * grid[1]
        return self.seen[-1] * 1.0


def data_set(count: int, seed: int = 0, side: int = 8) -> Digits:
    numbers = np.random.default_rng(seed)
    pixels = numbers.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return Digits(pixels, numbers.integers(0, 10, count))


def image_set(dataset: Any, card: ProtocolCard, tokenizer: Any = None, **options: Any) -> ReconstructedImages:
    backbone: Any = SimpleNamespace(tokenizer=tokenizer or Pixels())
    return ReconstructedImages(dataset, backbone, card, CPU, **{"weights_digest": "sha256:w", **options})


@pytest.mark.parametrize("workers", [0, 3])
def test_every_image_comes_once_in_order_with_its_original_and_label(workers: int) -> None:
    dataset, tokenizer = data_set(650), Pixels()
    images = image_set(dataset, protocol(samples=650, batch=100), tokenizer, workers=workers)
    assert [len(ids) for ids in images.shards()] == [*6 * [100], 50] and len(images) == 650
    batches = [images.load(number) for number in (6, *range(6))]
    assert [id_ for batch in batches for id_ in batch.ids] == [*range(600, 650), *range(600)]
    expected = torch.from_numpy(dataset.pixels[[*range(600, 650), *range(600)]]).permute(0, 3, 1, 2)
    originals = torch.cat([batch.originals for batch in batches if batch.originals is not None])
    assert torch.equal(originals, expected) and originals.dtype == torch.uint8
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected)
    labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
    assert torch.equal(labels, torch.from_numpy(dataset.labels[[*range(600, 650), *range(600)]]))
    assert {tuple(seen.shape) for seen in tokenizer.seen} == {(100, 3, 8, 8)}  # the tail is padded
    assert all(seen.min() >= -1 and seen.max() <= 1 for seen in tokenizer.seen)


def test_rounding_is_the_protocol_s() -> None:
    darker = image_set(data_set(10), protocol(samples=10, rounding="truncate-255")).load(0)
    assert darker.originals is not None
    expected = to_uint8(from_uint8(darker.originals), "truncate-255")
    assert torch.equal(darker.images, expected)
    assert not torch.equal(expected, darker.originals)  # bytes slip by a level where the product rounds down
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(every)), every)
    values = torch.tensor([-1.2, -1.0, -0.001, 0.0, 0.999, 1.0, 1.2])
    assert to_uint8(values, "truncate-128").tolist() == [0, 0, 127, 128, 255, 255, 255]
    assert to_uint8(values, "truncate-255").tolist() == [0, 0, 127, 127, 254, 255, 255]


def test_the_identity_names_all_that_images_depend_on() -> None:
    card = protocol(samples=10)
    same = image_set(data_set(10), card, workers=2).identity
    others = [
        image_set(data_set(10, seed=1), card),
        image_set(data_set(10), card, weights_digest="sha256:v"),
        image_set(data_set(10), protocol(samples=10, rounding="truncate-255")),
    ]
    assert image_set(data_set(10), card).identity == same
    assert len({same, *(other.identity for other in others)}) == 4


@torch.no_grad()
def test_a_tokenizer_works_at_the_protocol_s_size() -> None:
    """Whatever size its model generates at: 8 px here, with a 4×4 grid."""
    backbone = build(REGISTRY.model("llamagen-tiny"), None, seed=1)
    dataset = data_set(5, side=16)
    images = image_set(dataset, protocol(samples=5, batch=8, image_size=16), backbone.tokenizer).load(0)
    assert images.originals is not None and backbone.grid == (4, 4)
    tokens = backbone.tokenizer.encode(from_uint8(images.originals))
    assert tokens.shape == (5, 64)
    assert torch.equal(images.images, to_uint8(backbone.tokenizer.decode(tokens, (8, 8))))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="reconstructs 400 images; the data set has 399"):
        image_set(data_set(399), protocol())
    coarse: Any = SimpleNamespace(downsample=16)
    with pytest.raises(UserError, match="needs a multiple of 16"):
        image_set(data_set(400), protocol(), coarse)
    with pytest.raises(ValueError, match=r"images are \[3, 8, 8\], not \[3, 16, 16\]"):
        image_set(data_set(400), protocol(image_size=16)).load(0)


def test_every_llamagen_has_a_protocol_that_fits() -> None:
    models = [REGISTRY.model(name) for name in REGISTRY.names("models")]
    reconstructing = [model for model in models if model.reconstruction]
    assert reconstructing == [model for model in models if model.family == "llamagen"] != []
    for model in reconstructing:
        card = REGISTRY.protocol(model.reconstruction)
        assert (card.task, card.seeds, card.precision) == ("reconstruction", [0], "fp32")
        assert list(card.settings) == ["reconstruction"] and card.resize == "none"
        assert card.image_size % model.tokenizer.downsample == 0
        assert card.reference is not None
        assert card.reference.split in REGISTRY.dataset(card.reference.dataset).splits
        metrics = [metric for part in card.evaluators for metric in REGISTRY.evaluator(part).metrics]
        assert card.rank_by in metrics and {"rec-psnr", "rec-ssim"} <= set(metrics)


def test_the_shipped_tokenizer_comes_close_to_the_test_digits() -> None:
    model = REGISTRY.model("llamagen-tiny")
    files = {str(file.role): package_file(file.path) for file in model.files}
    card = REGISTRY.protocol(model.reconstruction)
    assert files and card.task == "reconstruction" and card.reference is not None
    dataset = opened(card.reference.dataset, card.reference.split, num_classes=model.num_classes)
    images = ReconstructedImages(dataset, build(model, files, seed=0), card, CPU, weights_digest="sha256:w")
    batch = images.load(0)
    assert batch.originals is not None
    error = (batch.images.double() - batch.originals.double()).square().mean().item()
    other = (batch.images.double() - batch.originals.roll(1, dims=0).double()).square().mean().item()
    assert error < 800 < other / 5
