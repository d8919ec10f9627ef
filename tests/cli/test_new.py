"""`alignbench new method` writes something that runs and passes the contract as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from alignbench import testing
from alignbench.cli import new
from alignbench.errors import UserError
from alignbench.record import read
from alignbench.registry import plugins
from alignbench.registry.lookup import Registry
from tests.helpers import method_checks
from tests.helpers.command import alignbench


@pytest.fixture(scope="module")
def skeleton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "skeleton"
    done = alignbench("new", "method", "written-now", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    assert f"--plugin {folder} --method written-now" in done.stdout
    return folder


def test_module_card_recipe_and_test_are_written(skeleton: Path) -> None:
    files = {str(path.relative_to(skeleton)) for path in skeleton.rglob("*") if path.is_file()}
    assert files == {
        "written_now.py",
        "methods/written-now.toml",
        "recipes/written-now-llamagen-tiny.toml",
        "test_written_now.py",
    }
    for name in files:
        text = (skeleton / name).read_text()
        assert "$" not in text, f"{name} has an open placeholder"
        assert all(len(line) <= 110 for line in text.splitlines())


def test_the_skeleton_passes_our_contract(skeleton: Path, tmp_path: Path) -> None:
    case = testing.Case(plugins.load_registry([skeleton]), "written-now")
    for check in method_checks.METHOD_CHECKS:
        (tmp_path / check.__name__).mkdir()
        check(case, tmp_path / check.__name__)


@pytest.mark.slow
def test_the_generated_test_passes(skeleton: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_written_now.py"]
    done = subprocess.run(command, cwd=skeleton, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert f"{len(testing.METHOD_CHECKS)} passed" in done.stdout


def test_the_printed_command_runs_to_a_record(skeleton: Path, tmp_path: Path) -> None:
    done = alignbench(
        "run", "--plugin", str(skeleton), "--method", "written-now", "--model", "llamagen-tiny",
        "--steps", "2", "--set", "protocol.settings=t1", "--set", "protocol.seeds=0",
        "--set", "protocol.samples=50", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = read(tmp_path / "run")
    assert record.status == "complete" and record.recipe is not None
    assert record.recipe.name == "written-now-llamagen-tiny"
    assert [Path(one.path).name for one in record.plugins] == ["written_now.py"]


@pytest.mark.parametrize(
    ("reason", "names"),
    [
        ("cannot be a method's name", ("Best", "2fast", "two--dashes", "../up")),
        ("is a word of Python", ("lambda",)),
        ("exists already", ("vapi",)),
        ("can be imported already", ("torch",)),
    ],
)
def test_bad_names_are_refused(reason: str, names: tuple[str, ...]) -> None:
    for name in names:
        with pytest.raises(UserError, match=reason):
            new.check_name(name, Registry.default())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("# hours of work\n")
    with pytest.raises(UserError, match=r"mine\.py exists already"):
        new.write("mine", tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["# hours of work\n"]


def test_an_unknown_skeleton_is_one_line() -> None:
    done = alignbench("new", "methods", "mine")
    assert done.returncode == 2 and "no skeleton for 'methods'. Did you mean method?" in done.stderr
