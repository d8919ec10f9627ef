"""`report RUN --html`: one file with everything that `report.md` says, its pictures and the configuration."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from alignbench import record
from tests.helpers.command import alignbench
from tests.html.conftest import Browser
from tests.leaderboard.records import load

BOARDS = Path(__file__).parents[2] / "leaderboards"
RUN = "vapi-llamagen-tiny-s0-79503d67"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run: record, samples, log."""
    shutil.copy(BOARDS / "records" / f"{RUN}.json", tmp_path / "run.json")
    shutil.copy(BOARDS / "samples.png", tmp_path / "samples.png")
    log = [{"step": step, "reward": -1 / step, "loss": 1 / step} for step in range(1, 121)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log))
    return tmp_path


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)])
def test_the_page_holds_the_whole_report(browser: Browser, run: Path, width: int, dark: bool) -> None:
    done = alignbench("report", run, "--html")
    files = {"report.md", "curves.png", "tradeoff.png", "report.html"}
    assert {Path(line).name for line in done.stdout.split()} == files
    browser.open(run / "report.html", width=width, dark=dark)
    browser.script("document.querySelectorAll('details').forEach(x => { x.open = true })")
    assert browser.complaints() == [] and browser.requests() == []
    assert browser.low_contrast() == [] and browser.overflow() == 0
    sizes = browser.script("return [...document.images].map(x => [x.alt, x.naturalWidth > 0])")
    assert sizes == [["samples", True], ["curves.png", True], ["tradeoff.png", True]]
    shown = " ".join(str(browser.script("return document.body.innerText")).split())
    for number in re.findall(r"\d\.\d+ ± \d\.\d+", (run / "report.md").read_text("utf-8")):
        assert number in shown
    assert "alignbench run --model llamagen-tiny --seed 0 --method vapi" in shown
    assert "method.prior_weight 0.3" in shown


def test_a_run_that_did_not_end_and_a_record_alone(run: Path) -> None:
    partial = load("partial")
    record.write(partial, run)
    assert alignbench("report", run, "--html").returncode == 0
    assert "partial" in (run / "report.html").read_text("utf-8")
    done = alignbench("report", run / "run.json")
    assert done.returncode == 2 and "name the run folder" in done.stderr


def test_markup_in_a_record_is_text_on_the_page(run: Path) -> None:
    made = load("vapi-0", lambda content: content.update(command="x ``` </pre><script>alert(1)</script>"))
    record.write(made, run)
    assert alignbench("report", run, "--html").returncode == 0
    page = (run / "report.html").read_text("utf-8")
    assert "<script>" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
