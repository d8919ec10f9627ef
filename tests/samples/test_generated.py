"""Sample sets: independent of batches, resumable by shard, labels by the protocol's rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from alignbench.backbones.llamagen.model import build
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import ProtocolCard
from alignbench.samples.generated import ImageDecoder, Sampler, TokenImages, labels_of, shard_path
from alignbench.samples.real import shards

CPU = torch.device("cpu")


def protocol(**changes: object) -> ProtocolCard:
    return Registry.default().protocol("digits8").model_copy(update=changes)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    backbone = build(Registry.default().model("llamagen-tiny"), None, seed=1)
    return Sampler(backbone, protocol(samples=40, batch=16), 10, CPU)


def with_protocol(sampler: Sampler, **changes: object) -> Sampler:
    return Sampler(sampler.backbone, sampler.protocol.model_copy(update=changes), 10, CPU)


def test_images_depend_on_setting_and_seed_and_not_on_the_batch(sampler: Sampler) -> None:
    setting = sampler.protocol.settings["t0.8-cfg1.5"]
    tokens, labels = sampler.generate(setting, 3, range(20))
    assert tokens.shape == (20, 16) and tokens.dtype == np.int32
    alone, label = with_protocol(sampler, batch=1).generate(setting, 3, [17])
    assert np.array_equal(tokens[17], alone[0]) and labels[17] == label[0]
    for other in ((setting, 1), (sampler.protocol.settings["t0.6"], 3)):
        assert not np.array_equal(tokens, sampler.generate(*other, range(20))[0])


def token_images(sampler: Sampler, folder: Path, setting: str = "t1", seed: int = 0) -> TokenImages:
    decoder = ImageDecoder(sampler.backbone, sampler.protocol, CPU)
    return TokenImages(sampler, decoder, folder, sampler.protocol.settings[setting], seed, "weights")


def test_only_missing_shards_are_made(sampler: Sampler, tmp_path: Path) -> None:
    smaller = with_protocol(sampler, samples=600, batch=100)
    assert [len(ids) for ids in smaller.shards()] == 6 * [100]
    images = token_images(smaller, tmp_path)
    first, second = images.load(0), images.load(1)
    assert len(images) == 600 and list(second.ids) == list(range(100, 200))
    kept = shard_path(tmp_path, 0).stat().st_mtime_ns
    shard_path(tmp_path, 1).unlink()
    (tmp_path / "half.tmp").write_bytes(b"torn")
    again = token_images(smaller, tmp_path)
    assert torch.equal(again.load(1).images, second.images) and torch.equal(
        again.load(0).images, first.images
    )
    assert first.labels is not None and torch.equal(first.labels, torch.arange(100) % 10)
    assert shard_path(tmp_path, 0).stat().st_mtime_ns == kept


@pytest.mark.parametrize("name", Registry.default().names("protocols"))
def test_small_sets_keep_many_processes_busy_and_large_ones_have_large_shards(name: str) -> None:
    card = Registry.default().protocol(name)
    cut = shards(card.samples, card.batch)
    assert [number for ids in cut for number in ids] == list(range(card.samples))
    assert all(ids.start % card.batch == 0 for ids in cut), "every batch is that of a set in one piece"
    batches = -(-card.samples // card.batch)
    assert len(cut) >= min(512, batches), "a process for each batch, or 512"
    assert len(cut) == batches or len(cut[0]) >= 2 * card.batch, "one batch only where that makes it many"
    assert len(cut[0]) <= max(256, card.batch)


@pytest.mark.parametrize(
    ("count", "batch", "size"),
    [(1, 32, 32), (2212, 32, 32), (2212, 1, 4), (2212, 4, 4), (4096, 32, 32), (10**6, 100, 300)],
)
def test_sizes_of_shards(count: int, batch: int, size: int) -> None:
    assert {ids.stop - ids.start for ids in shards(count, batch)[:-1]} in (set(), {size})


def test_size_and_rounding_are_the_protocol_s(sampler: Sampler, tmp_path: Path) -> None:
    images = token_images(sampler, tmp_path).load(0).images
    assert images.shape == (16, 3, 8, 8) and images.dtype == torch.uint8
    small = with_protocol(sampler, resize="bicubic", image_size=6)
    assert token_images(small, tmp_path).load(0).images.shape[1:] == (3, 6, 6)
    darker = token_images(with_protocol(sampler, rounding="truncate-255"), tmp_path).load(0).images
    assert set((images.int() - darker.int()).unique().tolist()) == {0, 1}


def test_labels() -> None:
    balanced = labels_of(protocol(labels="balanced"), 10, 0, range(1000))
    assert (np.bincount(balanced) == 100).all()
    uniform = labels_of(protocol(labels="uniform"), 10, 0, range(5000))
    counts = np.bincount(uniform, minlength=10)
    assert counts.min() > 400 and counts.max() < 600 and len(set(counts)) > 1
    assert uniform[17] == labels_of(protocol(labels="uniform"), 10, 0, [17])[0]
