"""The Python interface does what its page shows, and is light until it works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import alignbench as ab
from tests.conftest import ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_page_runs(number: int, tmp_path: Path) -> None:
    """Each block is a file of its own, of at most eight lines."""
    lines = [line for line in BLOCKS[number].splitlines() if line]
    assert len(lines) <= 8
    (tmp_path / "mine.py").write_text(BLOCKS[number], encoding="utf-8")
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "run.json").is_file()
    assert "| rank |" in done.stdout or "reward" in BLOCKS[number]


def test_the_short_example_is_short() -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 6


def test_every_name_is_there_and_listed() -> None:
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    assert 10 <= len(ab.__all__) - 1 <= 14 and set(ab.__all__) <= set(dir(ab))
    for name in ab.__all__:
        assert getattr(ab, name) is not None
        assert name == "__version__" or f"{name}" in page
    with pytest.raises(AttributeError, match="no attribute 'leaderbord'"):
        _ = ab.leaderbord


def test_images_and_models_from_python() -> None:
    first, second = ab.sample("llamagen-tiny", 2, classes=[3], setting=ab.Sampling(temperature=0.8))
    assert first.size == (8, 8) and first.mode == "RGB" and first.tobytes() != second.tobytes()
    assert ab.load_model("llamagen-tiny").image_size == 8
    with pytest.raises(ab.UserError, match="classes 0 to 9, not 12"):
        ab.sample("llamagen-tiny", classes=[12])


def test_mistakes_are_one_line() -> None:
    def plain() -> None: ...

    for call, said in [
        (lambda: ab.plan("vapi", "llamagen-tinny"), "Did you mean llamagen-tiny"),
        (lambda: ab.plan("vapi", "llamagen-tiny", plugins=[plain]), "carries no card"),
        (lambda: ab.evaluate(), "evaluate scores one thing"),
        (lambda: ab.evaluate(samples="nowhere"), "need a protocol"),
        (lambda: ab.cards("model"), "no kind 'model'. Did you mean models"),
        (lambda: ab.run(ab.plan("vapi", "llamagen-xxl")), "cannot run: "),
    ]:
        with pytest.raises(ab.UserError, match=re.escape(said)):
            call()


def test_tables_in_other_forms() -> None:
    made = ab.board([ROOT / "leaderboards" / "records"])
    assert made.markdown().count("| rank |") == len(made.tables) > 1
    rows = made.rows()
    assert len(made.csv().splitlines()) == 1 + len(rows)
    assert {"protocol", "model", "metric", "mean", "low", "high"} <= rows[0].keys()
    assert len(made.frame()) == len(rows)
