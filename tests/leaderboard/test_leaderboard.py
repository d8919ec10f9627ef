"""From records to tables: numbers against scipy, grouping, ranks, words, files. No torch.

The fixtures are seven hand-made records of one protocol (3 sampling seeds, 1000 images):
a base run; VA-π with training seeds 0, 1, 2; AR-GRPO with one seed, one recall missing and a reward on the
evaluator's network; a partial run; a run on synthetic data. VA-π wins at T=1 and loses with guidance.
"""

from __future__ import annotations

import csv
import io
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from alignbench.errors import UserError
from alignbench.leaderboard import board as leaderboard
from alignbench.leaderboard import export, markdown, report, terminal
from alignbench.leaderboard.board import build, check, collect, write
from alignbench.leaderboard.summary import verdict
from alignbench.leaderboard.table import Board, Row, Table, join, number
from alignbench.record import RunRecord, read
from alignbench.registry.protocol import MetricFact, PublishedCard

DATA = Path(__file__).parents[1] / "golden" / "records"
FACTS = {
    "fd-digits": MetricFact(title="FD", direction="lower", digits=3, networks=["digits-features-a"]),
    "recall": MetricFact(title="Recall", direction="higher", digits=2),
}
PUBLISHED = {
    "paper": PublishedCard.model_validate(
        {
            "title": "A paper",
            "paper": "arXiv:0000.00000",
            "tables": [
                {
                    "id": "T2",
                    "caption": "class-conditional",
                    "setting": {"cfg": 1.0, "samples": 50000},
                    "rows": [
                        {"method": "base", "model": "XXL", "values": {"fid": 14.36, "is": 86.5}},
                        {"method": "ste", "model": "XXL", "values": {"fid": 11.4}, "note": "a | b"},
                    ],
                }
            ],
            "inconsistencies": [{"what": "precision", "values": ["0.71 (T2)", "0.68 (T4)"]}],
        }
    )
}
FD, RECALL = ("fd-digits", "distribution-digits@1"), ("recall", "distribution-digits@1")


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(next(DATA.glob(f"{name}*.json")).read_text(encoding="utf-8"))
    return found


def altered(name: str, change: Callable[[dict[str, Any]], None]) -> RunRecord:
    content = load(name)
    change(content)
    return RunRecord.model_validate(content)


def board(*extra: RunRecord) -> Board:
    return build([*collect([DATA]), *extra], FACTS)


def only(found: Board) -> Table:
    assert len(found.tables) == 1
    return found.tables[0]


def row(table: Table, title: str, setting: str) -> Row:
    (found,) = [x for x in table.rows if x.title == title and x.setting.name == setting]
    return found


# --- collecting -----------------------------------------------------------------------------------


def test_collect_reads_folders_files_and_folders_of_runs(tmp_path: Path) -> None:
    source = DATA / "base-llamagen-tiny-s0-00000000.json"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "run.json").write_bytes(source.read_bytes())  # b: still running
    expected = [read(source)]
    assert collect([tmp_path]) == expected
    assert collect([tmp_path / "a"]) == expected
    assert collect([tmp_path / "a" / "run.json", source, tmp_path]) == expected
    assert [found.id for found in collect([DATA])] == sorted(path.stem for path in DATA.glob("*.json"))


def test_collect_names_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished run"):
        collect([tmp_path])
    with pytest.raises(UserError, match="does not exist"):
        collect([tmp_path / "nowhere"])


def test_of_two_records_with_one_id_the_later_finished_stays() -> None:
    def later(content: dict[str, Any]) -> None:
        content["finished"] = "2026-02-01T00:00:00Z"

    def unfinished(content: dict[str, Any]) -> None:
        content |= {"finished": None, "status": "partial"}

    old, new, part = (altered("base", change) for change in (lambda content: None, later, unfinished))
    for order in ([old, new, part], [part, new, old], [new, old]):
        assert leaderboard.latest(order) == [new]


# --- numbers --------------------------------------------------------------------------------------


def test_rows_are_pooled_over_training_seeds() -> None:
    cell = row(only(board()), "VA-π", "t1").cells[FD]
    means = [1.70, 1.65, 1.75]  # of the three runs, over their sampling seeds
    low, high = stats.t.interval(0.95, 2, loc=1.70, scale=stats.sem(means))
    assert cell.values == pytest.approx(means)
    assert (cell.interval.low, cell.interval.high) == pytest.approx((low, high))
    assert (cell.interval.n, cell.interval.kind) == (3, "training seeds")


def test_base_and_single_runs_use_sampling_seeds() -> None:
    table = only(board())
    base = row(table, "base", "t1").cells[FD].interval
    low, high = stats.t.interval(0.95, 2, loc=2.43, scale=stats.sem([2.40, 2.43, 2.46]))
    assert (base.low, base.high, base.kind) == (pytest.approx(low), pytest.approx(high), "sampling seeds")
    single = row(table, "AR-GRPO", "t1").cells[FD].interval
    assert (single.mean, single.n, single.kind) == (pytest.approx(1.62), 3, "sampling seeds")


def test_order_is_base_controls_methods() -> None:
    order = [(x.kind, x.title, x.setting.name) for x in only(board()).rows]
    assert order == [
        ("base", "base", "t1"),
        ("control", "base", "cfg"),
        ("method", "VA-π", "t1"),
        ("method", "VA-π", "cfg"),
        ("method", "AR-GRPO", "t1"),
    ]


def test_ranks_and_ties() -> None:
    # VA-π 1.70 and AR-GRPO 1.62 at T=1: Welch p = 0.36, a tie; all other pairs differ.
    assert stats.ttest_ind([1.70, 1.65, 1.75], [1.50, 1.62, 1.74], equal_var=False).pvalue > 0.05
    assert [(x.rank, x.tied) for x in only(board()).rows] == [
        (5, False),
        (1, False),
        (3, True),
        (2, False),
        (3, True),
    ]


def test_best_of_a_column_with_ties() -> None:
    table = only(board())
    assert [x.cells[FD].best for x in table.rows] == [False, True, False, False, False]
    recall = {(x.title, x.setting.name): x.cells[RECALL].best for x in table.rows if RECALL in x.cells}
    assert stats.ttest_ind([0.85, 0.84, 0.86], [0.84, 0.84, 0.82], equal_var=False).pvalue > 0.05
    assert stats.ttest_ind([0.85, 0.84, 0.86], [0.82, 0.81, 0.83], equal_var=False).pvalue < 0.05
    assert recall == {
        ("base", "t1"): True,
        ("base", "cfg"): False,
        ("VA-π", "t1"): True,
        ("VA-π", "cfg"): False,
    }


def test_untestable_rows_are_ranked_by_value() -> None:
    def one_seed(content: dict[str, Any]) -> None:
        for result in content["results"]:
            result["seeds"] = [0]
            result["metrics"] = {name: values[:1] for name, values in result["metrics"].items()}

    table = only(build([altered("vapi-llamagen-tiny-s0", one_seed)], FACTS))
    assert [(x.title, x.setting.name, x.rank, x.cells[FD].best) for x in table.rows] == [
        ("base", "t1", 4, False),
        ("base", "cfg", 1, True),
        ("VA-π", "t1", 3, False),
        ("VA-π", "cfg", 2, False),
    ]
    assert all("not tested" in text for text in verdict(table)[:2])
    assert "±" not in "\n".join(markdown.table_lines(table))


def test_a_missing_value_is_a_blank() -> None:
    table = only(board())
    assert RECALL not in row(table, "AR-GRPO", "t1").cells

    def drop(content: dict[str, Any]) -> None:
        del content["results"][2]["metrics"]["recall"]

    gap = build(
        [read(DATA / "vapi-llamagen-tiny-s0-11111111.json"), altered("vapi-llamagen-tiny-s1", drop)], FACTS
    )
    found = row(only(gap), "VA-π", "t1")
    assert found.training_seeds == (0, 1)
    assert (FD in found.cells, RECALL in found.cells) == (True, False)
    assert any("Recall is blank, only 1 of 2 runs have it" in note for note in only(gap).notes)


def test_a_row_without_the_ranking_metric_has_no_rank() -> None:
    def drop(content: dict[str, Any]) -> None:
        del content["results"][2]["metrics"]["fd-digits"]

    table = only(build([altered("vapi-llamagen-tiny-s0", drop)], FACTS))
    assert row(table, "VA-π", "t1").rank is None
    assert row(table, "VA-π", "cfg").rank == 2


def test_reward_networks_are_marked() -> None:
    table = only(board())
    assert row(table, "AR-GRPO", "t1").cells[FD].rewarded
    assert not row(table, "VA-π", "t1").cells[FD].rewarded
    assert not row(table, "base", "t1").cells[FD].rewarded


def test_costs() -> None:
    cost = row(only(board()), "VA-π", "t1").cost
    assert cost is not None
    assert (cost.seconds, cost.sequences, cost.devices) == ((9.0, 9.5, 10.0), (30720,) * 3, ("CPU",))
    assert (cost.peak_memory_gib, cost.trainable_parameters) == (0.52, 112000)
    unknown = row(only(board()), "AR-GRPO", "t1").cost
    assert unknown is not None and unknown.peak_memory_gib is None


# --- what may be compared -------------------------------------------------------------------------


def set_protocol(content: dict[str, Any]) -> None:
    for result in content["results"]:
        result["protocol"]["digest"] = "sha256:" + "d" * 64


def set_reference(content: dict[str, Any]) -> None:
    for result in content["results"]:
        result["reference"] = "sha256:" + "d" * 64


def set_samples(content: dict[str, Any]) -> None:
    for result in content["results"]:
        result["n"] = 500


def set_seeds(content: dict[str, Any]) -> None:
    for result in content["results"]:
        result["seeds"] = [3, 4, 5]


def set_weights(content: dict[str, Any]) -> None:
    content["model"]["weights"]["policy"] = "sha256:" + "d" * 64


@pytest.mark.parametrize("change", [set_protocol, set_reference, set_samples, set_seeds, set_weights])
def test_what_differs_goes_into_another_table(change: Callable[[dict[str, Any]], None]) -> None:
    def other(content: dict[str, Any]) -> None:
        content["id"] = "vapi-llamagen-tiny-s0-77777777"
        change(content)

    found = board(altered("vapi-llamagen-tiny-s0", other))
    assert sorted(len(table.rows) for table in found.tables) == [4, 5]
    assert sorted(x.rank or 0 for table in found.tables for x in table.rows) == [1, 1, 2, 2, 3, 3, 3, 4, 5]


def changed_option(content: dict[str, Any]) -> None:
    content["config"]["values"]["method.group_size"] = 4


def changed_steps(content: dict[str, Any]) -> None:
    content["train"]["steps"] = 60


def changed_data(content: dict[str, Any]) -> None:
    content["data"]["digest"] = "sha256:" + "e" * 64


def changed_optimizer(content: dict[str, Any]) -> None:
    content["train"]["optimizer"]["lr"] = 0.1


@pytest.mark.parametrize("change", [changed_option, changed_steps, changed_data, changed_optimizer])
def test_other_configurations_are_other_rows(change: Callable[[dict[str, Any]], None]) -> None:
    table = only(
        build(
            [read(DATA / "vapi-llamagen-tiny-s0-11111111.json"), altered("vapi-llamagen-tiny-s1", change)],
            FACTS,
        )
    )
    rows = [x for x in table.rows if x.kind == "method"]
    assert [len(x.training_seeds) for x in rows] == [1, 1, 1, 1]
    assert len({x.name for x in rows}) == 2, "rows that would read the same carry a piece of their digest"


def test_machine_and_protocol_options_do_not_split_a_row() -> None:
    def elsewhere(content: dict[str, Any]) -> None:
        content["config"]["values"] |= {"train.micro_batch": 4, "protocol.settings": "t1,cfg"}
        content["train"] |= {"micro_batch": 4, "device": "NVIDIA H200", "world_size": 2, "seconds": 3.0}

    table = only(
        build(
            [read(DATA / "vapi-llamagen-tiny-s0-11111111.json"), altered("vapi-llamagen-tiny-s1", elsewhere)],
            FACTS,
        )
    )
    found = row(table, "VA-π", "t1")
    assert found.training_seeds == (0, 1)
    line = next(text for text in markdown.table_lines(table) if "VA-π" in text)
    assert "| 3.0 – 9.0 |" in line and "2 × NVIDIA H200, CPU" in line


def test_the_same_training_seed_counts_once() -> None:
    def again(content: dict[str, Any]) -> None:
        content |= {"id": "vapi-llamagen-tiny-s0-88888888", "finished": "2026-03-01T00:00:00Z"}
        content["results"][2]["metrics"]["fd-digits"] = [1.9, 1.9, 1.9]

    found = board(altered("vapi-llamagen-tiny-s0", again))
    assert row(only(found), "VA-π", "t1").cells[FD].values == pytest.approx((1.9, 1.65, 1.75))
    (left,) = [item for item in found.unranked if item.id == "vapi-llamagen-tiny-s0-11111111"]
    assert "same configuration and training seed 0 as vapi-llamagen-tiny-s0-88888888" in left.reason


def test_the_base_is_one_row_and_disagreements_are_told() -> None:
    def off(content: dict[str, Any]) -> None:
        content["results"][0]["metrics"]["fd-digits"] = [2.50, 2.53, 2.56]

    table = only(
        build(
            [read(DATA / "base-llamagen-tiny-s0-00000000.json"), altered("vapi-llamagen-tiny-s1", off)], FACTS
        )
    )
    assert row(table, "base", "t1").cells[FD].interval.mean == pytest.approx(2.43)
    (note,) = table.notes
    assert "measured by 2 runs: FD from 2.430 to 2.530; shown is base-llamagen-tiny-s0-00000000" in note
    assert only(board()).notes == ()


def test_a_setting_is_its_values_not_its_name() -> None:
    def renamed(content: dict[str, Any]) -> None:
        for result in content["results"]:
            result["setting"]["name"] = result["setting"]["name"] + "-new"
            result["setting"]["title"] = "new title"

    table = only(
        build(
            [read(DATA / "vapi-llamagen-tiny-s0-11111111.json"), altered("vapi-llamagen-tiny-s1", renamed)],
            FACTS,
        )
    )
    assert len(table.rows) == 4
    assert row(table, "VA-π", "t1").training_seeds == (0, 1)


def test_two_evaluator_versions_are_two_columns() -> None:
    def newer(content: dict[str, Any]) -> None:
        content["id"] = "vapi-llamagen-tiny-s9-99999999"
        content["train"]["seed"] = 9
        for result in content["results"]:
            result["evaluator"] = "distribution-digits@10"

    table = only(build([*collect([DATA]), altered("vapi-llamagen-tiny-s1", newer)], FACTS))
    assert [column.title for column in table.columns][:2] == [
        "FD (distribution-digits@1)",
        "FD (distribution-digits@10)",
    ]
    assert table.rank_column is not None and table.rank_column.evaluator == "distribution-digits@10"
    # Runs of one row that were scored by different versions have no common number.
    assert row(table, "VA-π", "t1").cells == {}


def test_what_is_not_ranked_and_why() -> None:
    def random_weights(content: dict[str, Any]) -> None:
        content |= {"id": "random", "leaderboard": False}
        content["model"] |= {"random_weights": True, "weights": {}}

    def not_evaluated(content: dict[str, Any]) -> None:
        content |= {"id": "unevaluated", "results": []}

    def unknown_metric(content: dict[str, Any]) -> None:
        content["id"] = "zz-plugin"
        content["train"]["seed"] = 7
        content["results"][2]["metrics"]["beauty"] = [1.0, 2.0, 3.0]

    extra = [
        altered("vapi-llamagen-tiny-s0", change) for change in (random_weights, not_evaluated, unknown_metric)
    ]
    found = board(*extra)
    assert {item.id: item.reason for item in found.unranked} == {
        "random": "random weights",
        "unevaluated": "not evaluated",
        "vapi-llamagen-tiny-s3-55555555": "the run is partial",
        "vapi-llamagen-tiny-s4-66666666": "its data (synthetic) is not for leaderboards",
        "zz-plugin": "no evaluator card describes beauty (other metrics are shown)",
    }
    assert row(only(found), "VA-π", "t1").training_seeds == (0, 1, 2, 7)


# --- words ----------------------------------------------------------------------------------------


def test_the_verdict_names_losses_as_plainly_as_gains() -> None:
    at_t1, with_cfg, other, overall, against_base = verdict(only(board()))
    assert "VA-π (vapi-llamagen-tiny) at T=1: **better than** base at the same setting" in at_t1
    assert "FD 2.430 → 1.700; difference -0.730" in at_t1
    interval = stats.ttest_ind([1.70, 1.65, 1.75], [2.40, 2.43, 2.46], equal_var=False).confidence_interval(
        0.95
    )
    assert f"[{interval.low:.3f}, {interval.high:.3f}]" in at_t1
    assert at_t1.endswith("Other metrics — no significant difference: Recall.")
    assert "**worse than** base at the same setting" in with_cfg
    assert with_cfg.endswith("Other metrics — worse: Recall.")
    assert "This is one trained model (seed 0)" in other and "one trained model" not in at_t1
    assert overall.startswith("Best row overall by FD: **base at T=0.8, CFG 1.5** (0.800 ± 0.025).")
    assert "Behind it, each at its own best setting: VA-π (vapi-llamagen-tiny) at T=0.8, CFG 1.5" in overall
    assert "is worse than it; AR-GRPO" in against_base


def test_a_difference_inside_the_error_is_called_so() -> None:
    def like_base(content: dict[str, Any]) -> None:
        content["results"][2]["metrics"]["fd-digits"] = [2.3, 2.4, 2.6]

    text = verdict(only(build([altered("vapi-llamagen-tiny-s0", like_base)], FACTS)))[0]
    assert "**not significantly different from** base" in text


def test_numbers_and_lists() -> None:
    assert (number(-0.0004, 3), number(-0.0006, 3), number(-0.4, 0), number(0.0, 1)) == (
        "0.000",
        "-0.001",
        "0",
        "0.0",
    )
    assert (join([]), join(["a"]), join(["a", "b"]), join("abc")) == ("", "a", "a and b", "a, b and c")


# --- files ----------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def test_write_then_check(tmp_path: Path) -> None:
    changed = write(collect([DATA]), tmp_path, FACTS, PUBLISHED)
    names = {path.relative_to(tmp_path).as_posix() for path in changed}
    assert names == {"README.md", "digits-8-v1.md", "published.md"} | {
        f"records/{path.name}" for path in DATA.glob("*.json")
    }
    assert check(tmp_path, FACTS, PUBLISHED) == []
    assert write([], tmp_path, FACTS, PUBLISHED) == [], "nothing new, nothing written"


def test_the_same_records_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    records = collect([DATA])
    write(records, tmp_path / "a", FACTS, PUBLISHED)
    random.Random(0).shuffle(records)
    for number_, found in enumerate(records):
        write([found], tmp_path / "b", FACTS, PUBLISHED)
        assert len(list((tmp_path / "b" / "records").iterdir())) == number_ + 1
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_check_reports_every_difference(tmp_path: Path) -> None:
    write(collect([DATA]), tmp_path, FACTS, PUBLISHED)
    page = tmp_path / "digits-8-v1.md"
    page.write_text(page.read_text(encoding="utf-8").replace("1.700", "1.600"), encoding="utf-8")
    (tmp_path / "published.md").unlink()
    (tmp_path / "old-v0.md").write_text(f"{markdown.MARKER}\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("written by a person\n", encoding="utf-8")
    assert check(tmp_path, FACTS, PUBLISHED) == [
        "digits-8-v1.md: differs from what its records give",
        "old-v0.md: no record supports it",
        "published.md: missing",
    ]
    write([], tmp_path, FACTS, PUBLISHED)
    assert check(tmp_path, FACTS, PUBLISHED) == []
    assert not (tmp_path / "old-v0.md").exists() and (tmp_path / "notes.md").exists()


def test_check_notices_an_edited_record(tmp_path: Path) -> None:
    write(collect([DATA]), tmp_path, FACTS, {})
    path = tmp_path / "records" / "vapi-llamagen-tiny-s0-11111111.json"
    path.write_text(path.read_text(encoding="utf-8").replace("1.6,", "1.1,"), encoding="utf-8")
    assert check(tmp_path, FACTS, {}) == ["digits-8-v1.md: differs from what its records give"]


def test_check_of_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a leaderboard folder"):
        check(tmp_path / "nowhere", FACTS, {})


def test_the_page(tmp_path: Path) -> None:
    write(collect([DATA]), tmp_path, FACTS, PUBLISHED)
    text = (tmp_path / "digits-8-v1.md").read_text(encoding="utf-8")
    assert "| rank | row | setting | FD ↓ | Recall ↑ | n | train s |" in text
    assert (
        "| 1 | base, control | T=0.8, CFG 1.5 | **0.800 ± 0.025** | 0.82 ± 0.02 | 3 sampling seeds |" in text
    )
    assert "| 3= | **VA-π** (vapi-llamagen-tiny) | T=1 | 1.700 ± 0.124 | **0.83 ± 0.03** |" in text
    assert "| 3 training seeds | 9.5 | 30,720 | CPU | 0.52 | 112,000 |" in text
    assert "| 1.620 ± 0.298† |  | 3 sampling seeds | 17.1 |" in text, "AR-GRPO's recall is blank"
    assert "method.kl_weight = 0.01" in text
    assert (
        "digest `aaaaaaaaaaaa`; 1,000 images for each sampling seed (0, 1, 2); reference `bbbbbbbbbbbb`"
        in text
    )
    assert "- `vapi-llamagen-tiny-s3-55555555`: the run is partial" in text
    assert "0.100" not in text and "0.200 ±" not in text, "numbers of unranked runs are not shown"


def test_published_numbers_stand_alone(tmp_path: Path) -> None:
    write(collect([DATA]), tmp_path, FACTS, PUBLISHED)
    text = (tmp_path / "published.md").read_text(encoding="utf-8")
    assert "### T2: class-conditional" in text and "arXiv:0000.00000" in text
    assert "| *base* | XXL | *14.36* | *86.5* |  |" in text
    assert "| *ste* | XXL | *11.40* |  | a \\| b |" in text
    assert "Setting as stated: cfg = 1, samples = 50000." in text
    assert "- precision: 0.71 (T2) / 0.68 (T4)" in text
    assert "14.36" not in (tmp_path / "digits-8-v1.md").read_text(encoding="utf-8")


def test_csv_and_json_hold_the_same_numbers() -> None:
    found = board()
    lines = list(csv.DictReader(io.StringIO(export.to_csv(found))))
    cells = {
        (x.kind, x.setting.name, x.name, metric): cell
        for x in only(found).rows
        for (metric, _), cell in x.cells.items()
    }
    assert len(lines) == len(cells) == 9
    for line in lines:
        cell = cells[line["kind"], line["setting"], line["row"], line["metric"]]
        assert float(line["mean"]) == cell.interval.mean
        assert (line["best"], line["reward_network"]) == (str(cell.best), str(cell.rewarded))
    data = json.loads(export.to_json(found))
    means = [entry["mean"] for x in data["tables"][0]["rows"] for entry in x["metrics"]]
    assert sorted(means) == sorted(cell.interval.mean for cell in cells.values())
    assert data["tables"][0]["verdict"] == verdict(only(found))


def test_the_terminal_shows_the_same_cells() -> None:
    from rich.console import Console

    console = Console(width=240, file=io.StringIO(), record=True)
    found = board()
    console.print(terminal.rich_table(only(found)))
    console.print(terminal.rich_unranked(found.unranked))
    text = console.export_text()
    for part in (
        "0.800",
        "±0.025",
        "±0.298†",
        "3 training seeds",
        "better than base",
        "the run is partial",
    ):
        assert part in text
    assert "**" not in text


# --- one run's report -----------------------------------------------------------------------------


def test_the_report_of_a_run() -> None:
    text = report.report_markdown(read(DATA / "vapi-llamagen-tiny-s0-11111111.json"), FACTS)
    half = stats.t.ppf(0.975, 2) * stats.sem([1.60, 1.70, 1.80])
    assert f"| T=1 | VA-π | **1.700 ± {half:.3f}** | 0.84 ± 0.00 |" in text
    assert "| T=1 | base | 2.430 ± 0.075 | 0.85 ± 0.02 |" in text
    assert "| T=0.8, CFG 1.5 | base | **0.800 ± 0.025** |" in text, "a loss is bold on the base's side"
    for part in (
        "# VA-π on LlamaGen-tiny",
        "![samples](samples.png)",
        f"| weights: policy | `sha256:{'1' * 64}` |",
        "| recipe | vapi-llamagen-tiny (sweep on the validation split) |",
        "| training | 9.0 s, 120 optimiser steps |",
        "```\nalignbench run --method vapi --model llamagen-tiny --seed 0\n```",
        "one trained model (seed 0)",
    ):
        assert part in text


def test_the_report_shows_unrankable_and_unevaluated_runs() -> None:
    synthetic = report.report_markdown(read(DATA / "vapi-llamagen-tiny-s4-66666666.json"), FACTS)
    assert "not for leaderboards" in synthetic and "| T=1 | VA-π | 0.200 ± 0.000 |" in synthetic
    changed = report.report_markdown(read(DATA / "ar-grpo-llamagen-tiny-s0-44444444.json"), FACTS)
    assert "| changed: method.kl_weight | 0.01 (--set) |" in changed

    def bare(content: dict[str, Any]) -> None:
        content |= {"status": "failed", "results": [], "finished": None}

    failed = report.report_markdown(altered("vapi-llamagen-tiny-s0", bare), FACTS)
    assert "**failed**" in failed and "Not evaluated." in failed and "samples.png" not in failed


# --- weight ---------------------------------------------------------------------------------------


def test_leaderboards_import_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from alignbench import leaderboard\n"
        "from alignbench.render import plain, terminal; from alignbench import report\n"
        f"records = leaderboard.collect([Path({str(DATA)!r})])\n"
        f"leaderboard.write(records, Path({str(tmp_path)!r}), {{}}, {{}})\n"
        "assert len(records) == 7\n"
        "print(*sorted({'torch', 'numpy', 'scipy', 'rich', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
