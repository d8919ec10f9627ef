"""From records to a folder of tables: gathering, sifting, what stands in one table, writing and checking."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from alignbench.errors import UserError
from alignbench.leaderboard import markdown
from alignbench.leaderboard.board import build, check, collect, latest, write
from alignbench.leaderboard.headline import standings
from alignbench.record import read
from alignbench.registry.tables import PublishedCard
from tests.leaderboard.records import (
    CARDS,
    DATA,
    FACTS,
    NAMES,
    OFFICIAL,
    OTHER,
    REWARDS,
    THIRD,
    assets,
    detailed,
    digest,
    given,
    load,
    named,
    one_seed,
    only,
    row,
    stored,
    table_of,
)  # fmt: skip

VAPI = load("vapi-0")
ROWS = [
    {"method": "base", "model": "XXL", "values": {"fid": 14.36, "is": 86.5}},
    {"method": "ste", "model": "XXL", "values": {"fid": 11.4}, "note": "a | b"},
]
SETTING = {"cfg": 1.0, "samples": 50000}
PUBLISHED = {
    "paper": PublishedCard.model_validate(
        {
            "title": "A paper",
            "paper": "arXiv:0000.00000",
            "tables": [{"id": "T2", "caption": "class-conditional", "setting": SETTING, "rows": ROWS}],
            "rewards": {"base": [], "ste": ["mse", "digits-class"]},
            "inconsistencies": [{"what": "precision", "values": ["0.71 (T2)", "0.68 (T4)"]}],
        }
    )
}


# --- gather and sift ------------------------------------------------------------------------------


def test_collect_reads_folders_files_and_folders_of_runs(tmp_path: Path) -> None:
    source = DATA / f"{NAMES['base']}.json"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "run.json").write_bytes(source.read_bytes())  # b: still running
    expected = [read(source)]
    assert collect([tmp_path]) == expected
    assert collect([tmp_path / "a"]) == expected
    assert collect([tmp_path / "a" / "run.json", source, tmp_path]) == expected
    assert [record.id for record in collect([DATA])] == sorted(path.stem for path in DATA.glob("*.json"))
    with pytest.raises(UserError, match="holds no finished run"):
        collect([tmp_path / "b"])
    with pytest.raises(UserError, match="does not exist"):
        collect([tmp_path / "nowhere"])


def test_of_two_records_with_one_id_the_later_finished_stays() -> None:
    old = load("base")
    new = load("base", lambda content: content.update(finished="2026-02-01T00:00:00Z"))
    part = load("base", lambda content: content.update(finished=None, status="partial"))
    for order in ([old, new, part], [part, new, old], [new, old]):
        assert latest(order) == [new]


def test_what_is_not_ranked_and_why() -> None:
    def random_weights(content: dict[str, Any]) -> None:
        content |= {"id": "random", "leaderboard": False}
        content["model"] |= {"random_weights": True, "weights": {}}

    def unknown_metric(content: dict[str, Any]) -> None:
        content["id"] = "zz-plugin"
        content["train"]["seed"] = 7
        content["results"][2]["metrics"]["beauty"] = [1.0, 2.0, 3.0]

    board = stored(
        load("vapi-0", random_weights),
        load("vapi-0", lambda content: content.update(id="unevaluated", results=[])),
        load("vapi-0", unknown_metric),
    )
    assert {item.id: item.reason for item in board.unranked} == {
        "random": "random weights",
        "unevaluated": "not evaluated",
        NAMES["partial"]: "the run is partial",
        NAMES["synthetic"]: "its data (synthetic) is not for leaderboards",
        "zz-plugin": "no evaluator card describes beauty (other metrics are shown)",
    }
    assert row(only(board), "VA-π", "t1").training_seeds == (0, 1, 2, 7)


# --- what stands in one table ---------------------------------------------------------------------


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
        ({"model": VAPI.model.model_dump() | {"weights": {"policy": OTHER}}}, "policy dddddddddddd"),
    ],
)
def test_what_differs_is_never_ranked_together(changes: dict[str, Any], words: str | None) -> None:
    for pair in (
        [named(1, 2.0, 0.1), named(7, 1.0, 0.1, **changes)],
        [given("a", 2.0, 0.1), given("g", 1.0, 0.1, **changes)],
    )[: 1 if "model" in changes else 2]:
        board = build(pair, FACTS)
        first, second = board.tables
        for table in (first, second):
            ranked = [x for x in table.rows if not x.is_base]
            assert [x.rank for x in ranked] == [1], "each leads its own table"
        if words is None:
            assert len(markdown.pages(board)) == 2 and first.label == second.label == ""
        else:
            assert any(words in table.label for table in (first, second))
            assert first.heading != second.heading


def test_given_images_share_a_table_of_their_own() -> None:
    records = [given("mine", 1.50, 0.05), given("theirs", 1.52, 0.05), given("far", 3.0, 0.05)]
    board = build([*records, one_seed(1.0, 0.05)], FACTS)
    samples, model = board.tables
    assert (samples.model, samples.model_name, model.model_name) == ("given images", "", "llamagen-tiny")
    assert {row.external for row in samples.rows} == {""}, "nobody knows what trained them"
    assert [(x.name, x.rank) for x in samples.rows] == [("Mine", 1), ("Theirs", 2), ("Far", 3)]
    shown = [(line.label, line.ranks, line.at_plain) for line in standings(samples)]
    assert shown == [("Mine", "1 (1–2)", None), ("Theirs", "2 (1–2)", None), ("Far", "3 (3)", None)]
    assert {x.kind for x in samples.rows} == {"samples"} and [x.rank for x in model.rows] == [2, 1]
    page = markdown.pages(board)["digits-8-v1.md"]
    assert "## given images" in page and "The images were given, not made by alignbench." in page
    assert (
        "| 2 (1–2) | Theirs | 1.520 ± 0.050‡ | 1 image set |" in page
        and "base" not in page.split("details")[0]
    )
    assert "- Mine is first by FD (1.500 ± 0.050‡); Theirs cannot be told from it." in page


def test_an_own_file_is_labelled_even_when_it_stands_alone_and_stands_apart() -> None:
    own = one_seed(1.0, 0.1, protocol=digest("d"), result=assets(real_statistics=OTHER, a_network=THIRD))
    board = build([own], FACTS, assets=CARDS)
    assert (only(board).label, only(board).own_assets) == ("own reference", ("real-statistics",))
    text = markdown.pages(board)["digits-8-v1.md"]
    assert "## LlamaGen-tiny, own reference" in text
    assert (
        "Protocol digest `dddddddddddd`; reference `bbbbbbbbbbbb`; made with a-network `eeeeeeeeeeee`, "
        "real-statistics `dddddddddddd` (own file)." in text
    )
    records = [
        named(1, 1.0, 0.1, result=assets(real_statistics=OFFICIAL)),
        named(2, 2.0, 0.1, protocol=digest("d"), result=assets(real_statistics=OTHER)),
        named(3, 3.0, 0.1, protocol=digest("e"), result=assets(real_statistics=THIRD)),
    ]
    assert only(build(records[:1], FACTS, assets=CARDS)).label == ""
    board = build(records, FACTS, assets=CARDS)
    assert {table.label: table.own_assets for table in board.tables} == {
        "": (),
        "own reference, real-statistics dddddddddddd": ("real-statistics",),
        "own reference, real-statistics eeeeeeeeeeee": ("real-statistics",),
    }
    assert "own reference" in markdown.index(board, published=False)


def test_detail_is_only_in_a_runs_own_tables() -> None:
    record = detailed(one_seed(2.2, 0.1))
    assert [column.metric for column in table_of(record).columns] == ["fd-digits"]
    own = only(build([record], FACTS, sift=False))
    assert [column.metric for column in own.columns] == ["fd-digits", "colour"]
    ranked = table_of(detailed(record, rank_by="colour"))
    assert ranked.rank_column is not None and ranked.rank_column.metric == "colour"


PICTURE = "digits-8-v1-llamagen-tiny.png"


# --- files ----------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def test_the_same_records_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    records = collect([DATA])
    changed = write(records, tmp_path / "a", FACTS, PUBLISHED)
    names = {path.relative_to(tmp_path / "a").as_posix() for path in changed}
    assert names == {"README.md", "audit.md", "digits-8-v1.md", "published.md"} | {
        f"records/{path.name}" for path in DATA.glob("*.json")
    }
    assert check(tmp_path / "a", FACTS, PUBLISHED) == [f"{PICTURE}: missing"]
    (tmp_path / "a" / PICTURE).touch()
    assert check(tmp_path / "a", FACTS, PUBLISHED) == [], "a picture's bytes are matplotlib's business"
    (tmp_path / "a" / PICTURE).unlink()
    assert write([], tmp_path / "a", FACTS, PUBLISHED) == [], "nothing new, nothing written"
    random.Random(0).shuffle(records)
    for count, record in enumerate(records, start=1):
        write([record], tmp_path / "b", FACTS, PUBLISHED)
        assert len(list((tmp_path / "b" / "records").iterdir())) == count
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_check_reports_every_difference(tmp_path: Path) -> None:
    write(collect([DATA]), tmp_path, FACTS, PUBLISHED)
    page = tmp_path / "digits-8-v1.md"
    page.write_text(page.read_text(encoding="utf-8").replace("1.700", "1.600"), encoding="utf-8")
    (tmp_path / "published.md").unlink()
    (tmp_path / "old-v0.md").write_text(f"{markdown.MARKER}\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("written by a person\n", encoding="utf-8")
    (tmp_path / "records" / "copy.json").write_bytes(next(DATA.glob("*.json")).read_bytes())
    assert check(tmp_path, FACTS, PUBLISHED) == [
        f"{PICTURE}: missing",
        "digits-8-v1.md: differs from what its records give",
        "old-v0.md: no record supports it",
        "published.md: missing",
        "records/copy.json: not named after its record's id",
    ]
    write([], tmp_path, FACTS, PUBLISHED)
    assert check(tmp_path, FACTS, PUBLISHED) == [f"{PICTURE}: missing"]
    assert not (tmp_path / "old-v0.md").exists() and (tmp_path / "notes.md").exists()
    record = tmp_path / "records" / f"{NAMES['vapi-0']}.json"
    record.write_text(record.read_text(encoding="utf-8").replace("1.6,", "1.1,"), encoding="utf-8")
    with pytest.raises(UserError, match=r"changed since it was written"):
        check(tmp_path, FACTS, PUBLISHED)
    with pytest.raises(UserError, match="is not a leaderboard folder"):
        check(tmp_path / "nowhere", FACTS, PUBLISHED)


PAGE = (
    "## LlamaGen-tiny\n\n**Digits 8×8 · LlamaGen-tiny · FD, lower is better · "
    "3 sampling seeds × 1,000 images**",
    "Plain is T=1, the protocol's first setting; own best is, for each model, the best of its 2 settings",
    "| rank (95 %) | method | plain FD ↓ | own best (setting) | against base's best, 0.800 | training |",
    "| **1.620 ± 0.298† ▲** | 1.620 ± 0.298† (T=1) | +0.820† (+0.547 to +1.093), worse | 17 s, CPU |",
    "| 2 (1–2) | VA-π | 1.700 ± 0.124 ▲ |",
    "| 3 (3) | base | 2.430 ± 0.075 | **0.800 ± 0.025 (T=0.8, CFG 1.5)** |  |  | 3 sampling |",
    f"![trade-off]({PICTURE})",
    "\n\n<details><summary>All settings, all metrics, costs</summary>\n\n"
    "| rank | row | setting | Ext. Rwd | FD ↓ | Recall ↑ | n | train s |",
    "| 1 | base, control | T=0.8, CFG 1.5 | ✗ | **0.800 ± 0.025** | 0.82 ± 0.02 | 3 sampling seeds |",
    "| 4 | **VA-π** (vapi-llamagen-tiny) | T=1 | ✗ | 1.700 ± 0.124 | **0.83 ± 0.03** |",
    "| 3 training seeds | 9.5 | 30,720 | CPU | 0.52 | 112,000 |",
    "T=1 | ✓ | 1.620 ± 0.298† |  | 3 sampling seeds | 17.1 |",  # AR-GRPO's recall is blank
    "method.kl_weight = 0.01",
    "digest `aaaaaaaaaaaa`; 1,000 images for each sampling seed (0, 1, 2); reference `bbbbbbbbbbbb`",
    f"- `{NAMES['partial']}`: the run is partial",
)
PUBLISHED_PAGE = (
    "### T2: class-conditional",
    "arXiv:0000.00000",
    "| *base* | XXL | ✗ | *14.36* | *86.5* |  |",
    "| *ste* | XXL | ✓ | *11.40* |  | a \\| b |",
    "Setting as stated: cfg = 1, samples = 50000.",
    "- precision: 0.71 (T2) / 0.68 (T4)",
)


def test_the_pages_hold_ranked_and_published_numbers_apart() -> None:
    page, published = markdown.pages(stored())["digits-8-v1.md"], markdown.published_page(PUBLISHED, REWARDS)
    assert [part for part in PAGE if part not in page] == []
    assert [part for part in PUBLISHED_PAGE if part not in published] == []
    assert "0.100" not in page and "0.200 ±" not in page, "numbers of unranked runs are not shown"
    assert "14.36" not in page


def test_the_page_says_what_the_error_of_one_set_is() -> None:
    text = markdown.pages(build([one_seed(2.30, 0.10)], FACTS))["digits-8-v1.md"]
    assert "**2.300 ± 0.100‡**" in text and "| 1 image set |" in text
    assert "sampling error of one set of images" in text and "it is not training luck" in text
    assert "Student" not in text, "nothing here is a mean over seeds"
    assert "a single value without ‡" in text
