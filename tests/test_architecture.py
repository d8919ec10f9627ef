"""The structure of the product: who may import whom, how large things are, what is light."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest

from docs import architecture as source
from docs.architecture import FREE, GROUND, ROOT, imports, lines_of, name_of, package_of, sources

ALLOWED: dict[str, set[str]] = {
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
    "figures": {"registry", "record", "leaderboard", "metrics"},
    "html": {"registry", "record", "run_folder", "leaderboard", "metrics.intervals"},
    "training": {"config", "data", "backbones", "rewards", "registry", "hub", "run_folder"},
    "pretrain": {"registry", "data", "samples", "backbones", "rewards", "nets"},
    "verify": {"registry", "metrics", "nets", "data", "samples", "backbones", "rewards", "methods"},
    "runs": {
        "backbones", "config", "data", "evaluation", "figures", "html", "hub", "leaderboard", "metrics",
        "nets", "record", "registry", "rewards", "run_folder", "samples", "training",
    },
}  # fmt: skip
"""{package or module: what it may import beside the ground and itself}; in words: `docs/architecture.md`."""
PRODUCT_LINES, TEST_LINES, HELPER_LINES = 42_520, 32_683, 1_000
"""Raised only together with a feature that needs it; the goals of the first two are 26,000 and 18,500."""
LONGER = {"alignbench/api.py", "alignbench/record.py", "registry/schema.py", "registry/lookup.py"}
"""Files that may have 400 lines; the others 300."""
ONE_DEFINITION = (
    "cache_root", "complete_key", "digest_of", "file_sha256", "frechet_distance", "inception_score",
    "missing_packages", "precision_recall", "shards", "share_interval", "wilson",
)  # fmt: skip


# --- who may import whom --------------------------------------------------------------------------


def allowed(importer: str, imported: str) -> bool:
    if package_of(imported) in GROUND or package_of(importer) == package_of(imported):
        return True
    return any(
        rule in (imported, package_of(imported)) or (rule[-1] == "*" and imported.startswith(rule[:-1]))
        for rule in ALLOWED[package_of(importer)]
    )


def test_every_package_has_a_rule() -> None:
    assert {package_of(name) for name in source.modules()} - GROUND - FREE == set(ALLOWED)


def test_packages_import_what_their_rule_allows() -> None:
    offences = [
        f"{path.relative_to(ROOT)}:{line} imports {imported}"
        for path in sources()
        if package_of(name_of(path)) not in FREE | GROUND
        for line, imported in imports(path)
        if not allowed(name_of(path), imported)
    ]
    assert not offences, "\n".join(offences)


def test_the_ground_imports_nothing_above_itself() -> None:
    offences = [
        f"{path.name}:{line} imports {imported}"
        for path in sources()
        if package_of(name_of(path)) in GROUND - {""}
        for line, imported in imports(path)
        if package_of(imported) not in GROUND
    ]
    assert not offences, "\n".join(offences)


def test_nothing_imports_the_command_line() -> None:
    importers = {
        package_of(name_of(path))
        for path in sources()
        if any(package_of(imported) == "cli" for _, imported in imports(path))
    }
    assert importers == {"cli", "__main__"}


def test_exchanges_are_behind_one_module() -> None:
    """Five modules use what torch has for several processes; two of them are for the others alone."""
    parts = ("attempts", "parallel", "process_group", "sharding", "sharded_checkpoint")
    layer = {f"training.{name}" for name in parts}
    users = {
        name_of(path)
        for path in sources()
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"torch\.distributed(?!\.run\b)|from torch import .*distributed", line.partition("#")[0])
        and not line.lstrip().startswith('"""')
    }
    assert users | {"training.parallel"} == layer
    for path in sources():
        used = {name for _, name in imports(path)} & {f"training.{name}" for name in parts[3:]}
        assert not used or name_of(path) in layer, path


def test_imports_form_no_circle() -> None:
    """Of modules or of packages; imports inside functions count. The package itself names all it offers."""
    packages = source.package_imports()
    graphs = [{name_of(path): {name for _, name in imports(path)} - {""} for path in sources()}, packages]
    for above in graphs:
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


# --- sizes ----------------------------------------------------------------------------------------


def test_few_modules_lie_loose() -> None:
    assert len(list((ROOT / "alignbench").glob("*.py"))) <= 12
    counts = Counter(path.parent for path in sources() if path.stem != "__init__")
    assert max(counts.values()) <= 16


def test_packages_hold_code_in_modules() -> None:
    """`__init__.py` is a docstring; the root's offers the API, three refuse to be imported from the root."""
    for path in sources():
        if path.stem == "__init__" and path.parent.name not in (
            "alignbench",
            "methods",
            "evaluators",
            "registry",
        ):
            assert len(source.tree_of(path).body) == 1, path


def test_files_and_functions_fit_a_screen() -> None:
    assert sum(map(lines_of, sources())) <= PRODUCT_LINES
    for path in sources():
        name = str(path.relative_to(ROOT))
        assert lines_of(path) <= (400 if name in LONGER else 300), name
        for function in source.functions(path):
            where = f"{name}:{function.lineno} {function.name}"
            assert (function.end_lineno or 0) - function.lineno < 60, where
            assert source.parameters(function) <= 8 or package_of(name_of(path)) == "cli", where


def test_the_suite_stays_small() -> None:
    files = list((ROOT / "tests").rglob("*.py"))
    assert sum(map(lines_of, files)) <= TEST_LINES
    assert sum(lines_of(path) for path in files if "helpers" in path.parts) <= HELPER_LINES


# --- names ----------------------------------------------------------------------------------------


def test_names_mean_one_thing() -> None:
    counts = Counter(name for name, _ in source.classes())
    assert {name for name, count in counts.items() if count > 1} <= {"Config", "Experience"}
    assert not [line for path in sources() for line in source.renamed_imports(path)]
    assert not [line for path in sources() for line in source.private_imports(path)]


def test_no_module_hides_one_of_the_standard_library() -> None:
    """A module that uses `statistics` may not lie beside our own `statistics.py` under that name."""
    for path in sources():
        used = {name for name, _ in source.absolute_imports(path)}
        ours = {name_of(other).rpartition(".")[2] for other in sources() if other.parent == path.parent}
        assert not used & ours & set(sys.stdlib_module_names), path


@pytest.mark.parametrize("name", ONE_DEFINITION)
def test_written_once(name: str) -> None:
    assert len(source.definitions(name)) == 1, source.definitions(name)


WORDS = "[Cc]ourt|needy|Judge|judging|run_facts"


def test_retired_words_are_gone() -> None:
    done = subprocess.run(
        ["git", "grep", "-nwE", WORDS, "--", ":!tests/test_architecture.py"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert not done.stdout


# --- what is light --------------------------------------------------------------------------------

HEAVY = {"torch", "numpy", "sklearn", "accelerate", "PIL", "scipy", "matplotlib"}
LIGHT = [
    ["--help"],
    ["list"],
    ["show", "vapi"],
    ["show", "llamagen-xxl"],
    ["leaderboard", "--check"],
    ["run", "--method", "vapi", "--model", "llamagen-xxl", "--dry-run"],
]


def modules_after(code: str, *arguments: str) -> set[str]:
    """Run Python and return which heavy modules it has loaded in the end."""
    code += f"\nimport sys\nprint('loaded', *({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("package", ["", "config", "hub", "leaderboard", "registry"])
def test_light_packages_load_no_torch(package: str) -> None:
    names = [name for name in source.modules() if package_of(name) == package]
    lines = [f"import alignbench.{name}".removesuffix(".") for name in sorted(names)]
    assert not modules_after("\n".join(lines)) & {"torch", "sklearn", "scipy", "matplotlib"}


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_commands_load_no_torch(arguments: list[str]) -> None:
    """Intervals of a leaderboard need scipy and its numpy, and nothing else is heavy."""
    code = (
        "import sys\n"
        "from alignbench.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as ended:\n"
        "    assert not ended.code or '--dry-run' in sys.argv\n"
    )
    usual = {"numpy", "scipy"} if arguments[0] == "leaderboard" else set()
    assert modules_after(code, *arguments) <= usual


def test_the_picture_is_of_these_packages() -> None:
    drawn = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert drawn == source.svg(), "python -m docs.architecture draws it anew"
