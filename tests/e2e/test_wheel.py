"""What a built wheel holds: one top-level package, every module and card of the tree, the weights."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """File names in a wheel built from a copy of the sources, links kept as links."""
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for folder in ("alignbench", "methods", "evaluators", "registry"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    (wheel,) = out.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_one_top_level_package(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"alignbench"}


def test_everything_of_the_tree_is_in_it(names: set[str]) -> None:
    expected = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "alignbench").glob("**/*.py")
        if not any(
            part in ("methods", "evaluators", "registry") for part in path.relative_to(ROOT).parts[1:2]
        )
    }
    for folder in ("methods", "evaluators", "registry"):
        files = [*(ROOT / folder).glob("**/*.py"), *(ROOT / folder).glob("**/*.toml")]
        expected |= {f"alignbench/{path.relative_to(ROOT)}" for path in files}
    expected |= {
        str(path.relative_to(ROOT))
        for folder in ("weights", "templates")
        for path in (ROOT / "alignbench" / folder).glob("*/*")
        if path.is_file()
    }
    assert "alignbench/templates/method/module.py.tmpl" in expected
    assert "alignbench/registry/methods/vapi.toml" in expected
    assert expected - names == set()


def test_shipped_weights_are_small() -> None:
    limits = {"digits": 2, "llamagen-tiny": 2, "shapes-tiny": 3}  # MiB
    folders = [path for path in (ROOT / "alignbench" / "weights").iterdir() if path.is_dir()]
    assert {folder.name for folder in folders} <= set(limits)
    for folder in folders:
        total = sum(path.stat().st_size for path in folder.glob("*"))
        assert 0 < total <= limits[folder.name] * 2**20, folder.name
