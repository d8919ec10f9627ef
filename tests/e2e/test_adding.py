"""The pages of docs/adding: their files and commands as they stand, with fewer steps.

Those of data sets and evaluators run in `tests/data` and `tests/evaluators`.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from alignbench.registry import interfaces, plugins
from alignbench.registry.schema import ModelCard

FOLDER = Path(__file__).parents[2] / "docs" / "adding"
PAGES = [FOLDER / f"{name}.md" for name in ("backbone", "method", "reward")]
SHORT = ["--steps", "2", "--no-eval", "--set", "train.images_per_step=4"]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_works_as_it_stands(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    (name,) = re.findall(r"[Ss]ave this\s+as `(\S+)`", text)
    tests = [block for block in blocks(text, "python") if "def test_" in block]
    content = blocks(text, "toml") or [block for block in blocks(text, "python") if block not in tests]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("\n".join(content), encoding="utf-8")
    for number, block in enumerate(tests):
        (tmp_path / f"test_{number}.py").write_text(block, encoding="utf-8")
    commands = [shlex.split(line) for block in blocks(text, "bash") for line in block.splitlines()]
    assert commands
    for program, *arguments in commands:
        assert program == "alignbench"
        run(tmp_path, "-m", "alignbench", *arguments, *SHORT, "--out", str(tmp_path / "run"))
        (tmp_path / "run").rename(tmp_path / f"run{commands.index([program, *arguments])}")
    if tests:
        run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path))


def test_every_kind_has_a_short_page() -> None:
    pages = {page.stem: page.read_text(encoding="utf-8") for page in FOLDER.glob("*.md")}
    assert pages.keys() == {"backbone", "data-set", "evaluator", "method", "reward"}
    assert all(len(text.splitlines()) <= 60 for text in pages.values())


def run(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_card_of_a_model_counts_its_parameters(tmp_path: Path) -> None:
    (page,) = [page for page in PAGES if page.stem == "backbone"]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mini.toml").write_text(blocks(page.read_text(encoding="utf-8"), "toml")[0])
    registry = plugins.load_registry([tmp_path])
    card = registry.model("mini")
    assert isinstance(card, ModelCard)
    backbone = interfaces.load(registry, "models", "mini")(card, None, device="meta")
    for module, shape in ((backbone.policy, card.policy), (backbone.tokenizer, card.tokenizer)):
        assert sum(part.numel() for part in module.parameters()) == shape.parameters
