"""docs/adding/evaluator.md as it stands: its files, its commands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.runs.test_evaluate import alignbench

TEXT = (ROOT / "docs" / "adding" / "evaluator.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)
    return str(found)


def test_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "protocols").mkdir()
    (tmp_path / "contrast.py").write_text(block("python"), encoding="utf-8")
    (tmp_path / "protocols" / "contrast8.toml").write_text(block("toml"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for line in block("bash").splitlines():
        program, *arguments = shlex.split(line)
        assert program == "alignbench" and alignbench(*arguments) == 0, capsys.readouterr().err
    (result,) = json.loads((tmp_path / "contrast" / "run.json").read_text())["results"]
    assert 0 < result["metrics"]["contrast"][0] < 255
    assert "Spread of the grey levels" in capsys.readouterr().out
