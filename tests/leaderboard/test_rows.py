"""Which results belong to one row, what its numbers are, and how rows are ranked: against scipy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from alignbench.leaderboard import cells, markdown
from alignbench.leaderboard.board import build
from alignbench.leaderboard.headline import standings
from alignbench.leaderboard.ranking import rank_intervals, rank_level
from alignbench.leaderboard.summary import sentences
from alignbench.leaderboard.table import Cell, Table
from tests.leaderboard.records import (
    CARDS,
    FACTS,
    FD,
    NAMES,
    OFFICIAL,
    OTHER,
    RECALL,
    assets,
    edited,
    given,
    load,
    named,
    one_seed,
    only,
    row,
    stored,
    table_of,
)  # fmt: skip

# --- numbers --------------------------------------------------------------------------------------


def test_numbers_are_pooled_over_seeds() -> None:
    table = only(stored())
    cell = row(table, "VA-π", "t1").cells[FD]
    means = [1.70, 1.65, 1.75]  # of the three runs, over their sampling seeds
    low, high = stats.t.interval(0.95, 2, loc=1.70, scale=stats.sem(means))
    assert cell.values == pytest.approx(means)
    assert (cell.interval.low, cell.interval.high) == pytest.approx((low, high))
    assert (cell.interval.n, cell.interval.kind) == (3, "training seeds")
    base = row(table, "base", "t1").cells[FD].interval
    low, high = stats.t.interval(0.95, 2, loc=2.43, scale=stats.sem([2.40, 2.43, 2.46]))
    assert (base.low, base.high) == pytest.approx((low, high)) and base.kind == "sampling seeds"
    single = row(table, "AR-GRPO", "t1").cells[FD].interval
    assert single.mean == pytest.approx(1.62) and (single.n, single.kind) == (3, "sampling seeds")


def test_several_seeds_go_before_the_error_of_a_set() -> None:
    def three(content: dict[str, Any]) -> None:
        for result in content["results"]:
            value = result["metrics"]["fd-digits"][0]
            result |= {"seeds": [0, 1, 2], "metrics": {"fd-digits": [value - 0.01, value, value + 0.01]}}
            result["intervals"] = {"fd-digits": [[value - 1, value + 1]] * 3}

    table = table_of(edited(one_seed(2.3, 0.1), three))
    interval = row(table, "VA-π", "t1").cells[FD].interval
    assert (interval.kind, interval.n, interval.set_sd) == ("sampling seeds", 3, None)
    assert interval.half_width == pytest.approx(stats.t.ppf(0.975, 2) * 0.01 / 3**0.5)
    assert "‡" not in "\n".join(markdown.table_lines(table))
    second = one_seed(2.32, 0.5, id=NAMES["vapi-1"])
    table = table_of(one_seed(2.30, 0.5), edited(second, lambda content: content["train"].update(seed=1)))
    interval = row(table, "VA-π", "t1").cells[FD].interval
    assert interval.kind == "training seeds"
    assert interval.half_width == pytest.approx(stats.t.ppf(0.975, 1) * 0.01)
    assert cells.metric(table.rows[0], table.columns[0], bold=False) == "2.400 ± 0.100‡"


def test_a_missing_value_is_a_blank() -> None:
    assert RECALL not in row(only(stored()), "AR-GRPO", "t1").cells
    table = table_of(
        load("vapi-0"), load("vapi-1", lambda content: content["results"][2]["metrics"].pop("recall"))
    )
    pooled = row(table, "VA-π", "t1")
    assert pooled.training_seeds == (0, 1)
    assert (FD in pooled.cells, RECALL in pooled.cells) == (True, False)
    assert any("Recall is blank, only 1 of 2 runs have it" in note for note in table.notes)


def test_reward_networks_are_marked_and_costs_are_added_up() -> None:
    table = only(stored())
    assert {x.title for x in table.rows if x.cells[FD].rewarded} == {"AR-GRPO"}
    cost = row(table, "VA-π", "t1").cost
    assert cost is not None
    assert (cost.seconds, cost.sequences, cost.devices) == ((9.0, 9.5, 10.0), (30720,) * 3, ("CPU",))
    assert (cost.peak_memory_gib, cost.trainable_parameters) == (0.52, 112000)
    unknown = row(table, "AR-GRPO", "t1").cost
    assert unknown is not None and unknown.peak_memory_gib is None


# --- what belongs to a row ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["config"]["values"].update({"method.group_size": 4}),
        lambda content: content["train"].update(steps=60),
        lambda content: content["data"].update(digest=OTHER),
        lambda content: content["train"]["optimizer"].update(lr=0.1),
    ],
    ids=["option", "steps", "data", "optimizer"],
)
def test_other_configurations_are_other_rows(change: Callable[[dict[str, Any]], None]) -> None:
    rows = [x for x in table_of(load("vapi-0"), load("vapi-1", change)).rows if x.kind == "method"]
    assert [len(x.training_seeds) for x in rows] == [1, 1, 1, 1]
    assert len({x.name for x in rows}) == 2, "rows that would read the same carry a piece of their digest"


def test_machine_and_protocol_options_do_not_split_a_row() -> None:
    def elsewhere(content: dict[str, Any]) -> None:
        content["config"]["values"] |= {"train.micro_batch": 4, "protocol.settings": "t1,cfg"}
        content["train"] |= {"micro_batch": 4, "device": "NVIDIA H200", "world_size": 2, "seconds": 3.0}
        for result in content["results"]:  # a setting is its values
            result["setting"] |= {"name": result["setting"]["name"] + "-new", "title": "new title"}

    table = table_of(load("vapi-0"), load("vapi-1", elsewhere))
    assert len(table.rows) == 4 and row(table, "VA-π", "t1").training_seeds == (0, 1)
    line = next(text for text in markdown.table_lines(table) if "VA-π" in text)
    assert "| 3.0 – 9.0 |" in line and "2 × NVIDIA H200, CPU" in line


def test_the_same_training_seed_counts_once() -> None:
    def again(content: dict[str, Any]) -> None:
        content |= {"id": "vapi-llamagen-tiny-s0-88888888", "finished": "2026-03-01T00:00:00Z"}
        content["results"][2]["metrics"]["fd-digits"] = [1.9, 1.9, 1.9]

    board = stored(load("vapi-0", again))
    assert row(only(board), "VA-π", "t1").cells[FD].values == pytest.approx((1.9, 1.65, 1.75))
    (left,) = [item for item in board.unranked if item.id == NAMES["vapi-0"]]
    assert "same configuration and training seed 0 as vapi-llamagen-tiny-s0-88888888" in left.reason


def test_the_base_is_one_row_and_disagreements_are_told() -> None:
    def off(content: dict[str, Any]) -> None:
        content["results"][0]["metrics"]["fd-digits"] = [2.50, 2.53, 2.56]

    table = table_of(load("base"), load("vapi-1", off))
    assert row(table, "base", "t1").cells[FD].interval.mean == pytest.approx(2.43)
    (note,) = table.notes
    assert f"measured by 2 runs: FD from 2.430 to 2.530; shown is {NAMES['base']}" in note
    assert only(stored()).notes == ()


def test_given_images_are_told_apart_by_set_and_by_name_of_the_setting() -> None:
    def cropped(content: dict[str, Any]) -> None:
        content["id"] = "samples-cropped"
        content["results"][0]["setting"] |= {"name": "cropped", "title": "cropped"}

    mine = given("mine", 1.5, 0.05)
    assert [x.setting.name for x in table_of(mine, edited(mine, cropped)).rows] == ["cropped", "given"]
    twin = given("mine", 1.6, 0.05).model_copy(update={"id": "samples-mine-again"})
    names = [x.name for x in table_of(mine, twin).rows]
    assert names == ["Mine (samples-mine)", "Mine (samples-mine-again)"]


def test_two_evaluator_versions_are_two_columns() -> None:
    def newer(content: dict[str, Any]) -> None:
        content["id"] = "vapi-llamagen-tiny-s9-99999999"
        content["train"]["seed"] = 9
        for result in content["results"]:
            result["evaluator"] = "distribution-digits@10"

    table = only(stored(load("vapi-1", newer)))
    assert [column.title for column in table.columns][:2] == [
        "FD (distribution-digits@1)",
        "FD (distribution-digits@10)",
    ]
    assert table.rank_column is not None and table.rank_column.evaluator == "distribution-digits@10"
    # Runs of one row that were scored by different versions have no common number.
    assert row(table, "VA-π", "t1").cells == {}


def test_evaluators_of_one_row_may_use_different_assets() -> None:
    second = {"evaluator": "other@1", "metrics": {"recall": [0.5]}, "intervals": {}}

    def again(content: dict[str, Any]) -> None:
        content["results"] += [
            result | second | assets(real_statistics=OFFICIAL) for result in content["results"]
        ]

    record = edited(one_seed(1.0, 0.1, result=assets(a_network=OTHER)), again)
    table = only(build([record], FACTS, assets=CARDS))
    assert set(table.assets) == {"a-network", "real-statistics"}
    assert all(len(x.cells) == 2 for x in table.rows)


# --- ranks and bold cells -------------------------------------------------------------------------


def test_ranks_are_positions_by_mean() -> None:
    # VA-π 1.70 and AR-GRPO 1.62 at T=1: Welch p = 0.36; a rank of its own all the same.
    assert stats.ttest_ind([1.70, 1.65, 1.75], [1.50, 1.62, 1.74], equal_var=False).pvalue > 0.05
    table = only(stored())
    assert [(x.kind, x.title, x.setting.name, x.rank, x.cells[FD].best) for x in table.rows] == [
        ("base", "base", "t1", 5, False),
        ("control", "base", "cfg", 1, True),
        ("method", "VA-π", "t1", 4, False),
        ("method", "VA-π", "cfg", 2, False),
        ("method", "AR-GRPO", "t1", 3, False),
    ]
    assert stats.ttest_ind([0.85, 0.84, 0.86], [0.84, 0.84, 0.82], equal_var=False).pvalue > 0.05
    assert stats.ttest_ind([0.85, 0.84, 0.86], [0.82, 0.81, 0.83], equal_var=False).pvalue < 0.05
    recall = {(x.title, x.setting.name): x.cells[RECALL].best for x in table.rows if RECALL in x.cells}
    assert recall == {
        ("base", "t1"): True,
        ("base", "cfg"): False,
        ("VA-π", "t1"): True,
        ("VA-π", "cfg"): False,
    }


def test_untestable_rows_are_ranked_by_value() -> None:
    def one(content: dict[str, Any]) -> None:
        for result in content["results"]:
            result["seeds"] = [0]
            result["metrics"] = {name: values[:1] for name, values in result["metrics"].items()}

    table = table_of(load("vapi-0", one))
    assert [(x.title, x.setting.name, x.rank, x.cells[FD].best) for x in table.rows] == [
        ("base", "t1", 4, False),
        ("base", "cfg", 1, True),
        ("VA-π", "t1", 3, False),
        ("VA-π", "cfg", 2, False),
    ]
    assert all("not tested" in text for text in sentences(table)[:2])
    assert "±" not in "\n".join(markdown.table_lines(table))


def test_a_row_without_the_ranking_metric_has_no_rank() -> None:
    table = table_of(load("vapi-0", lambda content: content["results"][2]["metrics"].pop("fd-digits")))
    assert row(table, "VA-π", "t1").rank is None
    assert row(table, "VA-π", "cfg").rank == 2
    assert any("no base value" in text for text in sentences(table))


def test_single_sets_are_ranked_by_their_errors() -> None:
    assert stats.norm.ppf(0.975) * (0.10 / 1.96) * 2**0.5 > 0.10
    for fd, half, ranks, best in (
        (2.30, 0.10, ["1 (1–2)", "2 (1–2)"], [True, True]),
        (2.20, 0.10, ["1 (1)", "2 (2)"], [False, True]),
        (2.39, None, ["1 (1–2)", "2 (1–2)"], [False, True]),  # nothing can be tested, nothing is ruled out
        (2.40, None, ["1 (1–2)", "1 (1–2)"], [True, True]),
    ):
        table = table_of(one_seed(fd, half))
        assert [line.ranks for line in standings(table)] == ranks
        assert [x.cells[FD].best for x in table.rows] == best
    # 2.20 and 2.40 differ at 95 %, but not at the level of two comparisons a row.
    assert 0.95 < 2 * stats.norm.cdf(0.20 / (2**0.5 * 0.13 / 1.96)) - 1 < 0.975 < 0.99
    records = [named(1, 2.20, 0.13, base=(2.40, 0.13)), named(2, 2.30, 0.13, base=(2.40, 0.13))]
    assert [line.ranks for line in standings(table_of(*records))] == ["1 (1–3)", "2 (1–3)", "3 (1–3)"]
    assert standings(table_of(records[0]))[0].ranks == "1 (1)"


def test_sets_that_were_resampled_alike_are_compared_as_pairs() -> None:
    drawn = [2.61, 2.42, 2.55, 2.70, 2.48]
    jitter = (0.01, -0.01, 0.0, 0.02, -0.02)
    after = [value - 0.1 + change for value, change in zip(drawn, jitter, strict=True)]
    one = one_seed(2.30, 0.10)

    def with_resamples(base: list[float], other: list[float]) -> Table:
        results = [
            result.model_copy(update={"resampled": {"fd-digits": [values]}})
            for result, values in zip(one.results, (base, other), strict=True)
        ]
        return table_of(one.model_copy(update={"results": results}))

    table = with_resamples(drawn, after)
    assert [line.ranks for line in standings(table)] == ["1 (1)", "2 (2)"]
    half = stats.t.ppf(0.975, 4) * 0.0158113883
    assert f"95 % interval [{-0.1 - half:+.3f}, {-0.1 + half:+.3f}]" in sentences(table)[0]
    for other in (drawn[::-1], after[:4]):  # nothing in common, or fewer resamples: the errors of the sets
        assert [line.span for line in standings(with_resamples(drawn, other))] == [(1, 2), (1, 2)]


def test_rank_intervals_cover_the_true_ranks() -> None:
    """In 2,000 tables of six rows with three seeds each, unequal errors and means that are close or equal.

    Of the rows 99.3 % are covered, of whole tables 97.4 %.
    """
    rng, column = np.random.default_rng(0), table_of(load("vapi-0")).columns[0]
    covered = []
    for _ in range(2000):
        means = rng.choice([1.0, 1.0, 1.02, 1.1, 1.3, 2.0, 3.0], size=6)
        values = rng.normal(means[:, None], rng.choice([0.01, 0.05, 0.2], size=(6, 1)), size=(6, 3))
        spans = rank_intervals([Cell.of([[x] for x in row]) for row in values.tolist()], column)
        best, worst = [[int(np.sum(f(means, x))) for x in means] for f in (np.less, np.less_equal)]
        covered.append(
            [low <= b + 1 and w <= high for (low, high), b, w in zip(spans, best, worst, strict=True)]
        )
    assert np.mean(covered) >= 0.95


def test_rank_intervals_are_those_of_scipy() -> None:
    rng, column = np.random.default_rng(1), table_of(load("vapi-0")).columns[0]
    values = rng.normal([[1.0], [1.1], [1.5], [2.5], [2.6]], 0.15, size=(5, 4))
    p = np.array([[stats.ttest_ind(a, b, equal_var=False).pvalue for b in values] for a in values])
    differ, means = p < 0.05 / 4, values.mean(axis=1)
    expected = [
        (1 + int(np.sum(differ[i] & (means < means[i]))), 5 - int(np.sum(differ[i] & (means > means[i]))))
        for i in range(5)
    ]
    assert rank_intervals([Cell.of([[x] for x in row]) for row in values.tolist()], column) == expected
    assert len(set(expected)) > 2 and rank_level(5) == pytest.approx(1 - 0.05 / 4)
