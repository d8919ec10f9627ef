"""`alignbench bench`: what it measures exists, adds up, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignbench.cli.main import main
from alignbench.registry.lookup import Registry
from alignbench.runs.bench import Clock
from alignbench.runs.bench_evaluators import MadeRows


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--json", *arguments])
    assert stop.value.code in (0, None)
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def values(timing: dict[str, Any]) -> dict[str, float]:
    return {figure["name"]: figure["value"] for figure in timing["figures"]}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


PLAIN = ("--set", "method.perceptual=none", "--set", "method.perceptual_weight=0")


@pytest.mark.parametrize("model", ["llamagen-tiny", "janus-tiny"])
def test_training_steps(model: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = bench(
        capsys, "--method", "vapi", "--model", model, "--repeats", "2", *PLAIN,
        "--set", "train.images_per_step=8", "--set", "train.micro_batch=4",
    )  # fmt: skip
    numbers = values(found)
    assert 0 < numbers["collecting"] < numbers["step"] and numbers["peak memory"] > 0
    assert numbers["images"] == pytest.approx(8 / numbers["step"])
    assert numbers["sequences"] == pytest.approx(8 * numbers["images"])
    assert found["facts"]["micro-batch"] == "4" and found["environment"]["device"] == "CPU"
    assert numbers["estimate"] > 0 and list(here.iterdir()) == []


@pytest.mark.parametrize("model", ["llamagen-tiny", "shapes-tiny"])
def test_sampling(model: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    protocol = Registry.default().protocol(Registry.default().model(model).protocol)
    found = bench(capsys, "--model", model, "--repeats", "1", "--set", "protocol.settings=t1")
    assert len(found) == 1 and found[0]["facts"]["setting"] == protocol.settings["t1"].title
    numbers = values(found[0])
    per_batch = numbers["batch drawn"] + numbers["batch decoded"]
    assert numbers["images"] == pytest.approx(protocol.batch / per_batch)
    total = protocol.samples * len(protocol.seeds)
    assert numbers[f"{total:,} images"] == pytest.approx(total / numbers["images"] / 3600)
    assert list(here.iterdir()) == []


def test_evaluators(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--protocol", "digits8", "--images", "64", "--rows", "500", "--reference-rows", "200"]
    (digits,) = bench(capsys, *arguments)
    assert values(digits)["images"] > 0 and values(digits)["scoring 500 rows"] > 0
    (shapes,) = bench(capsys, "--protocol", "shapes", "--images", "12", "--rows", "600")
    assert values(shapes)["scoring 600 rows"] > 0 and "reference rows" not in shapes["facts"]
    assert list(here.iterdir()) == []


def test_what_cannot_be_timed_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing to time" in refused(capsys)
    assert "nothing to time" in refused(capsys, "--method", "vapi")
    assert "another protocol" in refused(capsys, "--protocol", "digits8-reconstruction")
    assert "changes nothing" in refused(capsys, "--protocol", "digits8", "--set", "train.lr=1")
    missing = refused(capsys, "--protocol", "imagenet256-adm")
    assert "alignbench fetch inception-2015-12-05" in missing and "reference" not in missing
    assert "Did you mean vapi" in refused(capsys, "--method", "vappi", "--model", "llamagen-tiny")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "llamagen-tiny", "--rows", "5"], "--rows changes nothing where sampling is timed"),
        (["--model", "llamagen-tiny", "--data", "digits8"], "--data changes nothing where sampling"),
        (["--protocol", "digits8", "--repeats", "2"], "--repeats changes nothing where evaluators"),
        (["--method", "vapi", "--model", "llamagen-tiny", "--images", "9"], "--images changes nothing where"),
        (
            ["--method", "vapi", "--model", "llamagen-tiny", "--set", "train.steps=3"],
            "train.steps changes nothing here → --repeats",
        ),
        (["--model", "llamagen-tiny", "--protocol", "geneval"], "generates nothing from llamagen-tiny"),
        (["--model", "llamagen-tiny", "--protocol", "digits8-reconstruction"], "generates nothing from"),
    ],
)
def test_what_changes_nothing_is_refused(
    arguments: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, *arguments)


def test_given_weights_count_however_they_are_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("weights", "model.weights"):
        with pytest.raises(SystemExit):
            main(["bench", "--model", "llamagen-tiny", "--repeats", "1", "--set", f"{key}=pretrained",
                  "--set", "protocol.settings=t1"])  # fmt: skip
        assert "policy.safetensors ✓" in capsys.readouterr().err


def test_a_text_model_is_timed_on_the_protocol_s_prompts(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real encoder of `shapes-tiny` reads no other words."""
    (found,) = bench(
        capsys, "--model", "shapes-tiny", "--repeats", "1", "--set", "model.weights=pretrained",
        "--set", "protocol.settings=t1",
    )  # fmt: skip
    assert values(found)["tokens"] > 0


@pytest.mark.parametrize(
    ("target", "name", "arguments", "said"),
    [
        (
            "alignbench.samples.generated.Sampler",
            "generate",
            ["--model", "llamagen-tiny"],
            "--set protocol.batch=250",
        ),
        (
            "alignbench.evaluators.digits.DigitsDistribution",
            "measure",
            ["--protocol", "digits8"],
            "a smaller --images N",
        ),
        (
            "alignbench.evaluators.digits.DigitsDistribution",
            "score",
            ["--protocol", "digits8", "--images", "64", "--rows", "600"],
            "a smaller --rows N",
        ),
    ],
)
def test_a_shortage_of_memory_names_the_knob(
    target: str, name: str, arguments: list[str], said: str, here: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def too_much(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(f"{target}.{name}", too_much)
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments])
    assert stop.value.code == 1 and said in capsys.readouterr().err


def test_made_rows_are_of_full_rank_and_always_the_same() -> None:
    seen = {"x": np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32), "n": np.arange(4)}
    rows = MadeRows(seen, 5000, jitter=True)
    assert len(rows) == 5000 and rows.column("x").shape == (5000, 12) and rows.column("x").dtype == np.float32
    assert [len(piece) for piece in rows.shards("n")] == [4096, 904]
    assert set(rows.column("n")) == {0, 1, 2, 3}
    assert np.linalg.matrix_rank(np.cov(rows.column("x"), rowvar=False)) == 12
    np.testing.assert_array_equal(rows.column("x"), MadeRows(seen, 5000, jitter=True).column("x"))
    assert np.linalg.matrix_rank(np.cov(MadeRows(seen, 5000, jitter=False).column("x"), rowvar=False)) == 3


def test_a_clock_counts_laps() -> None:
    clock = Clock(torch.device("cpu"))
    for _ in range(3):
        with clock.lap():
            pass
    assert len(clock.laps) == 3 and min(clock.laps) >= 0
