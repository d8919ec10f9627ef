"""The embedded digits and the synthetic images."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from alignbench.data.dataset import captions_of
from alignbench.data.digits import split_rows
from alignbench.registry.lookup import Registry
from tests.helpers.data_sets import opened, refused

DIGESTS = {
    "train": "sha256:22f04b0d0f84ce711241f8a8fc365e98ff6883401d8ec9c80346a34b4a60fa3a",
    "validation": "sha256:b0c3a9e3edf3fb920ddfc0e671fbc7dcc3037cad5d89b3174f5ee0ebd8ae555f",
    "test": "sha256:9886edf7a65fd2589eebd403bc5d195440f50128f8ec3df4748d0508283c4bc6",
}


def test_digits_are_a_fixed_balanced_partition() -> None:
    from sklearn.datasets import load_digits

    labels = np.asarray(load_digits().target)
    rows = split_rows(labels)
    assert {split: len(part) for split, part in rows.items()} == {
        "train": 1097,
        "validation": 300,
        "test": 400,
    }
    assert sorted(np.concatenate(list(rows.values()))) == list(range(1797))
    assert (np.bincount(labels[rows["test"]]) == 40).all()
    assert (np.bincount(labels[rows["validation"]]) == 30).all()
    for split, digest in DIGESTS.items():  # must never change
        dataset = opened("digits8", split)
        assert len(dataset) == len(rows[split]) and dataset.digest == digest


def test_pixels_are_the_scaled_grey_levels() -> None:
    dataset = opened("digits8", "test")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    row = split_rows(np.asarray(bunch.target))["test"][7]
    pixels, label = dataset.load(7)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    assert label == bunch.target[row] == dataset.labels[7]
    for channel in range(3):
        assert np.abs(pixels[..., channel] / 255 - bunch.images[row] / 16).max() <= 0.5 / 255


def test_digits_fit_only_their_own_size() -> None:
    assert "8×8 images, the model works at 16×16" in refused(opened, "digits8", image_size=16)
    assert "10 classes, the model has 1000" in refused(opened, "digits8", num_classes=1000)


def test_synthetic_images_are_addressed_by_number() -> None:
    assert Registry.default().dataset("synthetic").leaderboard is False
    one = opened("synthetic", image_size=5, num_classes=7, count=20)
    assert len(one) == 20 and one.num_classes == 7 and set(one.labels) == set(range(7))
    pixels, label = one.load(9)
    assert pixels.shape == (5, 5, 3) and pixels.dtype == np.uint8 and label == one.labels[9] == 2
    again = opened("synthetic", image_size=5, num_classes=7, count=40)
    np.testing.assert_array_equal(pixels, again.load(9)[0])
    others = [one.load(8), opened("synthetic", "test", image_size=5, num_classes=7).load(9)]
    others.append(opened("synthetic", image_size=5, num_classes=7, seed=1).load(9))
    assert all((pixels != other).any() for other, _ in others)
    assert one.digest != again.digest and opened("synthetic").num_classes == 1000


def test_opening_data_imports_no_torch() -> None:
    code = (
        "import sys, alignbench.data.folder, alignbench.data.huggingface, alignbench.data.digits, "
        "alignbench.data.synthetic; sys.exit(bool({'torch', 'sklearn', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_synthetic_captions_are_addressed_by_number() -> None:
    assert Registry.default().dataset("synthetic-text").leaderboard is False
    one, again = (opened("synthetic-text", image_size=5, count=count) for count in (30, 60))
    captions = captions_of(one)
    assert captions == captions_of(again)[:30] and len(set(captions)) == 30
    assert all(3 <= len(caption.split()) <= 24 for caption in captions)
    assert len({len(caption.split()) for caption in captions}) > 5
    assert one.load(3)[0].shape == (5, 5, 3) and one.load(3)[1] == 0
    plain = opened("synthetic", image_size=5, num_classes=1, count=30)
    assert len({one.digest, again.digest, plain.digest}) == 3
