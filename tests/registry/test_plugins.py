"""Methods, rewards, evaluators, models and data sets from outside: packages, folders and single files."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from alignbench.cli.main import main
from alignbench.config.plan import make_plan
from alignbench.config.settings import resolve
from alignbench.errors import UserError
from alignbench.leaderboard import rows
from alignbench.record import read
from alignbench.registry import interfaces, plugins
from alignbench.registry.lookup import SINGULAR, Registry
from alignbench.registry.schema import CodeFile

ROOT = Path(__file__).parents[2]
SHORT = [
    "--model", "llamagen-tiny", "--steps", "2",
    "--set", "train.images_per_step=8", "--set", "train.micro_batch=4",
]  # fmt: skip

METHOD = '''
"""A method in one file."""
import torch
from dataclasses import dataclass
from alignbench.methods.logits import eval_logits
from alignbench import api


class Mine:
    card = {
        "kind": "method", "title": "Mine", "summary": "Cross-entropy.",
        "updates": "policy", "needs": ["images"],
        "options": {"weight": {"default": 1.0, "doc": "A factor."}},
    }
    updates = "policy"

    @dataclass(frozen=True)
    class Config:
        weight: float

    def __init__(self, config, *, backbone, reward, seed):
        self.config, self.backbone = config, backbone

    def collect(self, batch, step):
        tokens = self.backbone.tokenizer.encode(batch.images)
        return api.Collected((batch.condition, tokens), images=len(batch))

    def loss(self, experience):
        condition, tokens = experience
        logits = eval_logits(self.backbone, condition, tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        return api.Loss(self.config.weight * loss)
'''


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Command(Protocol):
    def __call__(self, *arguments: object) -> Done: ...


@pytest.fixture
def alignbench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Run the command line in this process, and forget what it imported from `tmp_path`."""

    def call(*arguments: object) -> Done:
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return Done(code, *capsys.readouterr())

    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield call
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("theirs", "in_a_folder"):
            del sys.modules[name]


def file(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# --- a single file --------------------------------------------------------------------------------


def test_a_file_runs_and_is_recorded(tmp_path: Path, alignbench: Command) -> None:
    plugin = file(tmp_path, METHOD)
    done = alignbench(
        "run", "--method", "mine", "--plugin", str(plugin), "--no-eval", *SHORT, "--out", tmp_path / "run"
    )
    assert done.returncode == 0, done.stderr
    record = read(tmp_path / "run")
    assert record.method is not None and record.method.name == "mine"
    digest = hashlib.sha256(plugin.read_bytes()).hexdigest()
    assert [(one.path, one.sha256) for one in record.plugins] == [(str(plugin), f"sha256:{digest}")]


def test_every_rank_imports_the_file(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "alignbench"]
    arguments = ["run", "--method", "mine", "--plugin", str(file(tmp_path, METHOD)), "--no-eval", *SHORT]
    done = subprocess.run(
        [sys.executable, *launcher, *arguments, "--out", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = read(tmp_path / "run")
    assert record.train is not None and record.train.world_size == 2 and len(record.plugins) == 1


def test_list_and_show_know_the_file(tmp_path: Path, alignbench: Command) -> None:
    plugin = str(file(tmp_path, METHOD))
    listed = json.loads(alignbench("list", "methods", "--json", "--plugin", plugin).stdout)
    assert listed["methods"]["mine"]["summary"] == "Cross-entropy." and "vapi" in listed["methods"]
    shown = alignbench("show", "mine", "--plugin", plugin).stdout
    assert "method.weight" in shown and plugin in shown
    assert "mine" not in json.loads(alignbench("list", "methods", "--json").stdout)["methods"]


def plan_digest(path: Path) -> str:
    registry = plugins.load_registry([path])
    return make_plan(registry, resolve(registry, method="mine", model="llamagen-tiny")).digest


def test_an_edited_file_is_another_run_and_a_moved_one_is_not(tmp_path: Path) -> None:
    first = plan_digest(file(tmp_path, METHOD))
    (tmp_path / "elsewhere").mkdir()
    assert plan_digest(file(tmp_path / "elsewhere", METHOD, "other.py")) == first
    assert plan_digest(file(tmp_path, METHOD + "\n# edited\n")) != first


def test_a_leaderboard_pools_only_runs_of_the_same_code() -> None:
    stored = read(ROOT / "tests" / "golden" / "records" / "vapi-llamagen-tiny-s0-11111111.json")

    def identity(path: str, digit: str) -> str:
        info = CodeFile(path=path, sha256=f"sha256:{digit * 64}")
        return rows.identity(stored.model_copy(update={"plugins": [info]}))

    assert identity("/here/a.py", "1") == identity("/there/a.py", "1")
    assert identity("/here/a.py", "1") != identity("/here/a.py", "2")
    assert identity("/here/a.py", "1") != rows.identity(stored)


OTHERS = '''
"""A reward, an evaluator, a data set and a model in one file."""
import numpy as np
import torch
from alignbench import api
from alignbench.backbones.llamagen import model


class Bright:
    card = {"kind": "reward", "title": "Bright", "summary": "Mean pixel.", "direction": "higher",
            "differentiable": False, "scope": "image"}

    def __init__(self, device): ...

    def score(self, request):
        values = request.images.mean(dim=(1, 2, 3))
        return api.Scores(values, torch.ones_like(values, dtype=torch.bool))


class Count:
    card = {"kind": "evaluator", "name": "how-many", "title": "Count", "summary": "Images.",
            "metrics": {"count": {"title": "Count", "direction": "higher", "digits": 0}}}

    identity = "count 1"

    def __init__(self, card, *, options, assets, device): ...

    def measure(self, batch):
        return {"one": np.ones(len(batch))}

    def score(self, samples, reference):
        return [api.Metric("count", float(len(samples)), len(samples), (29.0, 31.0), (30.5, 29.5))]


class Squares:
    card = {"kind": "dataset", "title": "Squares", "summary": "Grey squares.", "condition": "class",
            "splits": ["all"], "train_split": "all"}
    num_classes, class_names, skipped, digest = 10, tuple("0123456789"), (), "sha256:" + "0" * 64
    labels = np.arange(20) % 10

    def __init__(self, *, split, image_size, num_classes, options, workers, cache_dir, progress):
        self.size = image_size

    def __len__(self):
        return 20

    def load(self, index):
        return np.full((self.size, self.size, 3), 12 * index, dtype=np.uint8), int(self.labels[index])


def build(card, files, *, seed, device=None):
    return model.build(card, files, seed=seed, device=device)


build.card = {**MODEL, "kind": "model", "name": "other-tiny", "title": "Other"}
'''


def others(folder: Path) -> Path:
    model = Registry.default().model("llamagen-tiny").model_dump(mode="json", exclude={"target"})
    return file(folder, f"MODEL = {model!r}\n{OTHERS}", "others.py")


def test_reward_and_data_set_of_a_file_train(tmp_path: Path, alignbench: Command) -> None:
    done = alignbench(
        "run", "--method", "ar-grpo", "--set", "method.rewards=bright@1", "--data", "squares", "--no-eval",
        *SHORT, "--plugin", str(others(tmp_path)), "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = read(tmp_path / "run")
    assert record.data is not None and record.data.name == "squares" and record.data.count == 20
    assert record.train is not None and set(record.train.reward_calls) == {"bright"}


def test_model_and_evaluator_of_a_file_are_used(tmp_path: Path, alignbench: Command) -> None:
    protocol = Registry.default().locations["protocols"]["digits8"].path.read_text(encoding="utf-8")
    protocol = protocol.replace('["distribution-digits"]', '["how-many"]').replace('"fd-digits"', '"count"')
    (tmp_path / "cards" / "protocols").mkdir(parents=True)
    (tmp_path / "cards" / "protocols" / "counted.toml").write_text(protocol, encoding="utf-8")
    done = alignbench(
        "evaluate", "--model", "other-tiny", "--protocol", "counted", "--set", "protocol.samples=30",
        "--set", "protocol.settings=t1", "--set", "protocol.seeds=0", "--plugin", str(others(tmp_path)),
        "--plugin", str(tmp_path / "cards"), "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = read(tmp_path / "run")
    assert [one.metrics for one in record.results] == [
        {"count": [30.0]}
    ] and record.model.name == "other-tiny"
    assert record.results[0].intervals == {"count": [[29.0, 31.0]]}
    assert record.results[0].resampled == {"count": [[30.5, 29.5]]}
    assert "Count" in done.stdout


def test_what_is_built_must_have_its_members(tmp_path: Path, alignbench: Command) -> None:
    source = """
def build(device):
    return object()

build.card = {"kind": "reward", "title": "Empty", "name": "empty", "direction": "higher",
              "differentiable": False, "scope": "image"}
"""
    done = alignbench(
        "run", "--method", "ar-grpo", "--set", "method.rewards=empty", "--no-eval", *SHORT,
        "--plugin", str(file(tmp_path, source)), "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 2 and "reward 'empty'" in done.stderr and "lacks score" in done.stderr


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nowhere_to_be_found", r"mine\.py, line 1: cannot be imported: ModuleNotFoundError"),
        ("x = 1\nraise SystemExit(3)", r"mine\.py, line 2: cannot be imported: SystemExit: 3"),
        ("def f(:", r"mine\.py: cannot be imported: SyntaxError"),
        ("x = 1", r"mine\.py: none of its classes has a card"),
        (METHOD.replace("def loss", "def lost"), r"mine\.py: Mine lacks loss"),
        (METHOD.replace('    updates = "policy"\n', ""), r"mine\.py: Mine lacks updates"),
        (METHOD.replace("        weight: float", "        wait: float"), r"'weight' is no field of Config"),
        (METHOD.replace('    updates = "policy"', '    updates = "decoder"'), r"updates 'decoder', its card"),
        (METHOD.replace('"kind": "method"', '"kind": "methods"'), r"kind is 'methods'\. Did you mean method"),
        (METHOD.replace('"title": "Mine", ', ""), r"Mine\.card: title: Field required"),
        (METHOD.replace('"title": "Mine"', '"title": "Mine", "name": "vapi"'), r"two method cards are named"),
        ('class R:\n card = {"kind": "reward", "title": "R", "direction": "higher", '
         '"differentiable": True, "scope": "image"}', r"R lacks score"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_with_its_reason(tmp_path: Path, source: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        assert plugins.load_registry([file(tmp_path, source)]).names("methods")
    assert caught.value.exit_code == 2 and str(tmp_path) in str(caught.value)


def test_a_broken_file_ends_in_one_line(tmp_path: Path, alignbench: Command) -> None:
    broken = str(file(tmp_path, "import nowhere_to_be_found"))
    done = alignbench("run", "--method", "mine", "--plugin", broken, *SHORT)
    assert done.returncode == 2 and "Traceback" not in done.stderr and broken in done.stderr
    assert alignbench("list", "methods", "--plugin", str(tmp_path / "none.py")).returncode == 2


def test_the_documentation_lists_every_member() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    for kind, names in interfaces.OBJECT_MEMBERS.items():
        assert all(f"`{name}`" in rows[SINGULAR[kind]] for name in names), kind


# --- an installed package -------------------------------------------------------------------------


def package(folder: Path, module: str = METHOD, *, name: str = "theirs") -> Path:
    """A package with one method, and the metadata pip writes for its one entry-point line."""
    (folder / name / "registry" / "methods").mkdir(parents=True)
    (folder / name / "__init__.py").write_text("")
    (folder / name / "work.py").write_text(module)
    (folder / name / "registry" / "methods" / f"{name}-method.toml").write_text(
        f'target = "{name}.work:Mine"\ntitle = "Theirs"\nsummary = "Cross-entropy."\nupdates = "policy"\n'
        'needs = ["images"]\n[options.weight]\ndefault = 1.0\ndoc = "A factor."\n'
    )
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[alignbench]\n{name} = {name}\n")
    return folder


def installed(folder: Path, module: str = METHOD) -> Path:
    sys.path.insert(0, str(package(folder, module)))
    return folder


def test_an_installed_package_runs_and_is_recorded(tmp_path: Path, alignbench: Command) -> None:
    site = installed(tmp_path / "site")
    done = alignbench("run", "--method", "theirs-method", "--no-eval", *SHORT, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert [one.path for one in read(tmp_path / "run").plugins] == [str(site / "theirs" / "work.py")]


def test_a_package_that_cannot_be_imported_breaks_only_itself(tmp_path: Path, alignbench: Command) -> None:
    site = installed(tmp_path / "site")
    (site / "theirs" / "__init__.py").write_text("raise RuntimeError('half installed')")
    listed = json.loads(alignbench("list", "--json").stdout)
    assert {"theirs-method", "vapi"} <= set(listed["methods"])
    done = alignbench("run", "--method", "vapi", "--model", "llamagen-tiny", "--dry-run")
    assert done.returncode == 0, done.stderr
    done = alignbench("run", "--method", "theirs-method", "--no-eval", *SHORT, "--out", tmp_path / "r")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "method 'theirs-method'" in done.stderr and "RuntimeError: half installed" in done.stderr


def test_an_entry_point_may_name_an_inner_package_or_nothing_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = package(tmp_path / "site")
    (site / "theirs" / "inner").mkdir()
    (site / "theirs" / "registry").rename(site / "theirs" / "inner" / "registry")
    entries = "[alignbench]\ninner = theirs.inner\ngone = not_there_any_more\n"
    (site / "theirs-1.0.dist-info" / "entry_points.txt").write_text(entries)
    (site / "theirs" / "__init__.py").write_text("raise RuntimeError('half installed')")
    monkeypatch.syspath_prepend(str(site))
    found = Registry.default().locations["methods"]["theirs-method"]
    assert found.origin == "inner" and found.path.is_relative_to(site / "theirs" / "inner")


def test_a_package_method_without_a_member_is_named(tmp_path: Path, alignbench: Command) -> None:
    installed(tmp_path / "site", METHOD.replace("def collect", "def gather"))
    done = alignbench("run", "--method", "theirs-method", "--no-eval", *SHORT, "--out", tmp_path / "r")
    assert done.returncode == 2 and "lacks collect" in done.stderr and "theirs-method.toml" in done.stderr


def test_a_broken_card_of_a_package_breaks_only_itself(tmp_path: Path, alignbench: Command) -> None:
    registry = installed(tmp_path / "site") / "theirs" / "registry"
    for kind in ("methods", "recipes", "evaluators"):
        (registry / kind).mkdir(exist_ok=True)
        (registry / kind / "slip.toml").write_text('title = "Slip"\nwat = 1\n')
    done = alignbench("list", "--json")
    assert done.returncode == 0 and {"theirs-method", "vapi"} <= set(json.loads(done.stdout)["methods"])
    assert "left out: " in done.stderr and "slip.toml: " in done.stderr and "wat: " in done.stderr
    run = ["run", "--model", "llamagen-tiny", "--dry-run"]
    assert alignbench(*run, "--method", "vapi").returncode == 0
    done = alignbench(*run, "--method", "theirs-method")
    assert done.returncode == 2 and "recipes/slip.toml" in done.stderr  # it may be this method's recipe


@pytest.mark.slow
def test_pip_installs_a_package(tmp_path: Path, alignbench: Command) -> None:
    """A real install, so that the metadata above is what pip writes."""
    source = package(tmp_path / "source")
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "theirs"\nversion = "1.0"\n[project.entry-points.alignbench]\ntheirs = "theirs"\n'
        '[tool.setuptools]\npackages = ["theirs"]\n'
        '[tool.setuptools.package-data]\ntheirs = ["registry/*/*.toml"]\n'
    )
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    site = tmp_path / "site"
    subprocess.run([*install, "--target", str(site), str(source)], check=True, capture_output=True)
    sys.path.insert(0, str(site))
    listed = json.loads(alignbench("list", "methods", "--json").stdout)
    assert "theirs-method" in listed["methods"]


# --- a folder of cards ----------------------------------------------------------------------------


def folder(place: Path) -> Path:
    (place / "methods").mkdir(parents=True)
    (place / "in_a_folder.py").write_text(METHOD)
    (place / "methods" / "folded.toml").write_text(
        'target = "in_a_folder:Mine"\ntitle = "Folded"\nsummary = "Cross-entropy."\nupdates = "policy"\n'
        'needs = ["images"]\n[options.weight]\ndefault = 1.0\ndoc = "A factor."\n'
    )
    return place


@pytest.mark.parametrize("how", ["ALIGNBENCH_PATH", "--plugin"])
def test_a_folder_brings_cards_and_their_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, alignbench: Command
) -> None:
    place = folder(tmp_path / "cards")
    more: list[Any] = ["--plugin", str(place)]
    if how == "ALIGNBENCH_PATH":
        monkeypatch.setenv("ALIGNBENCH_PATH", str(place))
        more = []
    done = alignbench("run", "--method", "folded", "--no-eval", *SHORT, *more, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert [one.path for one in read(tmp_path / "run").plugins] == [str(place / "in_a_folder.py")]
