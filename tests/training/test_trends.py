"""Trends of a training log against closed forms."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from alignbench.record import Trend
from alignbench.training.trends import trends


def log(path: Path, *series: float | None, name: str = "reward") -> Path:
    lines = [json.dumps({"step": n + 1, name: value, "lr": 0.1}) for n, value in enumerate(series)]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_ramp(tmp_path: Path) -> None:
    """1 … n: a tenth k has the mean (k + 1) / 2 and the variance k (k + 1) / 12."""
    n, k = 120, 12
    found = trends(log(tmp_path / "log", *map(float, range(1, n + 1))))
    assert found.keys() == {"reward"}, "the step and the learning rate are no series"
    exact = {
        "first": (k + 1) / 2,
        "last": n - (k - 1) / 2,
        "mean": (n + 1) / 2,
        "highest": n,
        "error": math.sqrt(2 * k * (k + 1) / 12 / k),
    }
    assert found["reward"] == pytest.approx(exact, rel=1e-5)
    assert Trend.model_validate(found["reward"]).last == found["reward"]["last"]


def test_what_is_no_number_does_not_count(tmp_path: Path) -> None:
    path = log(tmp_path / "log", 1.0, None, 2.0, math.nan, 3.0, math.inf, 4.0)
    path.write_text(path.read_text() + '{"step": 8, "rew\n[1]\n\udcff'.encode(errors="replace").decode())
    assert trends(path)["reward"] == pytest.approx(
        {"first": 1.5, "last": 3.5, "mean": 2.5, "highest": 4, "error": math.sqrt(0.5)}, rel=1e-5
    )
    assert trends(log(path, 1e308, 1e308, 1e308, 1e308)) == {}, "too large to add up"
    assert trends(log(path, 1.0, 2.0, 3.0)) == {} == trends(tmp_path / "nowhere")
