"""Sample sets: independent of batches, resumable by shard, labels by the protocol's rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from alignbench.backbones.llamagen import build
from alignbench.progress import Progress, Stage
from alignbench.registry.catalogue import Catalogue
from alignbench.registry.schema import ProtocolCard
from alignbench.sampling import ImageDecoder, Sampler, TokenImages, labels_of, shard_path

STAGE = Stage(Progress(quiet=True), "sample", total=1, done=0)
CPU = torch.device("cpu")


def protocol(**changes: object) -> ProtocolCard:
    return Catalogue.default().protocol("digits8").model_copy(update=changes)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    backbone = build(Catalogue.default().model("llamagen-tiny"), None, seed=1)
    return Sampler(backbone, protocol(samples=40, batch=16), 10, CPU)


def with_protocol(sampler: Sampler, **changes: object) -> Sampler:
    return Sampler(sampler.backbone, sampler.protocol.model_copy(update=changes), 10, CPU)


def test_images_do_not_depend_on_the_batch(sampler: Sampler) -> None:
    setting = sampler.protocol.settings["t0.8-cfg1.5"]
    tokens, labels = sampler.generate(setting, 3, range(20))
    alone, label = with_protocol(sampler, batch=1).generate(setting, 3, [17])
    assert np.array_equal(tokens[17], alone[0]) and labels[17] == label[0]
    assert tokens.shape == (20, 16) and tokens.dtype == np.int32


def test_settings_and_seeds_give_different_images(sampler: Sampler) -> None:
    setting = sampler.protocol.settings["t1"]
    first, _ = sampler.generate(setting, 0, range(8))
    assert not np.array_equal(first, sampler.generate(setting, 1, range(8))[0])
    assert not np.array_equal(first, sampler.generate(sampler.protocol.settings["t0.6"], 0, range(8))[0])


def test_only_missing_shards_are_made(sampler: Sampler, tmp_path: Path) -> None:
    smaller = with_protocol(sampler, samples=300, batch=100)
    setting = smaller.protocol.settings["t1"]
    assert [len(ids) for ids in smaller.shards()] == [300]
    assert [len(ids) for ids in with_protocol(sampler, samples=600, batch=100).shards()] == [300, 300]
    smaller.fill(tmp_path, setting, 0, STAGE)
    whole = TokenImages(tmp_path, ImageDecoder(smaller.backbone, smaller.protocol, CPU))
    shard_path(tmp_path, 0).unlink()
    (tmp_path / "half.tmp").write_bytes(b"torn")
    smaller.fill(tmp_path, setting, 0, STAGE)
    again = TokenImages(tmp_path, ImageDecoder(smaller.backbone, smaller.protocol, CPU))
    assert again.digest == whole.digest and len(again) == 300
    assert smaller.fill(tmp_path, setting, 0, STAGE) == 0.0


def test_decoded_images_have_the_protocol_s_size(sampler: Sampler, tmp_path: Path) -> None:
    sampler.fill(tmp_path, sampler.protocol.settings["t1"], 0, STAGE)
    images = TokenImages(tmp_path, ImageDecoder(sampler.backbone, sampler.protocol, CPU))
    batches = list(images.images())
    assert torch.cat(batches).shape == (40, 3, 8, 8) and batches[0].dtype == torch.uint8
    resized = sampler.protocol.model_copy(update={"resize": "bicubic", "image_size": 6})
    small = TokenImages(tmp_path, ImageDecoder(sampler.backbone, resized, CPU))
    assert next(small.images()).shape[1:] == (3, 6, 6)


def test_labels() -> None:
    balanced = labels_of(protocol(labels="balanced"), 10, 0, range(1000))
    assert (np.bincount(balanced) == 100).all()
    uniform = labels_of(protocol(labels="uniform"), 10, 0, range(5000))
    counts = np.bincount(uniform, minlength=10)
    assert counts.min() > 400 and counts.max() < 600 and len(set(counts)) > 1
    assert uniform[17] == labels_of(protocol(labels="uniform"), 10, 0, [17])[0]
