"""The tutorial's method and its commands, word for word but for fewer steps and samples."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from alignbench import testing
from alignbench.registry import plugins
from tests.helpers import method_checks
from tests.helpers.command import alignbench

TEXT = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
CHECKS = {check.__name__: check for check in (*testing.METHOD_CHECKS, *method_checks.METHOD_CHECKS)}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (code,) = blocks("python")
    assert len(code.splitlines()) <= 40
    file = tmp_path_factory.mktemp("tutorial") / "weighted_imitation.py"
    file.write_text(code, encoding="utf-8")
    return file


def test_the_method_passes_the_contract(plugin: Path, tmp_path: Path) -> None:
    case = testing.Case(plugins.load_registry([plugin]), "weighted-imitation")
    for name, check in CHECKS.items():
        (tmp_path / name).mkdir()
        check(case, tmp_path / name)


def test_its_commands_end_in_a_leaderboard_row(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plugin.parent)
    commands = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    assert [command[1] for command in commands] == ["run", "run", "run", "leaderboard"]
    short = ["--set", "protocol.settings=t1", "--set", "protocol.seeds=0", "--set", "protocol.samples=50"]
    for program, *arguments in commands:
        assert program == "alignbench"
        if arguments[0] == "run":
            arguments[arguments.index("--steps") + 1] = "2"
            arguments += short
        done = alignbench(*arguments)
        assert done.returncode == 0, done.stderr
    (page,) = re.findall(r"`leaderboards/(\S+\.md)` now holds", TEXT)
    table = (plugin.parent / "leaderboards" / page).read_text(encoding="utf-8")
    (row,) = [line for line in table.splitlines() if line.startswith("|") and "Weighted imitation" in line]
    assert "3 training seeds" in row
    assert len(list((plugin.parent / "leaderboards" / "records").glob("weighted-imitation-*.json"))) == 3
