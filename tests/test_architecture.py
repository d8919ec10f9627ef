"""Who may import whom, read from the source, and what light commands must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FORBIDDEN = {
    # A method never sees a rank, an evaluator never sees a model, nothing imports the command line.
    "methods": (
        "driver",
        "parallel",
        "evaluators",
        "evaluation",
        "backbones",
        "runner",
        "assembly",
        "cli",
        "rewards",
    ),
    "evaluators": ("methods", "driver", "parallel", "backbones", "runner", "cli", "rewards"),
    "alignbench/backbones": ("methods", "evaluators", "driver", "runner", "cli", "rewards", "data"),
    "alignbench/rewards": ("methods", "evaluators", "driver", "runner", "cli", "backbones"),
    "alignbench/data": ("methods", "evaluators", "driver", "runner", "cli", "backbones", "rewards"),
    "alignbench/metrics": (
        "methods",
        "evaluators",
        "driver",
        "runner",
        "cli",
        "backbones",
        "rewards",
        "nets",
        "data",
    ),
    "alignbench/nets": ("methods", "evaluators", "driver", "runner", "cli", "backbones", "rewards"),
    "registry": ("methods", "evaluators", "driver", "runner", "cli", "backbones", "rewards", "api"),
}
NO_TORCH_AT_IMPORT = (
    "api", "asset_fetch", "assets", "config", "errors", "files", "folder", "hub", "leaderboard", "plan",
    "progress", "prompts", "randomness", "ranking", "record", "statistics", "tables",
)  # fmt: skip


def imports(path: Path) -> set[str]:
    """Every module a file imports anywhere, as full names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).glob("**/*.py"))


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_layers_point_one_way(folder: str) -> None:
    offences = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(folder)
        for name in imports(path)
        for part in FORBIDDEN[folder]
        if name == f"alignbench.{part}" or name.startswith(f"alignbench.{part}.")
    ]
    assert not offences


def test_nothing_imports_the_command_line() -> None:
    outside = [path for path in sources("alignbench") if "cli" not in path.parts]
    outside = [path for path in outside if path.name != "__main__.py"]
    assert outside
    assert not [path for path in outside if any(n.startswith("alignbench.cli") for n in imports(path))]


def test_the_framework_names_no_method_or_evaluator() -> None:
    framework = [path for path in (ROOT / "alignbench").glob("*.py")]
    for path in framework:
        for name in imports(path):
            assert not name.startswith(("alignbench.methods", "alignbench.evaluators")), (
                f"{path.name}: {name}"
            )


def test_light_modules_load_no_torch() -> None:
    code = "import sys\n" + "".join(f"import alignbench.{name}\n" for name in NO_TORCH_AT_IMPORT)
    code += "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
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
        "heavy = {'torch', 'numpy', 'sklearn', 'accelerate', 'PIL', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_root_folders_refuse_to_be_imported_under_their_own_name() -> None:
    for name in ("methods", "evaluators", "registry"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 1
        assert f"import alignbench.{name}, not {name}" in done.stderr
