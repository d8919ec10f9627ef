"""Leaderboards of single image sets: their error bars, given images, other protocols, own files. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from alignbench.leaderboard import cells, export, markdown
from alignbench.leaderboard.board import build, tables
from alignbench.leaderboard.report import report_markdown
from alignbench.leaderboard.summary import verdict
from alignbench.leaderboard.table import Board, Row, Table
from alignbench.record import RunRecord
from alignbench.registry.protocol import AssetCard, MetricFact

DATA = Path(__file__).parents[1] / "golden" / "records"
FACTS = {
    "fd-digits": MetricFact(title="FD", direction="lower", digits=3),
    "recall": MetricFact(title="Recall", direction="higher", digits=2),
    "colour": MetricFact(title="Colours", direction="higher", digits=2, detail=True),
}
FD = ("fd-digits", "distribution-digits@1")
OFFICIAL, OTHER, THIRD = ("sha256:" + letter * 64 for letter in "cde")
CARDS = {
    "real-statistics": AssetCard(
        title="Real", what="reference", file="a.npz", sha256=OFFICIAL.removeprefix("sha256:")
    ),
    "a-network": AssetCard(title="Network", what="network", file="a.pth"),
}


def one_seed(
    fd: float, half: float | None, *, base: tuple[float, float | None] = (2.40, 0.10), **changes: Any
) -> RunRecord:
    """A method run at one setting with a single sampling seed; half-widths None: no interval."""
    found: dict[str, Any] = json.loads(
        (DATA / "vapi-llamagen-tiny-s0-11111111.json").read_text(encoding="utf-8")
    )
    before, _, after, *_ = found["results"]
    for result, (value, width) in ((before, base), (after, (fd, half))):
        result["seeds"] = [0]
        result["metrics"] = {"fd-digits": [value]}
        result["intervals"] = {"fd-digits": [None if width is None else [value - width, value + width]]}
    found["results"] = [before, after]
    for key, value in changes.items():
        if key == "result":
            for result in found["results"]:
                result.update(value)
        elif key == "protocol":
            for result in found["results"]:
                result["protocol"].update(value)
        else:
            found[key] = value
    return RunRecord.model_validate(found)


def named(number: int, fd: float, half: float | None, **changes: Any) -> RunRecord:
    """One of several configurations."""
    record = one_seed(fd, half, **changes, id=f"vapi-llamagen-tiny-s0-{number:08d}")
    config = record.config | {"values": {"method.group_size": number}}
    return record.model_copy(update={"config": config})


def given(name: str, fd: float, half: float | None, **changes: Any) -> RunRecord:
    """Images made elsewhere."""
    found: dict[str, Any] = json.loads(one_seed(fd, half, **changes).model_dump_json(by_alias=True))
    result = found["results"][1]
    unknown = dict.fromkeys(["temperature", "top_k", "top_p", "cfg_scale", "cfg_interval"])
    result |= {"subject": "samples", "setting": {"name": "given", "title": "given images", **unknown}}
    info = {"name": name, "title": name.title(), "parameters": 0, "trainable_parameters": 0, "weights": {}}
    parts: dict[str, Any] = {
        "kind": "samples",
        "method": None,
        "train": None,
        "recipe": None,
        "data": None,
        "exports": {},
    }
    return RunRecord.model_validate(
        found | parts | {"id": f"samples-{name}", "model": info, "results": [result]}
    )


def only(board: Board) -> Table:
    assert len(board.tables) == 1
    return board.tables[0]


def ranks(table: Table) -> list[tuple[str, int | None, bool]]:
    return [(row.name, row.rank, row.tied) for row in table.rows]


def method(table: Table) -> Row:
    return next(row for row in table.rows if row.kind == "method")


# --- error bars of single sets --------------------------------------------------------------------


def test_a_difference_within_its_interval_is_a_tie() -> None:
    table = only(build([one_seed(2.30, 0.10)], FACTS))
    assert stats.norm.ppf(0.975) * (0.10 / 1.96) * 2**0.5 > 0.10
    assert [(row.rank, row.tied, row.cells[FD].best) for row in table.rows] == [
        (1, True, True),
        (1, True, True),
    ]
    text = verdict(table)[0]
    assert "**not significantly different from** base" in text
    assert "95 % interval [-0.241, +0.041] from the sampling error of one image set" in text
    assert "This is one trained model (seed 0)" in text


def test_a_difference_beyond_its_interval_is_none() -> None:
    table = only(build([one_seed(2.20, 0.10)], FACTS))
    assert [(row.rank, row.tied) for row in table.rows] == [(2, False), (1, False)]
    assert "**better than** base" in verdict(table)[0]


def test_sets_that_were_resampled_alike_are_compared_as_pairs() -> None:
    drawn = [2.61, 2.42, 2.55, 2.70, 2.48]
    after = [
        value - 0.1 + jitter for value, jitter in zip(drawn, (0.01, -0.01, 0.0, 0.02, -0.02), strict=True)
    ]

    def with_resamples(record: RunRecord, base: list[float], method: list[float]) -> RunRecord:
        before, found = record.results
        pair = [
            result.model_copy(update={"resampled": {"fd-digits": [values]}})
            for result, values in ((before, base), (found, method))
        ]
        return record.model_copy(update={"results": pair})

    one = one_seed(2.30, 0.10)
    assert [row.tied for row in only(build([one], FACTS)).rows] == [True, True]
    table = only(build([with_resamples(one, drawn, after)], FACTS))
    assert [(row.rank, row.tied) for row in table.rows] == [(2, False), (1, False)]
    half = stats.t.ppf(0.975, 4) * 0.0158113883
    assert f"95 % interval [{-0.1 - half:+.3f}, {-0.1 + half:+.3f}]" in verdict(table)[0]
    # Nothing in common, or fewer resamples: the errors of the sets.
    for other in (drawn[::-1], after[:4]):
        assert [row.tied for row in only(build([with_resamples(one, drawn, other)], FACTS)).rows] == [
            True,
            True,
        ]


def test_without_an_interval_values_decide_as_before() -> None:
    table = only(build([one_seed(2.39, None)], FACTS))
    assert [(row.rank, row.tied) for row in table.rows] == [(2, False), (1, False)]
    assert "better than (one value, not tested)" in verdict(table)[0]


def test_ties_chain_through_the_middle() -> None:
    # 2.20 and 2.40 differ; 2.30 differs from neither.
    table = only(build([named(1, 2.20, 0.10), named(2, 2.30, 0.10)], FACTS))
    assert [(row.cells[FD].interval.mean, row.rank) for row in table.rows] == [
        (2.40, 2),
        (2.20, 1),
        (2.30, 1),
    ]


def test_the_page_says_what_the_error_is() -> None:
    text = markdown.pages(build([one_seed(2.30, 0.10)], FACTS))["digits-8-v1.md"]
    assert "**2.300 ± 0.100‡**" in text and "| 1 image set |" in text
    assert "sampling error of one set of images" in text and "it is not training luck" in text
    assert "Student" not in text, "nothing here is a mean over seeds"
    assert "a single value without ‡" in text


def test_several_seeds_go_before_the_error_of_a_set() -> None:
    record = json.loads(one_seed(2.3, 0.1).model_dump_json(by_alias=True))
    for result in record["results"]:
        value = result["metrics"]["fd-digits"][0]
        result |= {"seeds": [0, 1, 2], "metrics": {"fd-digits": [value - 0.01, value, value + 0.01]}}
        result["intervals"] = {"fd-digits": [[value - 1, value + 1]] * 3}
    table = only(build([RunRecord.model_validate(record)], FACTS))
    interval = method(table).cells[FD].interval
    assert (interval.kind, interval.n, interval.set_sd) == ("sampling seeds", 3, None)
    assert interval.half_width == pytest.approx(stats.t.ppf(0.975, 2) * 0.01 / 3**0.5)
    assert "‡" not in "\n".join(markdown.table_lines(table))


def test_training_seeds_go_before_the_error_of_a_set() -> None:
    second = one_seed(2.32, 0.5, id="vapi-llamagen-tiny-s1-22222222")
    assert second.train is not None
    second = second.model_copy(update={"train": second.train.model_copy(update={"seed": 1})})
    row = method(only(build([one_seed(2.30, 0.5), second], FACTS)))
    assert row.cells[FD].interval.kind == "training seeds"
    assert row.cells[FD].interval.half_width == pytest.approx(stats.t.ppf(0.975, 1) * 0.01)
    base = only(build([one_seed(2.30, 0.5), second], FACTS)).rows[0]
    assert cells.metric(base, only(build([second], FACTS)).columns[0]) == "2.400 ± 0.100‡"


def test_the_report_tests_single_sets_too() -> None:
    inside = report_markdown(one_seed(2.30, 0.10), FACTS)
    assert "| 2.300 ± 0.100‡ |" in inside and "not significantly different" in inside
    assert "| **2.200 ± 0.100‡** |" in report_markdown(one_seed(2.20, 0.10), FACTS)
    assert "| 2.200 |" in report_markdown(one_seed(2.20, None), FACTS), "untested: not bold"


# --- given images ---------------------------------------------------------------------------------


def test_given_images_share_a_table_of_their_own() -> None:
    board = build(
        [
            given("mine", 1.50, 0.05),
            given("theirs", 1.52, 0.05),
            given("far", 3.0, 0.05),
            one_seed(1.0, 0.05),
        ],
        FACTS,
    )
    samples, model = board.tables
    assert (samples.model, samples.model_name, model.model_name) == ("given images", "", "llamagen-tiny")
    assert ranks(samples) == [("Mine", 1, True), ("Theirs", 1, True), ("Far", 3, False)]
    assert [row.rank for row in model.rows] == [2, 1]
    assert {row.kind for row in samples.rows} == {"samples"} and samples.comparisons == ()
    said = " ".join(verdict(samples))
    assert (
        "Best row overall by FD: **Mine** (1.500 ± 0.050), not significantly different from Theirs." in said
    )
    assert "Behind it: Far at 3.000 ± 0.050." in said
    page = markdown.pages(board)["digits-8-v1.md"]
    assert "## given images" in page and "The images were given, not made by alignbench." in page


def test_sets_of_one_title_are_told_apart() -> None:
    twin = given("mine", 1.6, 0.05).model_copy(update={"id": "samples-mine-again"})
    names = [row.name for row in only(build([given("mine", 1.5, 0.05), twin], FACTS)).rows]
    assert names == ["Mine (samples-mine)", "Mine (samples-mine-again)"]


def test_the_report_of_given_images() -> None:
    text = report_markdown(given("mine", 1.5, 0.05), FACTS, samples=None)
    assert text.startswith("# Mine\n") and "| images | Mine, given |" in text
    assert "1.500 ± 0.050‡" in text and "Bold" not in text


def test_nothing_sampled_means_that_the_name_is_the_setting() -> None:
    first = given("mine", 1.5, 0.05)
    other = json.loads(given("mine", 1.5, 0.05).model_dump_json(by_alias=True))
    other["id"] = "samples-cropped"
    other["results"][0]["setting"] |= {"name": "cropped", "title": "cropped"}
    table = only(build([first, RunRecord.model_validate(other)], FACTS))
    assert [row.setting.name for row in table.rows] == ["cropped", "given"]


# --- what is never ranked together ----------------------------------------------------------------


def digest(letter: str) -> dict[str, str]:
    return {"digest": "sha256:" + letter * 64}


@pytest.mark.parametrize("make", [lambda **x: named(7, 1.0, 0.1, **x), lambda **x: given("g", 1.0, 0.1, **x)])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": digest("d") | {"name": "other"}}, None),
        ({"protocol": digest("d") | {"version": 2}}, None),
        ({"protocol": digest("d")}, "protocol digest dddddddddddd"),
        ({"result": {"reference": OTHER}}, "reference dddddddddddd"),
        ({"result": {"reference": None}}, "reference none"),
        ({"result": {"n": 50}}, "50 images"),
        ({"result": {"seeds": [4]}}, "sampling seeds 4"),
        ({"result": {"assets": {"a-network": OTHER}}}, "a-network dddddddddddd"),
    ],
)
def test_what_differs_is_never_ranked_together(
    make: Callable[..., RunRecord], changes: dict[str, Any], words: str | None
) -> None:
    same = given("a", 2.0, 0.1) if make().kind == "samples" else named(1, 2.0, 0.1)
    board = build([same, make(**changes)], FACTS)
    first, second = board.tables
    for table in (first, second):
        ranked = [row for row in table.rows if row.kind in {"method", "samples"}]
        assert [row.rank for row in ranked] == [1], "each leads its own table"
    if words is None:
        assert len(markdown.pages(board)) == 2 and first.label == second.label == ""
    else:
        assert any(words in table.label for table in (first, second))
        assert first.heading != second.heading


def test_two_protocols_in_one_call_make_two_pages() -> None:
    other = named(2, 1.0, 0.1, protocol=digest("d") | {"name": "other", "title": "Other"})
    pages = markdown.pages(build([named(1, 2.0, 0.1), other], FACTS))
    assert sorted(pages) == ["digits-8-v1.md", "other-v1.md"]
    assert "1.000" not in pages["digits-8-v1.md"] and "2.000" not in pages["other-v1.md"]


def assets(**used: str) -> dict[str, Any]:
    return {"assets": {name.replace("_", "-"): value for name, value in used.items()}}


def test_an_own_file_is_labelled_even_when_it_stands_alone() -> None:
    own = one_seed(1.0, 0.1, protocol=digest("d"), result=assets(real_statistics=OTHER, a_network=THIRD))
    table = only(build([own], FACTS, assets=CARDS))
    assert (table.label, table.own_assets) == ("own reference", ("real-statistics",))
    text = markdown.pages(build([own], FACTS, assets=CARDS))["digits-8-v1.md"]
    assert "## LlamaGen-tiny, own reference" in text
    assert (
        "Protocol digest `dddddddddddd`; reference `bbbbbbbbbbbb`; made with a-network `eeeeeeeeeeee`, "
        "real-statistics `dddddddddddd` (own file)." in text
    )
    official = one_seed(1.0, 0.1, result=assets(real_statistics=OFFICIAL))
    assert only(build([official], FACTS, assets=CARDS)).label == ""


def test_official_own_and_another_own_stand_apart() -> None:
    records = [
        named(1, 1.0, 0.1, result=assets(real_statistics=OFFICIAL)),
        named(2, 2.0, 0.1, protocol=digest("d"), result=assets(real_statistics=OTHER)),
        named(3, 3.0, 0.1, protocol=digest("e"), result=assets(real_statistics=THIRD)),
    ]
    board = build(records, FACTS, assets=CARDS)
    assert sorted(table.label for table in board.tables) == [
        "",
        "own reference, real-statistics dddddddddddd",
        "own reference, real-statistics eeeeeeeeeeee",
    ]
    assert "own reference" in markdown.index(board, published=False)
    data = export.as_data(board)["tables"]
    assert [table["own_assets"] for table in data] == [[], ["real-statistics"], ["real-statistics"]]


def test_evaluators_of_one_row_may_use_different_assets() -> None:
    content = json.loads(one_seed(1.0, 0.1, result=assets(a_network=OTHER)).model_dump_json(by_alias=True))
    for result in list(content["results"]):
        second = {"evaluator": "other@1", "metrics": {"recall": [0.5]}, "intervals": {}}
        content["results"].append(result | second | assets(real_statistics=OFFICIAL))
    table = only(build([RunRecord.model_validate(content)], FACTS, assets=CARDS))
    assert set(table.assets) == {"a-network", "real-statistics"}
    assert all(len(row.cells) == 2 for row in table.rows)


def test_a_page_without_assets_has_no_header() -> None:
    text = markdown.pages(build([one_seed(1.0, 0.1)], FACTS))["digits-8-v1.md"]
    assert "## LlamaGen-tiny\n\n| rank |" in text


# --- metrics that are detail ----------------------------------------------------------------------


def detailed() -> RunRecord:
    content = json.loads(one_seed(2.2, 0.1).model_dump_json(by_alias=True))
    for result in content["results"]:
        result["metrics"]["colour"] = [0.25]
    return RunRecord.model_validate(content)


def test_detail_is_in_the_report_and_not_on_leaderboards() -> None:
    table = only(build([detailed()], FACTS))
    assert [column.metric for column in table.columns] == ["fd-digits"]
    assert "Colours" not in markdown.pages(build([detailed()], FACTS))["digits-8-v1.md"]
    (own,) = tables([detailed()], FACTS)
    assert [column.metric for column in own.columns] == ["fd-digits", "colour"]
    text = report_markdown(detailed(), FACTS)
    assert "### Details" in text and "| T=1 | base | 0.25 |" in text
    assert "Colours" not in " ".join(verdict(own))


def test_a_table_ranked_by_a_detail_shows_it() -> None:
    content = json.loads(detailed().model_dump_json(by_alias=True))
    for result in content["results"]:
        result["protocol"]["rank_by"] = "colour"
    table = only(build([RunRecord.model_validate(content)], FACTS))
    assert table.rank_column is not None and table.rank_column.metric == "colour"


def test_the_terminal_leaves_detail_out() -> None:
    import io

    from rich.console import Console

    from alignbench.leaderboard import terminal

    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(terminal.rich_table(tables([detailed()], FACTS)[0]))
    text = console.export_text()
    assert "Colours" not in text and "±0.100‡" in text
    assert "sampling error of one image set, not training luck" in " ".join(text.split())
