"""docs/adding/evaluator.md as it stands: its files, its commands."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.e2e.test_docs import ADDING, blocks
from tests.helpers.command import alignbench


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ADDING / "evaluator.md"
    (code,), (card,), (commands,) = (blocks(page, language) for language in ("python", "toml", "bash"))
    (tmp_path / "protocols").mkdir()
    (tmp_path / "contrast.py").write_text(code, encoding="utf-8")
    (tmp_path / "protocols" / "contrast8.toml").write_text(card, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    said = ""
    for program, *arguments in map(shlex.split, commands.splitlines()):
        done = alignbench(*arguments)
        assert program == "alignbench" and done.returncode == 0, done.stderr
        said += done.stdout
    (result,) = json.loads((tmp_path / "contrast" / "run.json").read_text())["results"]
    assert 0 < result["metrics"]["contrast"][0] < 255
    assert "Spread of the grey levels" in said
