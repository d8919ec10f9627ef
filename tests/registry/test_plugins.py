"""Methods, rewards, evaluators, models and data sets from outside: packages, folders and single files."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignbench.config.plan import make_plan
from alignbench.config.settings import resolve
from alignbench.errors import UserError
from alignbench.leaderboard import rows
from alignbench.record import RunRecord, read
from alignbench.registry import interfaces, plugins
from alignbench.registry.lookup import SINGULAR, Registry
from alignbench.registry.schema import CodeFile
from tests.conftest import ROOT
from tests.helpers.command import alignbench

SHORT = [
    "--no-eval", "--model", "llamagen-tiny", "--steps", "2",
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


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what the command line imported from `tmp_path`."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("theirs", "in_a_folder"):
            del sys.modules[name]


def trained(method: str, out: Path, *more: object) -> RunRecord:
    """Train for two steps."""
    done = alignbench("run", "--method", method, *SHORT, *more, "--out", out / "run")
    assert done.returncode == 0, done.stderr
    return read(out / "run")


def refused(*arguments: object) -> str:
    """What a command says that nothing comes of."""
    done = alignbench(*arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    return done.stderr


def listed() -> set[str]:
    """Names of the methods."""
    return set(json.loads(alignbench("list", "--json").stdout)["methods"])


def file(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# --- a single file --------------------------------------------------------------------------------


def test_a_file_runs_and_is_recorded(tmp_path: Path) -> None:
    plugin = file(tmp_path, METHOD)
    record = trained("mine", tmp_path, "--plugin", plugin)
    assert record.method is not None and record.method.name == "mine"
    digest = hashlib.sha256(plugin.read_bytes()).hexdigest()
    assert [(one.path, one.sha256) for one in record.plugins] == [(str(plugin), f"sha256:{digest}")]


@pytest.mark.slow
def test_every_rank_imports_the_file(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "alignbench"]
    arguments = ["run", "--method", "mine", "--plugin", str(file(tmp_path, METHOD)), *SHORT]
    command = [sys.executable, *launcher, *arguments, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = read(tmp_path / "run")
    assert record.train is not None and record.train.world_size == 2 and len(record.plugins) == 1


def test_list_and_show_know_the_file(tmp_path: Path) -> None:
    plugin = file(tmp_path, METHOD)
    methods = json.loads(alignbench("list", "methods", "--json", "--plugin", plugin).stdout)["methods"]
    assert methods["mine"]["summary"] == "Cross-entropy." and "vapi" in methods
    shown = alignbench("show", "mine", "--plugin", plugin).stdout
    assert "method.weight" in shown and str(plugin) in shown
    assert "mine" not in listed()


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
    assert identity("/here/a.py", "1") not in (identity("/here/a.py", "2"), rows.identity(stored))


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


def test_reward_and_data_set_of_a_file_train(tmp_path: Path) -> None:
    given = ["--set", "method.rewards=bright@1", "--data", "squares", "--plugin", others(tmp_path)]
    record = trained("ar-grpo", tmp_path, *given)
    assert record.data is not None and record.data.name == "squares" and record.data.count == 20
    assert record.train is not None and set(record.train.reward_calls) == {"bright"}


def test_model_and_evaluator_of_a_file_are_used(tmp_path: Path) -> None:
    protocol = Registry.default().locations["protocols"]["digits8"].path.read_text(encoding="utf-8")
    protocol = protocol.replace('["distribution-digits"]', '["how-many"]').replace('"fd-digits"', '"count"')
    (tmp_path / "cards" / "protocols").mkdir(parents=True)
    file(tmp_path / "cards" / "protocols", protocol, "counted.toml")
    done = alignbench(
        "evaluate", "--model", "other-tiny", "--protocol", "counted", "--set", "protocol.samples=30",
        "--set", "protocol.settings=t1", "--set", "protocol.seeds=0", "--plugin", others(tmp_path),
        "--plugin", tmp_path / "cards", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = read(tmp_path / "run")
    (result,) = record.results
    assert result.metrics == {"count": [30.0]} and record.model.name == "other-tiny"
    assert result.intervals == {"count": [[29.0, 31.0]]}
    assert result.resampled == {"count": [[30.5, 29.5]]} and "Count" in done.stdout


EMPTY = """
def build(device):
    return object()

build.card = {"kind": "reward", "title": "Empty", "name": "empty", "direction": "higher",
              "differentiable": False, "scope": "image"}
"""


def test_what_is_built_must_have_its_members(tmp_path: Path) -> None:
    given = ["--method", "ar-grpo", "--set", "method.rewards=empty", "--plugin", file(tmp_path, EMPTY)]
    said = refused("run", *given, *SHORT, "--out", tmp_path / "run")
    assert "reward 'empty'" in said and "lacks score" in said


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


def test_the_documentation_lists_every_member() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    for kind, names in interfaces.OBJECT_MEMBERS.items():
        assert all(f"`{name}`" in lines[SINGULAR[kind]] for name in names), kind


# --- an installed package, a folder of cards ------------------------------------------------------


def cards(folder: Path, name: str, target: str) -> None:
    """A folder of cards with one method."""
    (folder / "methods").mkdir(parents=True)
    (folder / "methods" / f"{name}.toml").write_text(
        f'target = "{target}"\ntitle = "Theirs"\nsummary = "Cross-entropy."\nupdates = "policy"\n'
        'needs = ["images"]\n[options.weight]\ndefault = 1.0\ndoc = "A factor."\n'
    )


def package(folder: Path, module: str = METHOD) -> Path:
    """A package with one method, and the metadata pip writes for its one entry-point line."""
    cards(folder / "theirs" / "registry", "theirs-method", "theirs.work:Mine")
    (folder / "theirs" / "__init__.py").write_text("")
    (folder / "theirs" / "work.py").write_text(module)
    info = folder / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[alignbench]\ntheirs = theirs\n")
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages with that one."""
    sys.path.insert(0, str(package(tmp_path / "site")))
    return tmp_path / "site"


def half_installed(site: Path) -> None:
    (site / "theirs" / "__init__.py").write_text("raise RuntimeError('half installed')")


def test_an_installed_package_runs_and_is_recorded(tmp_path: Path, site: Path) -> None:
    record = trained("theirs-method", tmp_path)
    assert [one.path for one in record.plugins] == [str(site / "theirs" / "work.py")]


def test_a_package_that_cannot_be_imported_breaks_only_itself(tmp_path: Path, site: Path) -> None:
    half_installed(site)
    assert {"theirs-method", "vapi"} <= listed()
    done = alignbench("run", "--method", "vapi", "--model", "llamagen-tiny", "--dry-run")
    assert done.returncode == 0, done.stderr
    said = refused("run", "--method", "theirs-method", *SHORT, "--out", tmp_path / "r")
    assert "method 'theirs-method'" in said and "RuntimeError: half installed" in said


def test_an_entry_point_may_name_an_inner_package_or_nothing_any_more(site: Path) -> None:
    inner = site / "theirs" / "inner"
    inner.mkdir()
    (site / "theirs" / "registry").rename(inner / "registry")
    entries = "[alignbench]\ninner = theirs.inner\ngone = not_there_any_more\n"
    (site / "theirs-1.0.dist-info" / "entry_points.txt").write_text(entries)
    half_installed(site)
    found = Registry.default().locations["methods"]["theirs-method"]
    assert found.origin == "inner" and found.path.is_relative_to(inner)


def test_a_package_method_without_a_member_is_named(tmp_path: Path, site: Path) -> None:
    (site / "theirs" / "work.py").write_text(METHOD.replace("def collect", "def gather"))
    said = refused("run", "--method", "theirs-method", *SHORT, "--out", tmp_path / "r")
    assert "lacks collect" in said and "theirs-method.toml" in said


def test_a_broken_card_of_a_package_breaks_only_itself(site: Path) -> None:
    for kind in ("methods", "recipes", "evaluators"):
        folder = site / "theirs" / "registry" / kind
        folder.mkdir(exist_ok=True)
        (folder / "slip.toml").write_text('title = "Slip"\nwat = 1\n')
    assert {"theirs-method", "vapi"} <= listed()
    said = alignbench("list", "--json").stderr
    assert "left out: " in said and "slip.toml: " in said and "wat: " in said
    run = ["run", "--model", "llamagen-tiny", "--dry-run", "--method"]
    assert alignbench(*run, "vapi").returncode == 0
    assert "recipes/slip.toml" in refused(*run, "theirs-method")  # it may be this method's recipe


@pytest.mark.slow
def test_pip_installs_a_package(tmp_path: Path) -> None:
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
    assert "theirs-method" in listed()


@pytest.mark.parametrize("how", ["ALIGNBENCH_PATH", "--plugin"])
def test_a_folder_brings_cards_and_their_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    place = tmp_path / "cards"
    cards(place, "folded", "in_a_folder:Mine")
    module = file(place, METHOD, "in_a_folder.py")
    if how == "ALIGNBENCH_PATH":
        monkeypatch.setenv(how, str(place))
        assert Registry.default().locations["methods"]["folded"].origin == how
    record = trained("folded", tmp_path, *([how, place] if how == "--plugin" else []))
    assert [one.path for one in record.plugins] == [str(module)]
