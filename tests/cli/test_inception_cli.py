"""The complete ADM path from the command line, on a randomly initialised network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alignbench.nets import inception
from tests.conftest import ROOT
from tests.helpers.inception_toys import ASSET, pictures, save_pngs

TIMEOUT = 1800
"""Seconds for one command: 300 images are 100 s of one idle core."""


@pytest.mark.heavy
def test_300_images_against_a_reference_of_one_s_own(tmp_path: Path) -> None:
    network = random_network(tmp_path)
    real = save_pngs(tmp_path / "real", pictures(300, 0, side=280, cells=6))
    reference = tmp_path / "ref.npz"
    made = alignbench("reference", str(real), "--out", str(reference), "--images", "50", *network)
    assert made.returncode == 0, made.stderr
    assert "moments of 300 images, 50 of them inside" in made.stdout
    generated = save_pngs(tmp_path / "generated", pictures(300, 1, side=256))
    found = evaluate(generated, reference, tmp_path / "run", 300, network)
    blank = {name for name, value in found.items() if value is None}
    assert blank == {"kid", "fid-corrected", "fid-inf"}, "subsets of 1,000 images; 2,048 features"
    assert found["fid"] > 0
    assert found["is"] > 1 and 0 < found["precision-adm"] < 1 and found["sfid"] > 0


@pytest.mark.slow
def test_a_folder_and_an_adm_file_score_alike_and_nothing_differs_from_itself(tmp_path: Path) -> None:
    network = random_network(tmp_path)
    pixels = pictures(12, 1, side=256)
    folder = save_pngs(tmp_path / "images", pixels)
    np.savez(tmp_path / "images.npz", pixels)
    made = alignbench("reference", str(folder), "--out", str(tmp_path / "ref.npz"), *network)
    assert made.returncode == 0, made.stderr
    found = evaluate(folder, tmp_path / "ref.npz", tmp_path / "a", 12, network)
    assert evaluate(tmp_path / "images.npz", tmp_path / "ref.npz", tmp_path / "b", 12, network) == found
    assert abs(found["fid"]) < 1e-3 and abs(found["sfid"]) < 1e-3
    assert found["precision-adm"] == found["recall-adm"] == 1


def alignbench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "alignbench", *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=TIMEOUT,
    )  # fmt: skip


def random_network(folder: Path) -> list[str]:
    inception.save_random(folder / "weights.pth")
    return ["--set", f"assets.{ASSET}={folder / 'weights.pth'}"]


def evaluate(images: Path, reference: Path, out: Path, count: int, network: list[str]) -> dict[str, float]:
    """Score images under the ADM protocol; return the metrics."""
    done = alignbench(
        "evaluate", "--protocol", "imagenet256-adm", "--samples", str(images), "--out", str(out),
        "--set", f"assets.imagenet256-adm-reference={reference}", "--set", f"protocol.samples={count}",
        *network,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "run.json").read_text())
    return {name: values[0] for name, values in record["results"][0]["metrics"].items()}


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    missing = alignbench("reference", str(tmp_path), "--out", str(tmp_path / "ref.npz"))
    assert missing.returncode == 2 and "alignbench fetch inception-2015-12-05" in missing.stderr
    (tmp_path / "weights.pth").write_text("no weights")
    network = ["--set", f"assets.{ASSET}={tmp_path / 'weights.pth'}"]
    wrong = alignbench("reference", str(tmp_path), "--out", str(tmp_path / "ref.npz"), *network)
    assert wrong.returncode == 2 and "holds no weights of the FID Inception network" in wrong.stderr
    other = alignbench("reference", str(tmp_path), "--out", str(tmp_path / "ref.txt"), *network)
    assert other.returncode == 2 and "a reference is an .npz file" in other.stderr
    for done in (missing, wrong, other):
        assert len(done.stderr.strip().splitlines()) == 1 and not done.stdout
