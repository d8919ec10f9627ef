"""Training order and reference sets: arithmetic, not state."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
import torch

from alignbench.api import Batch
from alignbench.data.dataset import ImageDataset
from alignbench.data.decode import AHEAD, ordered_map
from alignbench.data.stream import Stream
from alignbench.samples.real import DatasetImages
from tests.helpers.data_sets import opened


def noise(count: int) -> ImageDataset:
    dataset: ImageDataset = opened("synthetic", image_size=4, num_classes=3, count=count)
    return dataset


def same(left: Batch, right: Batch) -> bool:
    return (
        torch.equal(left.index, right.index)
        and torch.equal(left.images, right.images)
        and torch.equal(left.condition.ids, right.condition.ids)  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize(("count", "share"), [(10, 4), (3, 8)])
def test_every_epoch_shows_every_image_once(count: int, share: int) -> None:
    stream = Stream(noise(count), seed=5, images_per_step=share, workers=0)
    epochs = np.concatenate([stream.indices(step) for step in range(count * 3)]).reshape(-1, count)
    assert (np.sort(epochs) == np.arange(count)).all()


def test_order_depends_on_seed_and_epoch() -> None:
    first, other = (Stream(noise(50), seed=seed, images_per_step=50, workers=0) for seed in (0, 1))
    assert (first.indices(0) != first.indices(1)).any() and (first.indices(0) != other.indices(0)).any()
    # Must never change: recorded runs rest on it.
    assert first.indices(0)[:6].tolist() == [1, 11, 12, 40, 39, 46]


def test_batches_hold_the_images_in_the_range_of_the_models() -> None:
    dataset = noise(10)
    stream = Stream(dataset, seed=0, images_per_step=4, workers=0)
    batch = stream.batch(3, 0, 1)
    assert batch.index.tolist() == [12, 13, 14, 15] and batch.index.dtype == torch.int64
    assert batch.images.shape == (4, 3, 4, 4) and batch.images.dtype == torch.float32
    assert batch.images.is_contiguous()
    for row, index in enumerate(stream.indices(3)):
        pixels, label = dataset.load(int(index))
        expected = pixels.astype(np.float64).transpose(2, 0, 1) / 127.5 - 1
        np.testing.assert_allclose(batch.images[row].numpy(), expected, atol=1e-6)
        assert batch.condition.ids[row] == label  # type: ignore[attr-defined]
    assert batch.images.min() >= -1 and batch.images.max() <= 1


def test_ranks_share_a_step_in_blocks_and_threads_and_history_change_nothing() -> None:
    dataset = noise(7)
    plain = Stream(dataset, seed=3, images_per_step=8, workers=0)
    with Stream(dataset, seed=3, images_per_step=8, workers=3) as threaded:
        for step in (0, 1, 2, 9, 8, 8, 0):  # forwards, a jump, backwards, again
            whole = plain.batch(step, 0, 1)
            assert same(threaded.batch(step, 0, 1), whole)
            parts = [threaded.batch(step, rank, 4) for rank in range(4)]
            assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
            assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


def test_background_threads_load_each_image_once_and_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, plain = noise(100), noise(10)
    load, loads, threads = type(dataset).load, Counter[int](), set()

    def watched(self: ImageDataset, index: int) -> tuple[np.ndarray, int]:
        loads[index] += 1
        threads.add(threading.current_thread().name)
        return load(self, index)

    monkeypatch.setattr(type(dataset), "load", watched)
    with Stream(dataset, seed=0, images_per_step=5, workers=2) as stream:
        for step in range(4):
            stream.batch(step, 0, 1)
    assert threading.current_thread().name not in threads
    assert set(loads.values()) == {1}
    used = {int(index) for step in range(4) for index in stream.indices(step)}
    ahead = {int(index) for step in (4, 5) for index in stream.indices(step)}
    assert used <= set(loads) <= used | ahead
    threads.clear()
    Stream(plain, seed=0, images_per_step=5, workers=0).batch(0, 0, 1)
    assert threads == {threading.current_thread().name}


def test_ordered_map_keeps_order_and_reads_only_what_it_needs() -> None:
    taken: list[int] = []

    def items() -> object:
        for number in range(1000):
            taken.append(number)
            yield number

    results = ordered_map(lambda number: number * number, items(), workers=3)  # type: ignore[arg-type]
    assert [next(results) for _ in range(10)] == [number**2 for number in range(10)]
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 10 + AHEAD * 3 + 1


@pytest.mark.parametrize("workers", [0, 2])
def test_reference_images_come_in_order(workers: int) -> None:
    dataset = noise(7)
    images = DatasetImages(dataset, batch=3, workers=workers)
    parts = list(images.images())
    assert [len(part) for part in parts] == [3, 3, 1] and len(images) == 7
    assert images.identity == dataset.digest
    assert images.labels().tolist() == [dataset.load(index)[1] for index in range(7)]
    for index, image in enumerate(torch.cat(parts)):
        assert image.dtype == torch.uint8
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), dataset.load(index)[0])
