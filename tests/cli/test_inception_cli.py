"""The complete ADM path from the command line, on a randomly initialised network and ten images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.command import alignbench
from tests.helpers.inception_toys import ASSET, pictures, save_pngs, save_random

COUNT = 10
"""The fewest that an Inception Score over ten parts allows."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """weights.pth; real images as a folder of PNG files and as an ADM file; generated images."""
    base = tmp_path_factory.mktemp("adm")
    save_random(base / "weights.pth")
    pixels = pictures(COUNT, 1, side=256, cells=6)
    save_pngs(base / "real", pixels)
    np.savez(base / "real.npz", pixels)
    save_pngs(base / "generated", pictures(COUNT, 2, side=256))
    return base


def weights(folder: Path) -> list[str]:
    return ["--set", f"assets.{ASSET}={folder / 'weights.pth'}"]


@pytest.mark.slow
def test_images_are_scored_against_a_reference_of_one_s_own(folder: Path, tmp_path: Path) -> None:
    reference, found = tmp_path / "ref.npz", {}
    made = alignbench("reference", folder / "real", "--out", reference, *weights(folder))
    assert made.returncode == 0, made.stderr
    assert f"moments of {COUNT} images, {COUNT} of them inside" in made.stdout
    for name in ("real.npz", "generated"):
        done = alignbench(
            "evaluate", "--protocol", "imagenet256-adm", "--samples", folder / name, "--out", tmp_path / name,
            "--set", f"assets.imagenet256-adm-reference={reference}", "--set", f"protocol.samples={COUNT}",
            *weights(folder),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (result,) = json.loads((tmp_path / name / "run.json").read_text())["results"]
        found[name] = {metric: values[0] for metric, values in result["metrics"].items()}
    same, other = found["real.npz"], found["generated"]
    assert abs(same["fid"]) < 1e-3 and abs(same["sfid"]) < 1e-3
    assert same["precision-adm"] == same["recall-adm"] == 1
    # Subsets of 1,000 images; 2,048 features.
    assert {name for name, value in other.items() if value is None} == {"kid", "fid-corrected", "fid-inf"}
    assert other["fid"] > 0 and other["sfid"] > 0 and other["is"] == 1  # ten parts of one image


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_text("no weights")
    for out, options, words in (
        ("ref.npz", [], "alignbench fetch inception-2015-12-05"),
        ("ref.npz", weights(tmp_path), "holds no weights of the FID Inception network"),
        ("ref.txt", weights(tmp_path), "a reference is an .npz file"),
    ):
        done = alignbench("reference", tmp_path, "--out", tmp_path / out, *options)
        assert done.returncode == 2 and words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1 and not done.stdout
