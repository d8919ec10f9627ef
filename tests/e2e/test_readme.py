"""What README and docs promise exists: commands parse, links lead somewhere, names are in the registry."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from alignbench.cli.main import app
from alignbench.registry.lookup import Registry

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def command_lines(text: str) -> list[list[str]]:
    """Every `alignbench …` line in fenced shell blocks, comments and prompts removed."""
    lines = []
    for block in re.findall(r"```(?:bash|sh|console)?\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"^(?:\$ )?(?:\S*/)?alignbench (.*)$", line.strip())
            if found:
                lines.append(shlex.split(found[1], comments=True))
    return lines


ALL = [(page.name, words) for page in PAGES for words in command_lines(page.read_text("utf-8"))]


def test_there_are_commands_to_check() -> None:
    assert len(ALL) >= 5


@pytest.mark.parametrize(("page", "words"), ALL, ids=[" ".join(words)[:60] for _, words in ALL])
def test_documented_commands_parse(page: str, words: list[str]) -> None:
    assert words[0] in COMMANDS, f"{page}: no command {words[0]}"
    command = COMMANDS[words[0]]
    context = command.make_context(words[0], list(words[1:]), resilient_parsing=False)
    given = context.params
    registry = Registry.default()
    for kind, key in (("methods", "method"), ("models", "model"), ("recipes", "recipe")):
        name = given.get(key)
        if isinstance(name, str) and "mine" not in name and name.islower() and not name.startswith("my"):
            assert name in registry.names(kind), f"{page}: no {key} {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_named_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", (ROOT / "README.md").read_text("utf-8"), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
