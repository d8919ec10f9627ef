"""Pictures of records and logs: the numbers beside each are those of the runs."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from alignbench.commands.drawing import KINDS, figures
from alignbench.errors import UserError
from alignbench.figures import curves, picture
from alignbench.leaderboard.cells import labels
from alignbench.registry.lookup import Registry
from tests.conftest import ROOT

RECORDS = ROOT / "leaderboards" / "records"
FD, TASK = "fd-digits", "shapes-counting"


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8")))


def recorded(name: str, subject: str, metric: str) -> dict[str, list[float]]:
    """{title of the setting: mean over sampling seeds of each run} of the records whose file starts so."""
    found = defaultdict(list)
    for path in sorted(RECORDS.glob(f"{name}-s*.json")):
        for result in json.loads(path.read_text(encoding="utf-8"))["results"]:
            if result["subject"] == subject:
                found[result["setting"]["title"]].append(float(np.mean(result["metrics"][metric])))
    return found


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figures")
    files = figures([RECORDS], out)
    assert all(path.is_file() for path in files)
    return out


def test_every_picture_has_its_numbers_and_a_caption(drawn: Path) -> None:
    page = (drawn / "figures.md").read_text(encoding="utf-8")
    pictures = sorted(path.stem for path in drawn.glob("*.png"))
    assert pictures == [
        "tasks-shapes-shapes-tiny",
        "tradeoff-digits8-llamagen-tiny",
        "tradeoff-shapes-shapes-tiny",
    ]
    for name in pictures:
        assert f"![{name}]({name}.png)" in page and f"[{name}.csv]({name}.csv)" in page
        with Image.open(drawn / f"{name}.png") as image:
            assert image.size[0] > 600 and len(np.unique(np.asarray(image))) > 20
    assert page.replace("\n", " ").count("95 % intervals") == len(pictures)
    assert "- Not drawn: curves: 36 configurations are too many for one picture" in page


def test_a_tradeoff_holds_the_means_of_the_records(drawn: Path) -> None:
    rows = rows_of(drawn / "tradeoff-digits8-llamagen-tiny.csv")
    found = {(row["row"], row["setting"]): row for row in rows if row["metric"] == FD}
    for setting, means in recorded("cca-llamagen-tiny", "method", FD).items():
        row = found["CCA", setting]
        low, high = stats.t.interval(0.95, len(means) - 1, np.mean(means), stats.sem(means))
        np.testing.assert_allclose(
            [float(row[key]) for key in ("mean", "low", "high")], [np.mean(means), low, high], rtol=1e-12
        )
    base = recorded("vapi-llamagen-tiny", "base", FD)
    assert {s for r, s in found if r == "base"} == set(base)
    assert all(float(found["base", s]["mean"]) == pytest.approx(means[0]) for s, means in base.items())
    assert {row["metric"] for row in rows} == {"fd-digits", "recall", "precision"}
    assert len(rows) == 8 * 4 * 3, "rows, settings, metrics"


def test_tasks_hold_the_means_of_the_records(drawn: Path) -> None:
    rows = {(row["row"], row["group"]): row for row in rows_of(drawn / "tasks-shapes-shapes-tiny.csv")}
    means = recorded("pairs-shapes-tiny", "method", TASK)["T=1"]
    assert float(rows["Pairs", "Shapes counting"]["mean"]) == pytest.approx(np.mean(means), rel=1e-12)
    assert len(rows) == 8 * 7


# --- runs that are made up ------------------------------------------------------------------------


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a run folder of a committed record, without its digest."""

    def made(
        name: str, *, seed: int = 0, steps: list[dict[str, float]] | None = None, **changed: Any
    ) -> Path:
        (path,) = RECORDS.glob(f"vapi-llamagen-tiny-s{seed}-*.json")
        record = json.loads(path.read_text(encoding="utf-8"))
        record |= {"id": name, "sha256": None}
        for key, value in changed.items():
            section, _, option = key.partition("_")
            record["changed"][f"{section}.{option}"] = {"value": value, "origin": "--set"}
            record["config"]["values"][f"{section}.{option}"] = value
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
        if steps is not None:
            lines = "".join(json.dumps(line) + "\n" for line in steps)
            (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
        return folder

    return made


def test_curves_hold_the_log(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """The later of a step that was trained twice; what is always 0 is named instead of drawn."""
    for seed in (0, 1):
        steps = [{"step": n, "reward": seed - 1 / n, "reward_std/pixel": 0.1, "pixel": n, "kl": 1e-9}
                 for n in [1, 2, 3, 2, 3, 4]]  # fmt: skip
        steps[1]["reward"] = 99.0
        make_run(f"run-{seed}", seed=seed, steps=steps)
    figures([tmp_path / "runs"], tmp_path / "out", kinds=["curves"])
    rows = rows_of(tmp_path / "out" / "curves.csv")
    reward = {(row["seed"], row["step"]): float(row["value"]) for row in rows if row["series"] == "reward"}
    assert reward == {(str(s), str(n)): s - 1 / n for s in (0, 1) for n in (1, 2, 3, 4)}
    assert {row["series"] for row in rows} == {"reward", "pixel"}
    page = (tmp_path / "out" / "figures.md").read_text(encoding="utf-8").replace("\n", " ")
    assert "2 training seeds: VA-π." in page and r"always 0: KL to the start \[nats\]" in page


def test_running_means() -> None:
    values = np.random.default_rng(0).normal(size=100)
    half = 5
    plain = [values[max(0, n - half) : n + half + 1].mean() for n in range(100)]
    np.testing.assert_allclose(curves.running_mean(values), plain, atol=1e-14)
    np.testing.assert_array_equal(curves.running_mean(values[:4]), values[:4])


def test_a_metric_over_an_option(make_run: Callable[..., Path], tmp_path: Path) -> None:
    for number, weight in enumerate((0.1, 0.3, 1.0)):
        for prior in ("ce", "kl"):
            make_run(f"{prior}-{number}", seed=number, method_prior=prior, method_prior_weight=weight)
    figures([tmp_path / "runs"], tmp_path / "out", kinds=["options"])
    rows = [row for row in rows_of(tmp_path / "out" / "options.csv") if row["metric"] == FD]
    found = {(row["line"], row["method.prior_weight"]): float(row["mean"]) for row in rows}
    means = recorded("vapi-llamagen-tiny", "method", FD)["T=1"]
    for line in ("VA-π (prior ce)", "VA-π (prior kl)"):
        for written, mean in zip(("0.1", "0.3", "1.0"), means, strict=True):
            assert found[line, written] == pytest.approx(mean)
    assert found["base", ""] == pytest.approx(recorded("vapi-llamagen-tiny", "base", FD)["T=1"][0])


def test_what_cannot_be_drawn_is_said(make_run: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = make_run("run")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("no kind of picture 'curve'", {"kinds": ["curve"]}),
        ("metrics.jsonl cannot be read", {"kinds": ["curves"]}),
        ("Digits 8×8 is not ranked by the mean of several tasks", {"kinds": ["tasks"]}),
        ("no option has three values", {"kinds": ["options"]}),
    ]

    def refused(words: str, *runs: Path, **options: Any) -> None:
        with pytest.raises(UserError, match=words):
            figures(runs, out, **options)

    for words, options in cases:
        refused(words, run, **options)
    assert not out.exists()
    for log, words in (("[]", "cannot be read"), ('{"step": 1, "lr": 0.1}', "logged nothing that is drawn")):
        (run / "metrics.jsonl").write_text(log, encoding="utf-8")
        refused(words, run, kinds=["curves"])
    refused("only at t1", RECORDS, kinds=["tasks"], setting="cfg9")
    three = [make_run(f"one-{n}", seed=n, method_prior_weight=0.1 + n) for n in range(3)]
    refused("no metric bogus, but fd-digits", *three, kinds=["options"], metrics=["bogus"])
    refused("only at t1", *three, kinds=["options"], setting="cfg9")
    many = [make_run(f"many-{n}", steps=[{"step": 1, "loss": 1.0}], train_lr=1.0 + n) for n in range(15)]
    refused("15 configurations are too many for one picture", *many, kinds=["curves"])


def test_labels_say_only_what_sets_apart() -> None:
    described = {
        1: ("VA-π", "vapi-x; method.noise = 0.5; train.lr = 1e-05"),
        2: ("VA-π", "vapi-x; method.noise = 0.25; train.lr = 1e-05"),
        3: ("STE", "ste-x; train.lr = 1e-05"),
    }
    assert labels(described) == {1: "VA-π (noise = 0.5)", 2: "VA-π (noise = 0.25)", 3: "STE"}
    described = {1: ("Decoder", "decoder-tiny; lr = 1"), 2: ("Decoder", "decoder-long-tiny; lr = 1")}
    assert labels(described) == {1: "Decoder", 2: "Decoder (long)"}
    digests = {"0123456789": ("A", "r"), "abcdefghij": ("A", "r"), "x": ("base", "r")}
    assert list(labels(digests).values()) == ["A (0123456)", "A (abcdefg)", "base (x)"]


def test_series_can_be_told_apart_in_grey() -> None:
    looks = picture.looks([picture.BASE, *(str(number) for number in range(len(picture.LOOKS) - 1))])
    for part in ("marker", "hatch"):
        assert len({getattr(look, part) for look in looks.values()}) == len(looks)
    assert len({str(look.line) for look in looks.values()}) == len(looks)
    assert len({look.colour for look in looks.values()}) == len(looks)


def test_commands_of_the_papers_page_exist() -> None:
    """Of the sweeps on it every one is planned by a test of its own."""
    registry = Registry.default()
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    found = re.findall(r"`?alignbench (\w+) ([^`\n#]*)", page)
    assert {command for command, _ in found} >= {"sweep", "figures", "show", "audit"}
    for command, rest in found:
        first = rest.split()[0]
        if command == "sweep":
            assert first in registry.locations["sweeps"], first
        if command == "figures":
            kinds = re.findall(r"--kind (\S+)", rest)
            assert kinds and set(kinds) <= set(KINDS), rest
    for name in re.findall(r"results/([\w-]+)\.md", page):
        assert (ROOT / "docs" / "results" / f"{name}.md").is_file(), name
