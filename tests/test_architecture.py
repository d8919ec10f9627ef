"""The structure of the product, read from its source: who may import whom, sizes, names, what is light.

`python -m tests.test_architecture` prints the figures.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GROUND = {"api", "distributed", "errors", "files", "progress", "randomness", ""}
"""Modules that everything may import; they import nothing above themselves. The empty name is the package."""
ALLOWED = {
    "registry": set(),
    "metrics": set(),
    "nets": set(),
    "record": {"registry"},
    "run_folder": set(),
    "hub": {"registry"},
    "data": {"registry"},
    "config": {"registry", "hub", "data.prompts"},
    "samples": {"registry", "data"},
    "methods": {"registry.reward_spec"},
    "evaluators": {"registry", "hub", "metrics", "nets", "data.shapes*"},
    "rewards": {"registry", "hub", "nets", "data.shapes*"},
    "backbones": {"registry", "nets"},
    "evaluation": {"registry", "hub", "data", "samples", "metrics", "nets", "record", "run_folder"},
    "leaderboard": {"registry", "record", "run_folder", "metrics.intervals", "evaluation.pairs"},
    "training": {"config", "data", "backbones", "rewards", "registry", "hub", "run_folder"},
    "pretrain": {"registry", "data", "samples", "backbones", "rewards", "nets"},
    "verify": {"registry", "metrics", "nets", "data", "samples", "backbones", "rewards", "methods"},
    "runs": {
        "backbones", "config", "data", "evaluation", "hub", "leaderboard", "metrics", "nets", "record",
        "registry", "rewards", "run_folder", "samples", "training",
    },
}  # fmt: skip
"""{package or module: what it may import beside the ground and itself}; `cli`, `testing`: all."""
LONGER = {"alignbench/api.py", "alignbench/record.py", "registry/schema.py", "registry/lookup.py"}
"""Files that may have 400 lines; the others 300."""
SAME_NAME = {"Config", "Experience"}
"""Class names that methods share by contract."""
ONE_DEFINITION = {
    "share_interval", "wilson", "frechet_distance", "inception_score", "precision_recall", "file_sha256",
    "parse_value", "complete_key", "shards", "cache_root", "digest_of",
}  # fmt: skip


def sources(*folders: str) -> list[Path]:
    """Return the product's modules; the links inside `alignbench/` are left out."""
    folders = folders or ("alignbench", "methods", "evaluators", "registry")
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if not any(parent.is_symlink() for parent in path.parents)]


def name_of(path: Path) -> str:
    """Return a module's name below the package: `hub.assets`, `` for the package itself."""
    parts = [part for part in path.relative_to(ROOT).with_suffix("").parts if part != "alignbench"]
    return ".".join(part for part in parts if part != "__init__")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, module below the package) of every first-party import, wherever it stands."""
    known = {name_of(other) for other in sources()}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "alignbench":
            base = (node.module or "").removeprefix("alignbench").removeprefix(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".removeprefix(".")
                yield node.lineno, full if full in known else base
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "alignbench":
                    yield node.lineno, alias.name.removeprefix("alignbench").removeprefix(".")


def package_of(module: str) -> str:
    return module.split(".")[0]


def allowed(importer: str, imported: str) -> bool:
    if package_of(imported) in GROUND or package_of(importer) == package_of(imported):
        return True
    for rule in ALLOWED[package_of(importer)]:
        if rule in (imported, package_of(imported)) or (
            rule.endswith("*") and imported.startswith(rule[:-1])
        ):
            return True
    return False


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


# --- who may import whom --------------------------------------------------------------------------


def test_every_package_has_a_rule() -> None:
    packages = {package_of(name_of(path)) for path in sources()} - GROUND
    assert packages - {"cli", "testing", "__main__"} == set(ALLOWED)


def test_packages_import_what_their_rule_allows() -> None:
    offences = [
        f"{path.relative_to(ROOT)}:{line} imports {imported}"
        for path in sources()
        if package_of(name_of(path)) not in {"cli", "testing", "__main__"} | GROUND
        for line, imported in imports(path)
        if not allowed(name_of(path), imported)
    ]
    assert not offences, "\n".join(offences)


def test_the_ground_imports_nothing_above_itself() -> None:
    offences = [
        f"{path.name}:{line} imports {imported}"
        for path in (ROOT / "alignbench").glob("*.py")
        if path.stem in GROUND
        for line, imported in imports(path)
        if package_of(imported) not in GROUND
    ]
    assert not offences, "\n".join(offences)


def test_imports_form_no_circle() -> None:
    above = {name_of(path): {imported for _, imported in imports(path)} for path in sources()}
    while free := [name for name, needed in above.items() if not needed & (above.keys() - {name})]:
        for name in free:
            del above[name]
    assert not above, f"these import each other: {sorted(above)}"


def test_root_folders_refuse_to_be_imported_under_their_own_name() -> None:
    for name in ("methods", "evaluators", "registry"):
        code = f"import {name}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 1
        assert f"import alignbench.{name}, not {name}" in done.stderr


# --- what is light --------------------------------------------------------------------------------

HEAVY = {"torch", "numpy", "sklearn", "accelerate", "PIL", "scipy"}


@pytest.mark.parametrize("package", ["config", "hub", "leaderboard", "registry"])
def test_light_packages_load_no_torch(package: str) -> None:
    names = [name for path in sources() if package_of(name := name_of(path)) == package]
    lines = [f"import alignbench.{name}" for name in names if name != "registry.__main__"]
    code = "\n".join(["import sys", "import alignbench", *lines, "assert 'torch' not in sys.modules"])
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["list"],
        ["show", "vapi"],
        ["show", "llamagen-xxl"],
        ["leaderboard", "--check"],
        ["run", "--method", "vapi", "--model", "llamagen-xxl", "--dry-run"],
    ],
)
def test_light_commands_load_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from alignbench.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"heavy = {HEAVY} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
