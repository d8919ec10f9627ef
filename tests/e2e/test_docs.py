"""What README and docs promise: commands parse and run, links lead somewhere, names are in the registry.

The pages about adding data sets and evaluators run in `tests/data` and `tests/evaluators`.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer.main

import alignbench as ab
from alignbench import testing
from alignbench.api import ScoreRequest
from alignbench.cli.main import app
from alignbench.registry import interfaces, plugins
from alignbench.registry.lookup import Registry
from alignbench.rewards.build import build
from tests.conftest import ROOT
from tests.helpers import method_checks
from tests.helpers.command import alignbench

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
ADDING = ROOT / "docs" / "adding"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


def commands(page: Path) -> list[list[str]]:
    """Every `alignbench …` line in fenced shell blocks, comments and prompts removed."""
    lines = "\n".join(blocks(page, "", "bash", "sh", "console")).replace("\\\n", " ").splitlines()
    found = [re.match(r"^(?:\$ )?(?:\S*/)?alignbench (.*)$", line.strip()) for line in lines]
    return [shlex.split(line[1], comments=True) for line in found if line]


def run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- all pages ------------------------------------------------------------------------------------

ALL = [(page.name, words) for page in PAGES for words in commands(page)]
assert len(ALL) >= 5


@pytest.mark.parametrize(("page", "words"), ALL, ids=[" ".join(words)[:60] for _, words in ALL])
def test_documented_commands_parse(page: str, words: list[str]) -> None:
    assert words[0] in COMMANDS, f"{page}: no command {words[0]}"
    given = COMMANDS[words[0]].make_context(words[0], words[1:], resilient_parsing=False).params
    for kind, key in (("methods", "method"), ("models", "model"), ("recipes", "recipe")):
        name = given.get(key)
        if isinstance(name, str) and not given.get("plugin"):  # which brings names of its own
            assert name in Registry.default().names(kind), f"{page}: no {key} {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_named_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", (ROOT / "README.md").read_text("utf-8"), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


# --- adding one's own -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["backbone", "method", "reward"])
def test_a_page_works_as_it_stands(name: str, tmp_path: Path) -> None:
    page = ADDING / f"{name}.md"
    (file,) = re.findall(r"[Ss]ave this\s+as `(\S+)`", page.read_text(encoding="utf-8"))
    tests = [block for block in blocks(page, "python") if "def test_" in block]
    content = blocks(page, "toml") or [block for block in blocks(page, "python") if block not in tests]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("\n".join(content), encoding="utf-8")
    for number, block in enumerate(tests):
        (tmp_path / f"test_{number}.py").write_text(block, encoding="utf-8")
    assert 0 < len(commands(page)) == sum(len(block.splitlines()) for block in blocks(page, "bash"))
    short = ["--steps", "2", "--no-eval", "--set", "train.images_per_step=4", "--out"]
    for number, words in enumerate(commands(page)):
        run(tmp_path, "-m", "alignbench", *words, *short, str(tmp_path / f"run{number}"))
    if tests:
        run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path))


PYIQA = """
import torch

def create_metric(name, device):
    return lambda images: images[:, 0, 0, torch.randint(224, (1,))]
"""
"""A stand-in that looks at a random place, as MANIQA's crops are."""


def test_the_quality_plug_in_scores_each_image_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyiqa.py").write_text(PYIQA, encoding="utf-8")
    (tmp_path / "quality.py").write_text(blocks(ROOT / "docs" / "rewards.md", "python")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    cards = plugins.load_registry([tmp_path / "quality.py"])
    reward = build("quality|scale(2)", cards, torch.device("cpu"), image_size=256)
    images = torch.rand(3, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    together = reward.score(ScoreRequest(images=images, group=torch.arange(3)))
    alone = reward.score(ScoreRequest(images=images[2:], group=torch.arange(1)))
    assert torch.equal(torch.get_rng_state(), state)
    place = torch.randint(224, (1,), generator=torch.Generator().manual_seed(0)).item()
    assert torch.equal(together.values, 2 * images[:, 0, 0, int(place)]) and together.valid.all()
    assert alone.values[0] == together.values[2]


def test_every_kind_has_a_short_page() -> None:
    pages = {page.stem: page.read_text(encoding="utf-8") for page in ADDING.glob("*.md")}
    assert pages.keys() == {"backbone", "data-set", "evaluator", "method", "reward", "set-reward"}
    assert all(len(text.splitlines()) <= 60 for text in pages.values())


def test_the_card_of_a_model_counts_its_parameters(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mini.toml").write_text(blocks(ADDING / "backbone.md", "toml")[0])
    registry = plugins.load_registry([tmp_path])
    card = registry.model("mini")
    backbone = interfaces.load(registry, "models", "mini")(card, None, device="meta")
    for module, shape in ((backbone.policy, card.policy), (backbone.tokenizer, card.tokenizer)):
        assert sum(part.numel() for part in module.parameters()) == shape.parameters


# --- the tutorial ---------------------------------------------------------------------------------

TUTORIAL = ROOT / "docs" / "tutorial.md"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (code,) = blocks(TUTORIAL, "python")
    assert len(code.splitlines()) <= 40
    file = tmp_path_factory.mktemp("tutorial") / "weighted_imitation.py"
    file.write_text(code, encoding="utf-8")
    return file


def test_the_method_passes_the_contract(plugin: Path, tmp_path: Path) -> None:
    case = testing.Case(plugins.load_registry([plugin]), "weighted-imitation")
    for check in (*testing.METHOD_CHECKS, *method_checks.METHOD_CHECKS):
        (tmp_path / check.__name__).mkdir()
        check(case, tmp_path / check.__name__)


def test_its_commands_end_in_a_leaderboard_row(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plugin.parent)
    assert [words[0] for words in commands(TUTORIAL)] == ["run", "run", "run", "leaderboard"]
    short = ["--set", "protocol.settings=t1", "--set", "protocol.seeds=0", "--set", "protocol.samples=50"]
    for words in commands(TUTORIAL):
        if words[0] == "run":
            words[words.index("--steps") + 1] = "2"
            words += short
        done = alignbench(*words)
        assert done.returncode == 0, done.stderr
    (page,) = re.findall(r"`leaderboards/(\S+\.md)` now holds", TUTORIAL.read_text(encoding="utf-8"))
    table = (plugin.parent / "leaderboards" / page).read_text(encoding="utf-8")
    (row,) = [
        line for line in table.splitlines() if line.startswith("|") and "**Weighted imitation**" in line
    ]
    assert "3 training seeds" in row
    assert len(list((plugin.parent / "leaderboards" / "records").glob("weighted-imitation-*.json"))) == 3


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_documented_figures_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = {
        "run": ["--steps", "2", "--no-eval", "--set", "train.images_per_step=8"],
        "figures": ["--images", "20"],
    }
    for words in commands(ROOT / "docs" / "figures.md"):
        done = alignbench(*words, *short[words[0]])
        assert done.returncode == 0, done.stderr
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert drawn == {"curves", "samples", "embedding", "sharpness", "classes"}


# --- the Python interface -------------------------------------------------------------------------

PYTHON = ROOT / "docs" / "python.md"
EXAMPLES = blocks(PYTHON, "python")


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_page_runs(number: int, tmp_path: Path) -> None:
    """Each block is a file of its own, of at most eight lines, the first of six."""
    lines = [line for line in EXAMPLES[number].splitlines() if line]
    assert len(lines) <= (8 if number else 6)
    (tmp_path / "mine.py").write_text(EXAMPLES[number], encoding="utf-8")
    printed = run(tmp_path, "mine.py")
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "run.json").is_file()
    assert "| rank |" in printed or "reward" in EXAMPLES[number]


def test_every_name_is_there_and_listed() -> None:
    page = PYTHON.read_text("utf-8")
    assert 10 <= len(ab.__all__) - 1 <= 14 and set(ab.__all__) <= set(dir(ab))
    for name in ab.__all__:
        assert getattr(ab, name) is not None
        assert name == "__version__" or name in page
    with pytest.raises(AttributeError, match="no attribute 'leaderbord'"):
        _ = ab.leaderbord


def test_images_and_models_from_python() -> None:
    first, second = ab.sample("llamagen-tiny", 2, classes=[3], setting=ab.Sampling(temperature=0.8))
    assert first.size == (8, 8) and first.mode == "RGB" and first.tobytes() != second.tobytes()
    assert ab.load_model("llamagen-tiny").image_size == 8


def test_mistakes_are_one_line() -> None:
    def plain() -> None: ...

    for call, said in [
        (lambda: ab.sample("llamagen-tiny", classes=[12]), "classes 0 to 9, not 12"),
        (lambda: ab.plan("vapi", "llamagen-tinny"), "Did you mean llamagen-tiny"),
        (lambda: ab.plan("vapi", "llamagen-tiny", plugins=[plain]), "carries no card"),
        (lambda: ab.evaluate(), "evaluate scores one thing"),
        (lambda: ab.evaluate(samples="nowhere"), "need a protocol"),
        (lambda: ab.cards("model"), "no kind 'model'. Did you mean models"),
        (lambda: ab.run(ab.plan("vapi", "llamagen-xxl")), "cannot run: "),
    ]:
        with pytest.raises(ab.UserError, match=re.escape(said)):
            call()


def test_tables_in_other_forms() -> None:
    made = ab.board([ROOT / "leaderboards" / "records"])
    assert made.markdown().count("| rank |") == len(made.tables) > 1
    rows = made.rows()
    assert len(made.csv().splitlines()) == 1 + len(rows) == 1 + len(made.frame())
    assert {"protocol", "model", "metric", "mean", "low", "high"} <= rows[0].keys()
