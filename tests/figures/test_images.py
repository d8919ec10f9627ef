"""Pictures of images: the numbers beside them against direct computations, and why some are not drawn."""

from __future__ import annotations

import csv
import hashlib
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from alignbench.api import Sampling
from alignbench.commands import drawing, models
from alignbench.errors import UserError
from alignbench.figures import embedding
from alignbench.figures.choice import ImageChoice
from alignbench.figures.picture import REAL
from alignbench.figures.source import NotDrawnError, find
from alignbench.metrics.intervals import wilson
from alignbench.nets import digits
from alignbench.registry.lookup import Registry
from alignbench.runs.figure_images import Gallery
from tests.helpers.command import alignbench

IMAGES = 40
KINDS = ("samples", "embedding", "sharpness", "classes")
NTP = "Next-token prediction"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: two training seeds of one configuration, and a text model."""
    root = tmp_path_factory.mktemp("runs")
    short = ("--method", "ntp", "--steps", "2", "--no-eval", "--set", "train.images_per_step=8")
    for name, model, seed in (("a", "llamagen-tiny", 0), ("b", "llamagen-tiny", 1), ("t", "shapes-tiny", 0)):
        done = alignbench("run", *short, "--model", model, "--seed", seed, "--out", root / name)
        assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def out(folder: Path) -> Path:
    """All pictures of images of the two runs on classes."""
    options = [word for kind in KINDS for word in ("--kind", kind)]
    done = alignbench(
        "figures", folder / "b", folder / "a", *options, "--images", IMAGES, "--out", folder / "x"
    )
    assert done.returncode == 0, done.stderr
    return folder / "x"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_picture_its_numbers_and_a_caption_of_each_kind(out: Path) -> None:
    page = " ".join((out / "figures.md").read_text(encoding="utf-8").split())
    for kind in KINDS:
        assert imread(out / f"{kind}.png").std() > 0.05
        assert f"![{kind}]({kind}.png)" in page and rows(out / f"{kind}.csv")
    assert page.count("of several training seeds the lowest") == len(KINDS)
    assert "penultimate of distribution-digits" in page and "at T=1, sampling seed 0" in page


def test_a_contact_sheet_shows_what_is_drawn(folder: Path, out: Path) -> None:
    sheet = rows(out / "samples.csv")
    assert list(dict.fromkeys(row["row"] for row in sheet)) == [REAL, "base", NTP]
    assert [row["column"] for row in sheet[:2]] == ["the digit zero", "the digit one"]
    for label, run in (("base", None), (NTP, folder / "a")):
        drawn = models.sample("llamagen-tiny", 10, run=run, setting=Sampling())
        digests = [row["sha256"] for row in sheet if row["row"] == label]
        assert digests == [hashlib.sha256(image.tobytes()).hexdigest() for image in drawn]
    held = Gallery(find([folder / "a"]), Registry.default(), ImageChoice()).evaluation.reference_images
    assert held is not None
    for place, row in enumerate(sheet[:10]):
        pixels, its_label = held.dataset.load(int(row["image"]))
        assert its_label == place and row["sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()


def test_sets_are_the_images_that_the_protocol_scores(folder: Path, out: Path) -> None:
    """Balanced labels: image i of a seed is of class i mod 10, as `sample` draws it."""
    gallery = Gallery(find([folder / "a"]), Registry.default(), ImageChoice(images=IMAGES, seed=3))
    for label, run in (("base", None), (NTP, folder / "a")):
        drawn = models.sample("llamagen-tiny", IMAGES, run=run, seed=3)
        wanted = np.stack([np.array(image) for image in drawn]).transpose(0, 3, 1, 2)
        assert np.array_equal(gallery.pixels()[label], wanted)


def test_sharpness_is_what_the_formula_says(folder: Path, out: Path) -> None:
    (row,) = [x for x in rows(out / "sharpness.csv") if (x["set"], x["quantity"]) == (NTP, "sharpness")]
    energies = []
    for image in models.sample("llamagen-tiny", IMAGES, run=folder / "a"):
        grey = np.array(image, dtype=np.float64) @ (0.299, 0.587, 0.114) / 255
        around = [(y, x) for y in range(1, 7) for x in range(1, 7)]
        energies.append(
            math.fsum(
                (4 * grey[y, x] - grey[y - 1, x] - grey[y + 1, x] - grey[y, x - 1] - grey[y, x + 1]) ** 2
                for y, x in around
            )
            / len(around)
        )
    assert float(row["mean"]) == pytest.approx(np.mean(energies), rel=1e-12)
    half = 2.0226909 * np.std(energies, ddof=1) / math.sqrt(IMAGES)  # t(0.975, 39)
    assert float(row["high"]) - float(row["mean"]) == pytest.approx(half, rel=1e-6)


def test_shares_are_counts(folder: Path, out: Path) -> None:
    drawn = models.sample("llamagen-tiny", IMAGES, run=folder / "a")
    net = digits.load("digits-features-a").double()
    scaled = torch.tensor(np.stack([np.array(x) for x in drawn])).permute(0, 3, 1, 2).double() / 127.5 - 1
    with torch.no_grad():
        seen = net(scaled)[1].argmax(dim=1).tolist()
    shown = [row for row in rows(out / "classes.csv") if row["row"] == NTP]
    assert len(shown) == 10
    for digit, row in enumerate(shown):
        share = sum(found == digit for found in seen[digit::10]) / 4
        assert float(row["mean"]) == share
        assert (float(row["low"]), float(row["high"])) == pytest.approx(wilson(share, 4))


def test_axes_are_those_of_real_images(out: Path) -> None:
    found = [row for row in rows(out / "embedding.csv") if row["map"] == "pca" and row["set"] == REAL]
    points = np.array([[float(row["x"]), float(row["y"])] for row in found])
    assert len(points) == IMAGES
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-9)  # centred and uncorrelated on its own set
    assert abs(np.corrcoef(points.T)[0, 1]) < 1e-9
    counts = [sum(row["map"] == "t-sne" for row in rows(out / "embedding.csv"))]
    assert counts == [3 * IMAGES]


def test_principal_axes_and_mass_in_closed_form() -> None:
    draws = np.random.default_rng(0).standard_normal((5000, 3)) * (3.0, 2.0, 1.0)
    projected, shares = embedding.pca({REAL: draws, "base": draws + np.array([10.0, 0.0, 0.0])})
    np.testing.assert_allclose(shares, np.array([9, 4]) / 14, rtol=0.05)
    shift = np.abs((projected["base"] - projected[REAL]).mean(axis=0))
    np.testing.assert_allclose(shift, [10, 0], atol=0.5)
    axis = np.linspace(-6, 6, 601)
    density = np.exp(-(axis[:, None] ** 2 + axis**2) / 2)  # holds 1 - h of its mass above the height h
    np.testing.assert_allclose(embedding.mass_levels(density), [0.1, 0.5], rtol=0.01)


def test_text_models(folder: Path) -> None:
    own = drawing.figures([folder / "t"], folder / "own", images=ImageChoice(images=12))
    tasks = {row["column"] for row in rows(folder / "own" / "samples.csv")}
    assert len(tasks) == 6 and folder / "own" / "sharpness.png" in own
    page = (folder / "own" / "figures.md").read_text(encoding="utf-8")
    assert "Not drawn: embedding: no evaluator of Shapes keeps features." in page
    assert "Not drawn: classes: geneval-shapes knows no classes." in page
    (folder / "prompts.txt").write_text("a red ring\n", encoding="utf-8")
    done = alignbench("figures", folder / "t", "--kind", "samples", "--prompt", "a blue cross", "--prompts",
                      folder / "prompts.txt", "--out", folder / "given")  # fmt: skip
    assert done.returncode == 0, done.stderr
    sheet = rows(folder / "given" / "samples.csv")
    assert [row["column"] for row in sheet] == ["a blue cross", "a red ring"] * 2


def test_named_classes_are_those_of_the_paper(folder: Path) -> None:
    done = alignbench("figures", folder / "a", "--kind", "samples", "--classes", "va-pi")
    assert done.returncode == 2 and "classes 0 to 9, not 21" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: (run / "export" / "policy.safetensors").write_bytes(b"other"), "is not what its record"),
        (lambda run: shutil.rmtree(run / "export"), "is not what its record"),
        (lambda run: (run / "plan.json").unlink(), "is not readable"),
    ],
)
def test_changed_runs_are_refused(folder: Path, tmp_path: Path, change: object, said: str) -> None:
    shutil.copytree(folder / "a", tmp_path / "run")
    change(tmp_path / "run")  # type: ignore[operator]
    with pytest.raises(UserError, match=said):
        drawing.figures([tmp_path / "run"], tmp_path / "out", kinds=["samples"])


def test_what_cannot_be_drawn_is_said(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "a" / "run.json", tmp_path / "alone.json")
    for paths, setting, said in [
        ([folder / "a", folder / "t"], "", "of llamagen-tiny, shapes-tiny; name the runs of one"),
        ([tmp_path / "alone.json"], "", "is a record alone"),
        ([folder / "a"], "warm", "has no setting 'warm', but t1"),
    ]:
        with pytest.raises(NotDrawnError, match=said):
            Gallery(find(paths), Registry.default(), ImageChoice(setting=setting)).sheet()
    with pytest.raises(NotDrawnError, match="too few or too alike"):
        embedding.embedding({REAL: np.eye(9), "base": np.zeros((9, 9))}, "")
    with pytest.raises(NotDrawnError, match="no real images"):
        embedding.embedding({"base": np.eye(9)}, "")
