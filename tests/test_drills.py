"""A few trials of each drill; a soak is `python -m tests.drills --kind KIND --count N --seed S`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count"),
    [("flip", 8), ("signal", 3), ("kill", 2), ("disk", 2), ("ranks", 1), ("plugin", 4), ("remote", 4)],
)
def test_nothing_is_lost(kind: str, count: int) -> None:
    command = [sys.executable, "-m", "tests.drills", "--kind", kind, "--count", str(count), "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr
    assert f"{kind}: tried {count}, survived {count}, lost 0" in done.stdout
