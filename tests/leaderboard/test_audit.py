"""Published numbers held against constructed records: what is joined, and what may be said of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scipy import stats

from alignbench.leaderboard import audit
from alignbench.leaderboard.board import build
from alignbench.record import RunRecord
from alignbench.registry.tables import PublishedCard
from tests.helpers.command import alignbench
from tests.leaderboard.records import CARDS, FACTS, OTHER, assets, load, one_seed

FIVE = [load("base"), load("vapi-0"), load("vapi-1"), load("ar-grpo")]
SETTING = {"cfg": 1.0, "temperature": 1.0, "samples": 1000}
WEIGHTS = "Measured from the weights policy 111111111111, tokenizer 222222222222."
HOW = {"protocol": "digits-8", "at": {"llamagen-tiny": "t1"}, "metrics": {"fd": "fd-digits"}}


def published(
    fd: float,
    *,
    run: str = "vapi",
    setting: dict[str, Any] = SETTING,
    how: dict[str, Any] | None = None,
    **row: Any,
) -> dict[str, PublishedCard]:
    """A paper with one number."""
    rows = [{"model": "llamagen-tiny", "method": "printed", "values": {"fd": fd}, "run": run, **row}]
    table = {"id": "T1", "caption": "c", "setting": setting, "rows": rows, "measured": {**HOW, **(how or {})}}
    return {"paper": PublishedCard.model_validate({"title": "Paper", "tables": [table]})}


def audited(*records: RunRecord, **card: Any) -> audit.Audit:
    return audit.audit(build(records, FACTS, assets=CARDS), published(**card))


def the_one(*records: RunRecord, **card: Any) -> audit.Compared:
    (found,) = audited(*records, **card).compared
    return found


def changed(**values: Any) -> RunRecord:
    """A run with values that were given on the command line."""

    def change(content: dict[str, Any]) -> None:
        content["changed"] = {
            key.replace("__", "."): {"value": x, "origin": "--set"} for key, x in values.items()
        }

    return load("vapi-0", change)


@pytest.mark.parametrize(
    ("fd", "outcome"),
    [
        (1.7, "equal"),
        (1.72, "inside"),
        (1.46, "inside"),
        (1.947, "inside"),
        (1.949, "outside"),
        (1.2, "outside"),
    ],
)
def test_a_printed_number_is_equal_inside_or_outside(fd: float, outcome: str) -> None:
    found = the_one(load("vapi-0"), fd=fd)
    low, high = stats.t.interval(0.95, 2, loc=1.7, scale=stats.sem([1.6, 1.7, 1.8]))
    assert (found.cell.interval.low, found.cell.interval.high) == pytest.approx((low, high))
    assert found.outcome == outcome and found.difference == pytest.approx(1.7 - fd)
    assert (low <= fd <= high) == (outcome != "outside")


def test_rounding_in_print_is_allowed_for() -> None:
    assert the_one(load("base"), fd=2.4, run="base").outcome == "equal", "2.43 is printed as 2.4"
    assert the_one(load("base"), fd=2.41, run="base").outcome == "inside"
    assert the_one(load("vapi-0"), fd=1.95).outcome == "inside", "the interval ends at 1.9484, printed 1.95"


def test_training_seeds_are_pooled_and_methods_kept_apart() -> None:
    assert the_one(*FIVE, fd=1.7).cell.interval.n == 2
    assert the_one(*FIVE, fd=2.43, run="base").cell.interval.mean == pytest.approx(2.43)
    assert audited(*FIVE, fd=1.0, run="ste").compared == ()
    at = {"at": {"llamagen-tiny": "cfg"}}
    assert the_one(load("vapi-0"), fd=1.0, how=at, setting={"cfg": 1.5}).cell.interval.mean == pytest.approx(
        1.0
    )


def test_units_are_made_equal() -> None:
    found = the_one(load("vapi-0"), fd=0.017, how={"scale": {"fd": 100.0}})
    assert found.published == pytest.approx(1.7) and found.outcome == "equal"
    text = audit.page(audited(load("vapi-0"), fd=0.017, how={"scale": {"fd": 100.0}}))
    assert "| FD ↓ (printed ×100) | 1.7 | 1.700 ± 0.248 | 0.000 | equal |" in text


@pytest.mark.parametrize(
    ("card", "obstacle"),
    [
        ({"how": {"protocol": "digits-9"}}, "protocol digits-8 instead of digits-9"),
        ({"setting": {"samples": 50000}}, "1,000 images instead of 50,000"),
        ({"setting": {"cfg": 2.0}}, "cfg 1 instead of 2"),
        ({"setting": {"cfg": "per row"}, "values": {"fd": 1.7, "cfg": 1.5}}, "cfg 1 instead of 1.5"),
    ],
)
def test_another_protocol_gives_no_verdict_and_is_named(card: dict[str, Any], obstacle: str) -> None:
    found = audited(load("vapi-0"), fd=1.7, **card)
    assert [(x.outcome, x.obstacles) for x in found.compared] == [("not comparable", (obstacle,))]
    assert f"| not comparable: {obstacle} |" in audit.page(found)


def test_what_the_paper_does_not_state_is_a_remark() -> None:
    how = {"differences": ["other labels"]}
    (found,) = audited(load("vapi-0"), fd=1.7, setting={"cfg": "unstated"}, how=how).compared
    assert (found.outcome, found.remarks) == ("equal", ("other labels", WEIGHTS, "cfg unstated, here 1"))
    text = audit.page(audited(load("vapi-0"), fd=1.7, how=how))
    assert f"- other labels\n- {WEIGHTS}\n" in text


def test_files_of_ones_own_give_no_verdict() -> None:
    record = one_seed(1.7, 0.1, result=assets(real_statistics=OTHER))
    assert the_one(record, fd=1.7).obstacles == ("own file for real-statistics",)


def test_changed_values_belong_to_the_row_or_stand_in_the_way() -> None:
    fewer = the_one(changed(train__steps=2), fd=1.7)
    assert (fewer.outcome, fewer.obstacles) == ("not comparable", ("train.steps = 2",))
    released = the_one(changed(method__fidelity="official"), fd=1.7)
    assert (released.outcome, released.remarks) == ("equal", (WEIGHTS, "method.fidelity = official"))
    eight = changed(method__group_size=8, train__micro_batch=4)
    assert audited(eight, fd=1.7).compared == (), "an ablation is not the method's row"
    assert the_one(eight, fd=1.7, changed={"method.group_size": 8}).outcome == "equal"
    assert audited(eight, fd=1.7, changed={"method.group_size": 4}).compared == ()
    assert audited(load("vapi-0"), fd=1.7, recipe="another").compared == ()


def test_one_value_without_an_error_decides_nothing() -> None:
    assert the_one(one_seed(1.7, None), fd=1.8).outcome == "no interval"
    assert the_one(one_seed(1.7, 0.2), fd=1.8).outcome == "inside"


def test_what_is_not_measured_is_counted() -> None:
    for found in (audited(fd=1.7), audited(load("base"), fd=1.7)):
        assert found.compared == () and found.missing == {"Paper, T1": 1}
        assert audit.NOTHING in audit.page(found) and "- Paper, T1: 1 numbers" in audit.page(found)
    assert audited(load("vapi-0"), fd=1.7).missing == {}
    assert audited(load("vapi-0"), fd=1.7, run="").missing == {}, "nothing here makes such a row"


def test_the_command_and_the_committed_page_say_that_nothing_was_compared() -> None:
    done = alignbench("audit", "leaderboards/records")
    assert done.returncode == 0 and "Nothing could be compared yet" in done.stdout
    data = json.loads(alignbench("audit", "leaderboards/records", "--json").stdout)
    assert data["compared"] == [] and data["missing"]["VA-π, T2.nocfg"] == 28
    assert alignbench("audit", "nowhere").returncode == 2
