"""`alignbench bench`: what it measures exists, adds up, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignbench.registry.lookup import Registry
from alignbench.runs.bench_evaluators import MadeRows
from tests.helpers.command import alignbench
from tests.helpers.lpips_trunks import random_trunk


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield
    assert list(folder.iterdir()) == []


def bench(*arguments: str) -> tuple[dict[str, Any], dict[str, float]]:
    """The one timing that is printed, and its figures by name."""
    done = alignbench("bench", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    (timing,) = json.loads(done.stdout)
    return timing, {figure["name"]: figure["value"] for figure in timing["figures"]}


def refused(*arguments: str, code: int = 2) -> str:
    done = alignbench("bench", *arguments)
    assert done.returncode == code
    return done.stderr


PLAIN = ("--set", "method.perceptual=none", "--set", "method.perceptual_weight=0")


@pytest.mark.parametrize("model", ["llamagen-tiny", "janus-tiny"])
def test_training_steps(model: str) -> None:
    found, numbers = bench(
        "--method", "vapi", "--model", model, "--repeats", "2", *PLAIN,
        "--set", "train.images_per_step=8", "--set", "train.micro_batch=4",
    )  # fmt: skip
    assert 0 < numbers["collecting"] < numbers["step"] and numbers["peak memory"] > 0
    assert numbers["images"] == pytest.approx(8 / numbers["step"])
    assert numbers["sequences"] == pytest.approx(8 * numbers["images"]) and numbers["estimate"] > 0
    assert found["facts"]["micro-batch"] == "4" and found["environment"]["device"] == "CPU"


def test_the_user_s_file_reaches_the_reward(tmp_path: Path) -> None:
    given = ("assets.lpips-vgg16-trunk", tmp_path / "trunk.pth")
    train = [
        "--method", "vapi", "--model", "shapes-tiny", "--repeats", "1",
        "--set", "method.perceptual=lpips-vgg", "--set", "method.perceptual_weight=1",
        "--set", "train.images_per_step=2",
        "--set", "train.micro_batch=2", "--set", "=".join(map(str, given)),
    ]  # fmt: skip
    given[1].write_bytes(b"not weights")
    assert str(given[1]) in refused(*train)
    random_trunk("vgg", given[1])
    assert bench(*train)[1]["collecting"] > 0


@pytest.mark.parametrize("model", ["llamagen-tiny", "shapes-tiny"])
def test_sampling(model: str) -> None:
    protocol = Registry.default().protocol(Registry.default().model(model).protocol)
    found, numbers = bench("--model", model, "--repeats", "1", "--set", "protocol.settings=t1")
    assert found["facts"]["setting"] == protocol.settings["t1"].title
    per_batch = numbers["batch drawn"] + numbers["batch decoded"]
    assert numbers["images"] == pytest.approx(protocol.batch / per_batch)
    total = protocol.samples * len(protocol.seeds)
    assert numbers[f"{total:,} images"] == pytest.approx(total / numbers["images"] / 3600)


def test_evaluators() -> None:
    arguments = ["--protocol", "digits8", "--images", "64", "--rows", "500", "--reference-rows", "200"]
    _, digits = bench(*arguments)
    assert digits["images"] > 0 and digits["scoring 500 rows"] > 0
    found, shapes = bench("--protocol", "shapes", "--images", "12", "--rows", "600")
    assert shapes["scoring 600 rows"] > 0 and "reference rows" not in found["facts"]


SAMPLE, TRAIN = ("--model", "llamagen-tiny"), ("--method", "vapi", "--model", "llamagen-tiny")
DIGITS = ("--protocol", "digits8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to time"),
        (["--method", "vapi"], "nothing to time"),
        (["--protocol", "digits8-reconstruction"], "another protocol"),
        ([*DIGITS, "--set", "train.lr=1"], "changes nothing"),
        (["--protocol", "imagenet256-adm"], "alignbench fetch inception-2015-12-05"),  # and no reference
        (["--method", "vappi", *SAMPLE], "Did you mean vapi"),
        ([*SAMPLE, "--rows", "5"], "--rows changes nothing where sampling is timed"),
        ([*SAMPLE, "--data", "digits8"], "--data changes nothing where sampling"),
        ([*DIGITS, "--repeats", "2"], "--repeats changes nothing where evaluators"),
        ([*TRAIN, "--images", "9"], "--images changes nothing where"),
        ([*TRAIN, "--set", "train.steps=3"], "train.steps changes nothing here → --repeats"),
        ([*SAMPLE, "--protocol", "geneval"], "generates nothing from llamagen-tiny"),
        ([*SAMPLE, "--protocol", "digits8-reconstruction"], "generates nothing from"),
    ],
)
def test_what_cannot_be_timed_or_changes_nothing_is_refused(arguments: list[str], said: str) -> None:
    assert said in refused(*arguments)


def test_given_weights_count_however_they_are_written() -> None:
    """The real encoder of `shapes-tiny` reads no other words than the protocol's prompts."""
    few = ["--repeats", "1", "--set", "protocol.settings=t1", "--set"]
    done = alignbench("bench", *SAMPLE, *few, "weights=pretrained")
    assert "weights    policy ✓" in done.stderr
    _, numbers = bench("--model", "shapes-tiny", *few, "model.weights=pretrained")
    assert numbers["tokens"] > 0


@pytest.mark.parametrize(
    ("target", "arguments", "said"),
    [
        ("samples.generated.Sampler.generate", SAMPLE, "--set protocol.batch=250"),
        ("evaluators.digits.DigitsDistribution.measure", DIGITS, "a smaller --images N"),
        (
            "evaluators.digits.DigitsDistribution.score",
            [*DIGITS, "--images", "64", "--rows", "600"],
            "a smaller --rows N",
        ),
    ],
)
def test_a_shortage_of_memory_names_the_knob(
    target: str, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(f"alignbench.{target}", too_much)
    assert said in refused(*arguments, code=1)


def test_made_rows_are_of_full_rank_and_always_the_same() -> None:
    x = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)
    seen: dict[str, np.ndarray] = {"x": x, "n": np.arange(4)}
    rows = MadeRows(seen, 5000, jitter=True)
    assert len(rows) == 5000 and rows.column("x").shape == (5000, 12) and rows.column("x").dtype == np.float32
    assert [len(piece) for piece in rows.shards("n")] == [4096, 904]
    assert set(rows.column("n")) == {0, 1, 2, 3}
    assert np.linalg.matrix_rank(np.cov(rows.column("x"), rowvar=False)) == 12
    np.testing.assert_array_equal(rows.column("x"), MadeRows(seen, 5000, jitter=True).column("x"))
    assert np.linalg.matrix_rank(np.cov(MadeRows(seen, 5000, jitter=False).column("x"), rowvar=False)) == 3
