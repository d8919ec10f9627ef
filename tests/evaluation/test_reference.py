"""Reference files: what is written has ADM's form, and what does not fit is refused with the reason."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignbench.errors import UserError
from alignbench.evaluation.reference import open_reference, write_reference
from alignbench.nets.inception import POOL, SPATIAL, Inception
from alignbench.samples.external import SampleImages, open_samples
from alignbench.samples.pixels import channels_last
from tests.helpers.data_sets import refused
from tests.helpers.inception_toys import pictures, save_pngs

SIDE = 6


class FakeNet(Inception):
    """Features of the right width that are a fixed map of the pixels."""

    def __init__(self) -> None:
        self.calls = 0

    def rows(self, images: torch.Tensor, *, batch: int) -> dict[str, np.ndarray]:
        self.calls += 1
        rng = np.random.default_rng(0)
        flat = images.flatten(start_dim=1).numpy() / 255.0
        maps = {"pool": POOL, "spatial": SPATIAL}
        return {
            n: (flat @ rng.standard_normal((flat.shape[1], w))).astype(np.float32) for n, w in maps.items()
        }


def statistics(**changes: Any) -> dict[str, np.ndarray]:
    base: dict[str, Any] = {"mu": np.zeros(POOL), "sigma": np.eye(POOL)}
    return {name: value for name, value in (base | changes).items() if value is not None}


def written(tmp_path: Path, pixels: np.ndarray, **changes: Any) -> Path:
    source = open_samples(save_pngs(tmp_path / "real", pixels), image_size=SIDE, batch=4)
    values: dict[str, Any] = {"images": 4, "seed": 0, "network": "abc", "batch": 8} | changes
    write_reference(source, tmp_path / "ref.npz", net=FakeNet(), **values)
    return tmp_path / "ref.npz"


# --- writing and reading back ---------------------------------------------------------------------


def test_moments_are_those_of_all_images(tmp_path: Path) -> None:
    pixels = pictures(11, 0, side=SIDE)
    path = written(tmp_path, pixels)
    rows = FakeNet().rows(torch.from_numpy(pixels).permute(0, 3, 1, 2), batch=8)
    with np.load(path) as file:
        for column, mean, cov in (("pool", "mu", "sigma"), ("spatial", "mu_s", "sigma_s")):
            values = rows[column].astype(np.float64)
            np.testing.assert_allclose(file[mean], values.mean(axis=0), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(file[cov], np.cov(values, rowvar=False), rtol=1e-9, atol=1e-10)
        digest = hashlib.sha256(pixels.transpose(0, 3, 1, 2).tobytes()).hexdigest()
        assert str(file["source"]) == f"sha256:{digest}"
        assert int(file["count"]) == 11 and str(file["network"]) == "abc" and int(file["image_size"]) == SIDE
    opened = open_reference(path, image_size=SIDE, networks={"inception": "abc"})
    assert set(opened.statistics) == {"mu", "sigma", "mu_s", "sigma_s"}
    assert all(value.dtype == np.float64 for value in opened.statistics.values())


def test_some_images_are_kept_by_a_seeded_draw(tmp_path: Path) -> None:
    pixels = pictures(11, 0, side=SIDE)

    def kept(name: str, **changes: Any) -> list[int]:
        path = written(tmp_path / name, pixels, **changes)
        opened = open_reference(path, image_size=SIDE)
        assert opened.images is not None
        found = channels_last(opened.images.load(0).images)
        return [next(i for i, image in enumerate(pixels) if np.array_equal(image, one)) for one in found]

    first = kept("a")
    assert len(set(first)) == 4 and first == sorted(first) and first == kept("b")
    assert first != kept("c", seed=1)
    assert kept("d", images=100) == list(range(11))


def test_the_file_is_in_the_form_that_adm_s_evaluator_reads(tmp_path: Path) -> None:
    path = written(tmp_path, pictures(9, 0, side=SIDE))
    with np.load(path) as file:  # its test for stored moments
        assert "mu" in list(file.keys())
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:  # its stream of images
        assert np.lib.format.read_magic(member) == (1, 0)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        assert shape == (4, SIDE, SIDE, 3) and not fortran and dtype == np.uint8


def test_a_failed_writing_leaves_nothing(tmp_path: Path) -> None:
    folder = save_pngs(tmp_path / "real", pictures(3, 0, side=SIDE))
    source = open_samples(folder, image_size=SIDE)
    data = (folder / "00001.png").read_bytes()
    (folder / "00001.png").write_bytes(data[:60])
    options: dict[str, Any] = {"net": FakeNet(), "network": "", "images": 2, "seed": 0, "batch": 8}
    one = SampleImages("one", "one", 1, read=lambda ids: torch.zeros(1, 3, 6, 6, dtype=torch.uint8))
    for chosen in (source, one):
        with pytest.raises(UserError):
            write_reference(chosen, tmp_path / "ref.npz", **options)
    assert not list(tmp_path.glob("*ref*"))


# --- what is accepted -----------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_moments_alone_and_images_alone_are_references(tmp_path: Path, save: Callable[..., None]) -> None:
    # MAR's file: float32 mean, float64 covariance, nothing else.
    save(tmp_path / "moments.npz", **statistics(mu=np.zeros(POOL, np.float32)))
    moments = open_reference(tmp_path / "moments.npz", image_size=256)
    assert moments.images is None and set(moments.statistics) == {"mu", "sigma"}
    assert moments.statistics["mu"].dtype == np.float64
    assert np.array_equal(moments.statistics["sigma"], np.eye(POOL))
    pixels = pictures(5, 0, side=SIDE)
    save(tmp_path / "images.npz", pixels)
    images = open_reference(tmp_path / "images.npz", image_size=SIDE)
    assert images.statistics == {} and images.images is not None and len(images.images) == 5
    assert np.array_equal(channels_last(images.images.load(0).images), pixels)


# --- what is refused ------------------------------------------------------------------------------

UNEVEN = np.eye(POOL)
UNEVEN[3, 5] = 1e-3


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": np.zeros(3)}, "neither images (arr_0) nor moments (mu, sigma), but x"),
        ({"mu": np.zeros(POOL)}, "neither images (arr_0) nor moments"),
        (statistics(mu_s=np.zeros(SPATIAL)), "mu_s without sigma_s"),
        (statistics(mu=np.zeros(192)), "mu is float64 192, not floating-point 2048: statistics of another"),
        (statistics(sigma=np.eye(64)), "sigma is float64 64×64, not floating-point 2048×2048"),
        (statistics(mu=np.zeros(POOL, int)), "mu is int64 2048"),
        (statistics(sigma=UNEVEN), "sigma is not symmetric"),
        (statistics(sigma=np.eye(POOL) * np.nan), "sigma holds numbers that are not finite"),
        (statistics(sigma=-np.eye(POOL)), "sigma has negative variances"),
        (statistics(mu_s=np.zeros(9), sigma_s=np.eye(9)), "mu_s is float64 9, not floating-point 2023"),
        (statistics(network=np.array("0123456789abcdef")), "made with another network"),
        (statistics(image_size=np.array(512)), "made of 512 px images, the protocol scores 6 px"),
        ({"arr_0": np.zeros((9, 8, 8, 3), np.uint8)}, "its images are 8×8, the protocol scores 6×6"),
        ({"arr_0": np.zeros((9, 6, 6, 3), np.float32)}, "arr_0 is float32 9×6×6×3, not uint8"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(
    tmp_path: Path, arrays: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "ref.npz"
    np.savez(path, **arrays)
    assert reason in refused(open_reference, path, image_size=SIDE, networks={"inception": "ffff"})


def test_what_is_no_reference_at_all(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no")
    for name in ("text.npz", "absent.npz"):
        assert name in refused(open_reference, tmp_path / name, image_size=SIDE)
