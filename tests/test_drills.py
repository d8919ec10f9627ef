"""A few trials of each drill; a soak is `python -m tests.drills --kind KIND --count N --seed S`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from alignbench.record import read
from tests.conftest import ROOT
from tests.drills.plugin import NAMES, WRONG, cards
from tests.helpers.command import alignbench


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("flip", 8),
        ("signal", 3),
        ("kill", 2),
        ("disk", 2),
        ("ranks", 1),
        ("restarts", 2),
        ("nodes", 1),
        ("plugin", 4),
        ("remote", 4),
    ],
)
def test_nothing_is_lost(kind: str, count: int) -> None:
    command = [sys.executable, "-m", "tests.drills", "--kind", kind, "--count", str(count), "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr
    assert f"{kind}: tried {count}, survived {count}, lost 0" in done.stdout


@pytest.mark.parametrize(
    ("part", "how"), [(part, how) for part in ("method", "evaluator") for how in WRONG[part]]
)
def test_every_wrong_answer_names_its_plug_in(
    part: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards(tmp_path / "cards")
    given = ["--plugin", tmp_path / "cards/drilled.py", "--plugin", tmp_path / "cards"]
    command = ["evaluate", "--protocol", "grey8"]
    if part == "method":
        command = ["run", "--method", "drilled", "--set", "method.rewards=drilled_function", "--no-eval"]
        command += ["--steps", "1", "--set", "train.images_per_step=8"]
    monkeypatch.setenv("DRILLED", f"{part} {how} 0")
    done = alignbench(*command, "--model", "llamagen-tiny", *given, "--out", tmp_path / "run")
    assert done.returncode == 1 and done.stderr.count("alignbench: ") == 1, done.stderr
    assert NAMES[part] in done.stderr[done.stderr.index("alignbench: ") :]
    assert read(tmp_path / "run").status == "failed"
