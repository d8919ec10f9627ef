"""Grids of a policy in training: the images of the final picture, without a trace in the training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alignbench.runs import sample_grids
from alignbench.samples import grid
from tests.helpers.command import Done, alignbench


def run(out: Path, *more: str, method: str = "vapi") -> Done:
    short = [
        "--steps", "4", "--checkpoint-every", "2", "--set", "train.images_per_step=4",
        "--set", "protocol.samples=60", "--set", "protocol.seeds=0", "--set", "protocol.settings=t1",
    ]  # fmt: skip
    return alignbench("run", "--method", method, "--model", "llamagen-tiny", *short, "--out", out, *more)


def tiles(path: Path, block: int) -> np.ndarray:
    """The pixels of one block of a picture, without its caption."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    height = grid.CAPTION + 3 * (grid.TILE + grid.MARGIN)
    top = grid.MARGIN + block * height + grid.CAPTION
    return pixels[top : top + height - grid.CAPTION]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "training-samples").glob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vapi", "tokenizer-decoder"])
def test_the_last_grid_is_the_one_of_the_trained_model(tmp_path: Path, method: str) -> None:
    out, plain = tmp_path / "run", tmp_path / "plain"
    done = run(out, "--grid-every", "2", method=method)
    assert done.returncode == 0, done.stderr
    assert files(out) == ["step-000002.png", "step-000004.png"]
    last = tiles(out / "training-samples" / "step-000004.png", 0)
    assert np.array_equal(last, tiles(out / "samples.png", 1)), "block 1: after training"
    assert not np.array_equal(last, tiles(out / "samples.png", 0))
    assert run(plain, "--no-eval", method=method).returncode == 0
    (export,) = (plain / "export").iterdir()
    assert export.read_bytes() == (out / "export" / export.name).read_bytes()
    assert (plain / "metrics.jsonl").read_bytes() == (out / "metrics.jsonl").read_bytes()


def test_too_little_memory_ends_the_drawing_alone_and_nothing_is_drawn_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def short(*_: object) -> torch.Tensor:
        calls.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(sample_grids, "draw_grid", short)
        done = run(tmp_path / "run", "--grid-every", "1", "--no-eval")
    assert done.returncode == 0 and len(calls) == 1 and not files(tmp_path / "run")
    assert done.stderr.count("no more sample grids, the run goes on: step 1: out of memory") == 1
    folder = tmp_path / "run"
    (folder / "training-samples").mkdir()
    (folder / "training-samples" / "step-000004.png").write_bytes(b"drawn before")
    for name in ("run.json", "checkpoints/step-000004/DONE.json"):  # resumes at step 2
        (folder / name).unlink()
    done = run(folder, "--grid-every", "1", "--no-eval")
    assert done.returncode == 0 and "resuming at step 2" in done.stderr, done.stderr
    assert files(folder) == ["step-000003.png", "step-000004.png"]
    assert (folder / "training-samples" / "step-000004.png").read_bytes() == b"drawn before"


def test_protocols_that_draw_nothing_are_problems(tmp_path: Path) -> None:
    asked = ["run", "--method", "ntp", "--model", "shapes-tiny", "--grid-every", "5", "--dry-run", "--json"]
    assert json.loads(alignbench(*asked).stdout)["problems"] == []
    (problem,) = json.loads(alignbench(*asked, "--no-eval").stdout)["problems"]
    assert problem["where"] == "--grid-every" and "--no-eval" in problem["fix"]
