"""Sweeps: the product of rows, grid and seeds; resuming; failures; the table's numbers."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from alignbench.config.plan import make_plan
from alignbench.config.settings import resolve
from alignbench.errors import UserError
from alignbench.metrics.intervals import Interval
from alignbench.progress import Progress
from alignbench.record import RunRecord, read, write
from alignbench.registry.lookup import Registry, read_card
from alignbench.registry.tables import SweepCard
from alignbench.runs.sweeps import page, sweep, table
from tests.helpers.command import alignbench

ROOT = Path(__file__).parents[2]
REGISTRY = Registry.default()
SMALL = {
    "train.steps": 2, "train.images_per_step": 8, "train.micro_batch": 8, "train.warmup_steps": 0,
    "protocol.samples": 40, "protocol.seeds": "0,1", "protocol.settings": "t1",
}  # fmt: skip


def card(**changes: Any) -> SweepCard:
    base = {
        "title": "Small", "source": "a test", "model": "llamagen-tiny", "method": "ntp",
        "metric": "fd-digits", "setting": "t1", "seeds": [0, 1], "values": SMALL,
        "grid": {"train.lr": [1e-4, 1e-3]},
    }  # fmt: skip
    return SweepCard.model_validate({**base, **changes})


def plan(out: Path, **changes: Any) -> sweep.Sweep:
    return sweep.make(REGISTRY, "small", card(**changes), out=out)


# --- the product ----------------------------------------------------------------------------------


def test_rows_and_grid_are_crossed_and_each_run_is_the_ordinary_one(tmp_path: Path) -> None:
    rows = [
        {"title": "plain"},
        {"title": "noisy", "values": {"method.noise": 0.5}, "grid": {"method.dropout": [False, True]}},
    ]
    made = plan(tmp_path, rows=rows)
    assert [line.title for line in made.configurations] == [
        "plain · train.lr = 0.0001",
        "plain · train.lr = 0.001",
        "noisy · train.lr = 0.0001 · method.dropout = false",
        "noisy · train.lr = 0.0001 · method.dropout = true",
        "noisy · train.lr = 0.001 · method.dropout = false",
        "noisy · train.lr = 0.001 · method.dropout = true",
    ]
    assert len(made.runs) == 12 and len({run.plan.digest for run in made.runs}) == 12
    assert [run.seed for run in made.runs] == [0] * 6 + [1] * 6
    changes = [f"{key}={value}" for key, value in SMALL.items()] + ["method.noise=0.5", "method.dropout=true"]
    config = resolve(REGISTRY, method="ntp", model="llamagen-tiny", assignments=[*changes, "train.lr=1e-3"])
    assert made.runs[-1].plan.digest == make_plan(REGISTRY, replace(config, seed=1)).digest


def test_methods_and_recipes_can_be_an_axis(tmp_path: Path) -> None:
    made = plan(tmp_path, grid={"method": ["ntp", "vapi"]})
    assert [run.plan.config.method for run in made.runs] == ["ntp", "vapi"] * 2
    assert [run.plan.config.recipe for run in made.runs][:2] == ["ntp-llamagen-tiny", "vapi-llamagen-tiny"]
    long = plan(
        tmp_path, method="tokenizer-decoder", grid={"recipe": ["tokenizer-decoder-long-llamagen-tiny"]}
    )
    assert {run.plan.config.recipe for run in long.runs} == {"tokenizer-decoder-long-llamagen-tiny"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"grid": {"train.lrr": [1.0]}}, r"sweep small, train.lrr = 1: no setting named 'train.lrr'"),
        ({"grid": {"lr": [1.0]}}, r"'lr' is neither a dotted key nor one of method, recipe"),
        ({"grid": {"train.lr": []}}, r"the axis train.lr has no values"),
        ({"rows": [{"title": "a", "values": {"train.lr": 1.0}}]}, r"row 'a': train.lr is set twice"),
        ({"method": ""}, r"names no method"),
        ({"method": "vappi"}, r"no method named 'vappi'. Did you mean vapi"),
        ({"metric": "fd-digit"}, r"no metric named 'fd-digit'. Did you mean fd-digits"),
        ({"setting": "cfg2"}, r"protocol digits8 has no setting 'cfg2'"),
        ({"columns": ["fid-digits"]}, r"no metric named 'fid-digits'. Did you mean"),
        ({"groups": {"w/ CFG": "cfg2"}}, r"protocol digits8 has no setting 'cfg2'"),
        (
            {"claims": [{"better": "bse", "than": "base", "metric": "fd-digits", "printed": "x"}]},
            r"a claim names no configuration 'bse'. Did you mean base",
        ),
    ],
)
def test_mistakes_are_named_before_anything_starts(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        plan(tmp_path, **changes)
    assert caught.value.exit_code == 2 and not list(tmp_path.iterdir())


def test_set_reaches_every_run_but_not_an_axis(tmp_path: Path) -> None:
    made = sweep.make(REGISTRY, "small", card(), out=tmp_path, assignments=["train.steps=5"])
    assert {run.plan.config.train.steps for run in made.runs} == {5}
    with pytest.raises(UserError, match=r"--set train.lr: sweep 'Small' varies it"):
        sweep.make(REGISTRY, "small", card(), out=tmp_path, assignments=["train.lr=1"])


# --- carrying out ---------------------------------------------------------------------------------


def toml(folder: Path, *, steps: int = 2) -> Path:
    """The same small sweep as a file, with one row that must break."""
    values = {**SMALL, "train.steps": steps}
    text = (
        'title = "Small"\nsource = "a test"\nmodel = "llamagen-tiny"\nmethod = "ntp"\nmetric = "fd-digits"\n'
    )
    text += 'setting = "t1"\nseeds = [0, 1]\n[values]\n'
    text += "\n".join(f'"{key}" = {json.dumps(value)}' for key, value in values.items())
    for title, changes in {"good": "", "broken": "1e30\n'train.grad_clip' = 0.0", "better": "1e-5"}.items():
        text += f'\n[[rows]]\ntitle = "{title}"\n'
        text += f"[rows.values]\n'train.lr' = {changes}\n" if changes else ""
    file = folder / "small.toml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.slow
def test_a_failure_is_listed_and_the_rest_is_done_and_not_done_again(tmp_path: Path) -> None:
    out, command = tmp_path / "out", ["sweep", toml(tmp_path), "--out", tmp_path / "out"]
    done = alignbench(*command)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "sweep small: 6 runs = 3 configurations × 2 seeds (0, 1)" in done.stderr
    assert "2 of 6 runs failed" in done.stderr
    table = json.loads((out / "sweep.json").read_text())
    good, broken, better = table["configurations"]
    assert [line["finished_seeds"] for line in (good, broken, better)] == [[0, 1], [], [0, 1]]
    assert len(table["failures"]) == 2 and all("gradient" in text for text in table["failures"].values())
    assert good["best"] != better["best"] and not broken["best"] and not broken["tied"]
    markdown = (out / "sweep.md").read_text()
    assert "| broken |" in markdown and "- Failed: " in markdown
    assert "broken" in done.stdout and "Failed: " in done.stdout and "|" not in done.stdout
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/export/*.safetensors")}
    assert len(stamps) == 4
    again = alignbench(*command)
    assert again.stderr.count("done before") == 4 and "4 of 6" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/export/*.safetensors")} == stamps


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = toml(tmp_path, steps=60)
    file.write_text(file.read_text().partition("[[rows]]")[0])  # one configuration, two seeds
    command = [sys.executable, "-m", "alignbench", "sweep", str(file), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        logs = [len(log.read_text().splitlines()) for log in out.glob("*-s1-*/metrics.jsonl")]
        if logs and logs[0] >= 25:  # a checkpoint is written every 20 steps
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    (first,) = [read(path) for path in out.glob("*-s0-*")]
    assert first.status == "complete" and not list(out.glob("*-s1-*/export"))
    done = alignbench("sweep", str(file), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "seed 0: done before" in done.stderr and "resuming at step 20 of 60" in done.stderr
    assert json.loads((out / "sweep.json").read_text())["configurations"][0]["finished_seeds"] == [0, 1]


def test_the_printed_command_does_the_same_run(tmp_path: Path) -> None:
    made = plan(tmp_path, seeds=[0], grid={})
    (run,) = made.runs
    program, *arguments = shlex.split(run.command)
    assert program == "alignbench" and alignbench(*arguments).returncode == 0
    assert run.done and read(run.folder).id == run.plan.id
    assert sweep.carry_out(made, REGISTRY, Progress(quiet=True)) == {}


def test_a_sweep_is_not_for_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"--dry-run prints the command of each run"):
        sweep.carry_out(made, REGISTRY, Progress(quiet=True))


def test_an_unexpected_error_costs_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignbench.config.plan import Job
    from alignbench.runs import run as runner

    def explode(job: Job, progress: Progress) -> RunRecord:
        raise MemoryError("no more")

    monkeypatch.setattr(runner, "run", explode)
    made = plan(tmp_path)
    failures = sweep.carry_out(made, REGISTRY, Progress(quiet=True))
    assert set(failures) == {run.plan.id for run in made.runs}
    assert all(text.startswith("MemoryError: no more") for text in failures.values())
    assert "explode" in (made.runs[0].folder / "traceback.txt").read_text()


# --- the table ------------------------------------------------------------------------------------


def measured(made: sweep.Sweep, *values: list[list[float]]) -> tuple[list[table.Line], str]:
    """The table after records with these values of fd-digits, by configuration and seed; [] has no record."""
    stored = read(ROOT / "tests" / "golden" / "records" / "vapi-llamagen-tiny-s0-11111111.json")
    result = next(one for one in stored.results if one.subject == "method" and one.setting.name == "t1")
    for run in made.runs:
        found = values[made.configurations.index(run.configuration)][run.seed]
        if found:
            changes = {"metrics": {"fd-digits": found}, "seeds": list(range(len(found)))}
            results = [result.model_copy(update=changes)]
            write(stored.model_copy(update={"id": run.plan.id, "results": results}), run.folder)
    facts = REGISTRY.metric_facts()
    lines = table.measure(made, facts)
    return lines, page.markdown(made, lines, facts, {})


def test_intervals_are_over_training_seeds_and_the_best_has_all_of_them(tmp_path: Path) -> None:
    from scipy import stats

    made = plan(tmp_path, seeds=[0, 1, 2], grid={"train.lr": [1e-4, 2e-4, 3e-4, 4e-4]})
    lines, markdown = measured(
        made,
        [[3.0, 3.2], [3.4, 3.0], [3.1, 3.3]],
        [[2.0, 2.2], [2.4, 2.0], [2.1, 2.3]],
        [[2.1, 2.2], [2.4, 2.1], [2.2, 2.4]],
        [[1.0, 1.0], [], [1.0, 1.0]],
    )
    assert [line.best for line in lines] == [False, True, False, False]
    assert [line.tied for line in lines] == [False, False, True, False]
    means = np.array([3.1, 3.2, 3.2])
    interval = lines[0].cells["fd-digits"].interval
    assert interval.high is not None
    low, high = stats.t.interval(0.95, 2, loc=means.mean(), scale=stats.sem(means))
    assert math.isclose(interval.mean, means.mean()) and math.isclose(interval.high, high)
    assert f"3.167 ± {(high - low) / 2:.3f}" in markdown
    assert "**train.lr = 0.0002**" in markdown and "train.lr = 0.0003 =" in markdown
    assert "2 of 3" in markdown


def test_choose_row_marks_one_in_each_row_and_counts_the_trials(tmp_path: Path) -> None:
    rows = [{"title": "ntp"}, {"title": "noisy", "values": {"method.noise": 0.5}}]
    made = plan(tmp_path, rows=rows, choose="row", seeds=[0], grid={"train.lr": [1e-4, 1e-3, 1e-2]})
    values = ([2.0, 2.1], [1.0, 1.1], [3.0, 3.1], [9.0, 9.1], [9.9, 9.8], [9.9, 9.9])
    lines, markdown = measured(made, *([value] for value in values))
    assert [line.best for line in lines] == [False, True, False, True, False, False]
    assert "Configurations tried: 3 each." in markdown
    assert "Chosen for ntp: train.lr = 0.001.\n" in markdown
    assert "Chosen for noisy: train.lr = 0.0001, at the edge of what was tried (train.lr)." in markdown


def test_single_values_are_ordered_and_not_called_ties(tmp_path: Path) -> None:
    lines, _ = measured(plan(tmp_path, seeds=[0]), [[38.63]], [[7.65]])
    assert [(line.best, line.tied) for line in lines] == [(False, False), (True, False)]
    assert lines[1].cells["fd-digits"].interval == Interval(7.65, None, None, 1, "sampling seeds")


RATES = [f"train.lr = 0.000{digit}" for digit in range(5)]
CLAIMS = [
    {"better": better, "than": than, "metric": "fd-digits", "printed": "Table 0"}
    for better, than in ((RATES[2], RATES[1]), RATES[1:3], RATES[2:4], (RATES[4], "base"))
]


def test_claims_are_decided_by_the_interval_of_the_difference(tmp_path: Path) -> None:
    from scipy import stats

    made = plan(tmp_path, seeds=[0, 1, 2], grid={"train.lr": [1e-4, 2e-4, 3e-4, 4e-4]}, claims=CLAIMS)
    high, low, near = ([3.1], [3.2], [3.3]), ([2.1], [2.2], [2.3]), ([2.2], [2.3], [2.4])
    lines, markdown = measured(made, list(high), list(low), list(near), [[1.0], [], [1.0]])
    said = re.findall(r"^- (.*) \(paper: Table 0\): \*\*(.*)\*\*\. (.*)$", markdown, flags=re.MULTILINE)
    assert [verdict for _, verdict, _ in said] == ["holds", "does not hold", "not decided", "not decided"]
    assert said[0][0] == "train.lr = 0.0002 better than train.lr = 0.0001 in FD-digits at t1"
    welch = stats.ttest_ind([2.1, 2.2, 2.3], [3.1, 3.2, 3.3], equal_var=False).confidence_interval(0.95)
    assert f"difference -1.000, 95 % interval [{welch.low:.3f}, {welch.high:.3f}]." in said[0][2]
    assert said[3][2] == "Not measured here.", "a configuration that lacks a seed decides nothing"
    content = table.as_dict(made, lines, REGISTRY.metric_facts(), {})
    assert [claim["verdict"] for claim in content["claims"]] == [verdict for _, verdict, _ in said]


def test_single_values_decide_no_claim_and_sampling_seeds_are_paired(tmp_path: Path) -> None:
    claim = {"better": "train.lr = 0.0001", "than": "train.lr = 0.001", "metric": "fd-digits", "printed": "x"}
    single, paired = ((tmp_path / name) for name in ("single", "paired"))
    _, markdown = measured(plan(single, seeds=[0], claims=[claim]), [[7.65]], [[38.63]])
    assert "**not decided**. Here 7.650 against 38.630; difference -30.980, single values" in markdown
    _, markdown = measured(plan(paired, seeds=[0], claims=[claim]), [[1.0, 5.0]], [[1.1, 5.1001]])
    assert f"- {page.ONE_SEED}\n" in markdown
    assert "**holds**" in markdown, "unpaired, a spread of 4 would hide a difference of 0.1"


def test_groups_of_columns_are_laid_out_as_the_paper_prints_them(tmp_path: Path) -> None:
    settings = {**SMALL, "protocol.settings": "t1,cfg2"}
    rows = [{"title": "A", "method": "ar-grpo"}, {"title": "B", "method": "vapi"}]
    groups = {"w/o CFG": "t1", "w/ CFG": "cfg2"}
    shown: dict[str, Any] = {"columns": ["fd-digits"], "groups": groups, "rows": rows, "values": settings}
    made = plan(tmp_path, seeds=[0], grid={}, **shown)
    stored = read(ROOT / "leaderboards/records/ar-grpo-llamagen-tiny-s0-0e4f5228.json")
    write(stored.model_copy(update={"id": made.runs[0].plan.id}), made.runs[0].folder)
    page.write(made, REGISTRY, {})
    table = [line for line in (tmp_path / "sweep.md").read_text().splitlines() if line.startswith("|")]
    assert table[0] == (
        "| configuration | Ext. Rwd | w/o CFG FD-digits ↓ | w/ CFG FD-digits ↓ | seeds | train min |"
    )
    assert [line.split(" | ")[1] for line in table[2:]] == ["✗", "✓", ""], "not known before it has run"
    values = {
        (str(x.subject), x.setting.name): sum(filter(None, x.metrics["fd-digits"])) / 5
        for x in stored.results
    }
    for line, subject in zip(table[2:4], ("base", "method"), strict=True):
        cells = [float(cell.split(" ± ")[0]) for cell in line.split(" | ")[2:4]]
        assert cells == [round(values[subject, name], 3) for name in ("t1", "cfg2")]
    assert stored.train and table[3].endswith(f"| 1 of 1 | {stored.train.seconds / 60:.2f} |")


# --- shipped sweeps -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGISTRY.names("sweeps"))
def test_shipped_sweeps_can_be_planned_and_the_embedded_ones_run(name: str, tmp_path: Path) -> None:
    made = sweep.make(REGISTRY, name, REGISTRY.sweep(name), out=tmp_path)
    assert not (made.problems and made.card.model.endswith("-tiny"))
    assert all(problem.fix for problem in made.problems), "what is missing can be fetched or given"
    assert len({run.plan.digest for run in made.runs}) == len(made.runs), "two runs are the same"


def switches(name: str) -> list[dict[str, Any]]:
    """What each configuration changes in the method."""
    lines = sweep.configurations(REGISTRY.sweep(name))
    return [{key: v for key, v in line.values.items() if key.startswith("method.")} for line in lines]


def test_both_variants_switch_the_same_and_what_the_paper_did() -> None:
    for figure, large in (
        ("table4", "llamagen-xxl"),
        ("fig4", "llamagen-xxl"),
        ("table5", "llamagen-xl-t2i"),
    ):
        assert switches(f"{figure}-llamagen-tiny") == switches(f"{figure}-{large}")
    titles = {name: [row.title for row in REGISTRY.sweep(name).rows] for name in REGISTRY.names("sweeps")}
    assert set(titles["table2-llamagen-tiny"]) == {*titles["table2-xl"], *titles["table2-xxl"]}
    assert titles["table3-shapes-tiny"] == titles["table3-llamagen-xl"] == titles["table1-shapes-tiny"]
    assert switches("table5-shapes-tiny") == switches("table5-llamagen-xl-t2i")
    published = next(table for table in REGISTRY.published("va-pi").tables if table.id == "T4")
    rows = [line.row for line in sweep.configurations(REGISTRY.sweep("table4-llamagen-xxl"))]
    printed = [row.method for row in published.rows]
    assert printed[0] == "base" and rows[:3] == printed[1:4] and len(rows) == len(printed) - 1
    levels = [values["method.noise"] for values in switches("table5-llamagen-xl-t2i")]
    assert levels == [0.0, 0.25, 0.5, 0.75, 0.95]


def test_a_dry_run_says_what_is_missing_and_a_name_without_a_model_means_the_embedded_one() -> None:
    done = alignbench("sweep", "table4-llamagen-xxl", "--dry-run")
    assert done.returncode == 2 and "alignbench fetch llamagen-xxl" in done.stdout
    assert done.stdout.count("alignbench run --method vapi") == 4
    done = alignbench("sweep", "table4", "--dry-run")
    assert done.returncode == 0 and "sweep table4-llamagen-tiny: 12 runs" in done.stdout
    done = alignbench("sweep", "table6", "--dry-run")
    assert done.returncode == 2 and "no sweep named 'table6'" in done.stderr


def test_every_method_gets_the_same_number_of_trials_on_the_validation_split() -> None:
    tuning = REGISTRY.sweep("tune-llamagen-tiny")
    reference = REGISTRY.protocol(tuning.protocol).reference
    assert tuning.choose == "row" and reference is not None and reference.split == "validation"
    lines = sweep.configurations(tuning)
    trials = {row.title: [line for line in lines if line.row == row.title] for row in tuning.rows}
    condition = REGISTRY.model(tuning.model).condition
    methods = [name for name in REGISTRY.names("methods") if condition in REGISTRY.method(name).conditions]
    later = REGISTRY.sweep("tune-likelihood-llamagen-tiny")
    counts = Counter(line.row for line in sweep.configurations(later))
    assert later.protocol == tuning.protocol and counts == {"cca": 6, "gft": 6, "dpo": 2}
    methods = [name for name in methods if name not in {*counts, "raft", "pairs"}]  # see their recipes
    estimators = {f"ste-{name}": {"method.estimator": name} for name in ("argmax", "gumbel")}
    assert sorted(trials) == sorted([*(name for name in methods if name != "ste"), *estimators])
    assert {row.title: row.values for row in tuning.rows if row.title != row.method} == estimators
    assert {len(members) for members in trials.values()} == {5}
    assert all(list(line.point) == ["train.lr"] for line in lines)


def test_the_documented_file_and_counts(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    file = tmp_path / "doc.toml"
    file.write_text(block, encoding="utf-8")
    documented = cast(SweepCard, read_card(file, "sweeps"))
    assert len(sweep.make(REGISTRY, "doc", documented, out=tmp_path).runs) == 12
    for names, numbers in re.findall(r"^\| (`.*?`) \|.*\| ([\d, ]+) \|$", text, flags=re.MULTILINE):
        for name, number in zip(names.replace("`", "").split(", "), numbers.split(", "), strict=True):
            one = REGISTRY.sweep(name)
            assert len(sweep.configurations(one)) * len(one.seeds) == int(number), name
    assert all(f"`{name}`" in text for name in REGISTRY.names("sweeps"))
