"""Warnings: each fires on its side of the threshold and not on the other, once a kind, in every output."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from alignbench.leaderboard import export, markdown, terminal
from alignbench.leaderboard.board import build, collect
from alignbench.leaderboard.report import report_markdown
from alignbench.leaderboard.warnings import Warning, warnings_of, warnings_of_run
from alignbench.record import RunRecord
from alignbench.registry.lookup import Registry
from tests.conftest import ROOT
from tests.leaderboard.records import FACTS, edited, given, load, named, one_seed, only, stored, table_of

SOUND = {"first": 1.0, "last": 1.0, "mean": 1.0, "highest": 1.0, "error": 0.1}


def with_trends(record: RunRecord, **trends: dict[str, float]) -> RunRecord:
    made = {name: SOUND | numbers for name, numbers in trends.items()}
    return edited(record, lambda content: content["train"].update(trends=made))


def kinds(record: RunRecord) -> set[str]:
    return {warning.kind for warning in warnings_of(table_of(record))}


def of_kind(kind: str, *records: RunRecord) -> Warning:
    (found,) = [warning for warning in warnings_of(table_of(*records)) if warning.kind == kind]
    return found


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "series", "quiet", "loud"),
    [
        ("entropy-collapse", "entropy", {"last": 0.26}, {"last": 0.24}),
        ("entropy-collapse", "entropy", {"first": 0.0, "last": 0.0}, {"last": 0.0}),
        ("spread-collapse", "reward_std", {"last": 0.26}, {"last": 0.24}),
        ("flat-groups", "flat_groups", {"mean": 0.5, "last": 0.5}, {"mean": 0.51, "last": 0.3}),
        ("flat-groups", "flat_groups", {"mean": 0.2, "last": 0.2}, {"mean": 0.2, "last": 0.51}),
        ("kl", "kl", {"last": 0.99}, {"last": 1.01}),
        ("clipping", "clip_fraction", {"last": 0.49}, {"last": 0.51}),
        ("gradient", "grad_norm", {"last": 9.9}, {"last": 10.1}),
        ("gradient", "grad_norm", {"first": 0.0, "last": 1.0}, {"first": 0.1, "last": 1.1}),
    ],
)
def test_a_series_of_the_log(kind: str, series: str, quiet: Any, loud: Any) -> None:
    assert kind not in kinds(with_trends(load("vapi-0"), **{series: quiet}))
    record = with_trends(load("vapi-0"), **{series: loud})
    assert of_kind(kind, record).labels == ("VA-π",)
    unevaluated = edited(record, lambda content: content.update(results=[]))
    (alone,) = warnings_of_run(unevaluated, [])
    assert alone == of_kind(kind, record), "what is not evaluated is warned of alike"
    assert "## Warnings" in report_markdown(unevaluated, FACTS)


def test_training_seeds_that_differ_are_counted() -> None:
    low = {"first": 2.5, "last": 0.25}
    runs = [with_trends(load("vapi-0"), entropy=low), load("vapi-1")]
    said = of_kind("entropy-collapse", *runs).text
    assert said.endswith("lost variety: VA-π (2.5 → 0.25; 1 of 2 training seeds).")
    runs[1] = with_trends(runs[1], entropy={"first": 2.0, "last": 0.1})
    assert of_kind("entropy-collapse", *runs).text.endswith("VA-π (2.5 → 0.25 and 2 → 0.1).")


def test_scores_that_a_reward_did_not_give_are_told() -> None:
    def failing(content: dict[str, Any]) -> None:
        content["train"]["reward_failures"] = {"mse": 7}

    record = load("vapi-0", failing)
    assert record.train is not None and "failed-rewards" not in kinds(load("vapi-0"))
    calls = f"{record.train.reward_calls['mse']:,}"
    told = f"Rewards gave no score for some images: VA-π (mse none for 7 of {calls} images)."
    assert of_kind("failed-rewards", record).text == told
    assert f"mse {calls} (7 without a score)" in report_markdown(record, FACTS)


# --- reward hacking -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fd", "half", "reward", "hacked"),
    [
        # FD of the base is 2.40, half-width 0.10: |difference| > sqrt(0.1² + half²) is significant.
        (2.55, 0.10, {"last": 1.21}, True),
        (2.55, 0.10, {"last": 1.19}, False),  # two standard errors of 0.1 are 0.2
        (2.55, 0.10, {"last": 0.5}, False),
        (2.53, 0.10, {"last": 2.0}, False),
        (2.20, 0.10, {"last": 2.0}, False),  # it got better
        (9.90, None, {"last": 2.0}, False),  # nothing was tested
    ],
)
def test_the_reward_rose_and_the_ranking_metric_got_worse(
    fd: float, half: float | None, reward: dict[str, float], hacked: bool
) -> None:
    record = with_trends(one_seed(fd, half), reward=reward)
    assert ("reward-hacking" in kinds(record)) == hacked
    assert "reward-hacking" not in kinds(one_seed(fd, half)), "an older record knows no reward"
    if hacked:
        found = of_kind("reward-hacking", record)
        assert (found.labels, found.metrics) == (("VA-π",), ("FD",))
        assert found.text.endswith("significantly worse than the base's: VA-π (FD).")


def test_a_rewarded_ranking_metric_is_no_held_out_one() -> None:
    """Then the other main metrics decide; here recall falls from 0.85 to 0.70."""

    def rewarded(recall: float) -> RunRecord:
        def change(content: dict[str, Any]) -> None:
            for result in content["results"]:
                result["networks_used_as_reward"] = ["digits-features-a"]
            content["results"][2]["metrics"] = {"fd-digits": [3.0, 3.1, 3.2], "recall": [recall] * 3}

        return with_trends(load("vapi-0", change), reward={"last": 2.0})

    found = of_kind("reward-hacking", rewarded(0.7))
    assert found.metrics == ("Recall",) and "the base's at T=1:" in found.text
    assert "reward-hacking" not in kinds(rewarded(0.9))


# --- evaluation -----------------------------------------------------------------------------------


def test_networks_that_were_rewards() -> None:
    found = {x.kind: x for x in warnings_of(only(stored()))}["rewarded"]
    assert (found.labels, found.metrics) == (("AR-GRPO",), ("FD",))
    assert found.text.startswith("A network behind FD was also a training reward (†), so")
    assert found.text.endswith("evidence: AR-GRPO.")
    assert "rewarded" not in kinds(load("vapi-0"))


def test_too_few_seeds() -> None:
    assert of_kind("training-seeds", load("vapi-0")).labels == ("VA-π",)
    both = {x.kind for x in warnings_of(table_of(load("vapi-0"), load("vapi-1")))}
    assert not both & {"training-seeds", "sampling-seeds"}
    assert "sampling-seeds" in kinds(one_seed(2.2, 0.1)) and "sampling-seeds" not in kinds(load("base"))
    assert kinds(given("mine", 1.5, 0.05)) == set(), "of given images there is one set"


def test_single_values_that_could_not_be_tested() -> None:
    assert of_kind("untested", one_seed(2.2, None)).labels == ("VA-π",)
    assert of_kind("untested", given("mine", 1.5, None)).labels == ("Mine",)
    assert "untested" not in kinds(one_seed(2.2, 0.1)) | kinds(load("vapi-0"))


def test_fewer_images_than_feature_dimensions() -> None:
    def warned(n: int) -> list[str]:
        facts = {"fd-digits": FACTS["fd-digits"].model_copy(update={"features": 2048})}
        table = only(build([one_seed(2.2, 0.1, result={"n": n})], facts))
        return [x.text for x in warnings_of(table) if x.kind == "images"]

    assert warned(2048) == []
    (text,) = warned(2047)
    assert text.startswith("2,047 images are fewer than the feature dimensions of FD (2,048):")
    facts = Registry.default().metric_facts()
    dimensions = {name: fact.features for name, fact in facts.items() if fact.features}
    assert dimensions == {
        "fd-digits": 32, "fd-pixels": 8 * 8, "fid": 2048, "sfid": 7 * 17 * 17, "fid-corrected": 2048,
        "fid-inf": 2048, "fd-dinov2": 1024, "fd-dinov2-corrected": 1024, "fd-dinov2-b": 768,
        "fd-dinov2-b-corrected": 768, "frechet-digits": 32, "pfid-digits": 32, "pfid": 2048,
    }  # fmt: skip


def test_what_the_card_of_the_protocol_does_not_ask_for() -> None:
    change = {"protocol.samples": {"value": 50, "origin": "--set"}}
    record = edited(one_seed(2.2, 0.1), lambda content: content.update(changed=change))
    said = of_kind("protocol", record).text
    assert said == "Not what the protocol's card asks for: protocol.samples = 50."
    record.config["protocol"] = "another"  # the run's own; this one came later
    assert "protocol" not in kinds(record)


# --- in every output ------------------------------------------------------------------------------


def test_many_rows_share_one_sentence() -> None:
    records = [with_trends(named(n, 2.0 + n / 9, 0.1), kl={"last": 3.0}) for n in range(28)]
    found = warnings_of(table_of(*records))
    assert [x.kind for x in found] == ["kl", "training-seeds", "sampling-seeds"]
    assert len(found[0].labels) == 28 and found[0].text.endswith("and 22 more.")


def shown(warnings: list[Warning]) -> str:
    console = Console(width=1000, file=io.StringIO(), record=True)
    console.print(terminal.rich_warnings(warnings))
    return console.export_text()


def test_every_output_shows_them() -> None:
    record = with_trends(one_seed(2.55, 0.1), reward={"last": 2.0}, kl={"last": 3.0})
    table = table_of(record)
    warnings = warnings_of(table)
    assert [x.kind for x in warnings] == ["reward-hacking", "kl", "training-seeds", "sampling-seeds"]
    (page,) = markdown.pages(build([record], FACTS)).values()
    report = report_markdown(record, FACTS)
    assert report.index("## Digits") < report.index("## Warnings") < report.index("## Samples")
    (data,) = json.loads(export.Leaderboard((table,)).json())
    assert [x["text"] for x in data["warnings"]] == [x.text for x in warnings]
    for warning in warnings:
        for text in (page.split("<details>")[0], report, shown(warnings)):
            assert text.count(warning.text) == 1
    assert shown([]).strip() == "" and markdown.warned([]) == []
    many = markdown.warned([*warnings, Warning("images", "Few."), Warning("x", "a | <b>")])
    assert many[0].startswith("<details><summary>6 warnings: reward-hacking, kl,")
    assert many[-4] == r"- a \| \<b\>"


def test_the_committed_boards_are_quiet() -> None:
    """Of sound runs with three seeds nothing is said but †, GSPO's clip range and contrast's rate."""
    board = build(collect([ROOT / "leaderboards" / "records"]), Registry.default().metric_facts())
    said = {(table.model_name, x.kind) for table in board.tables for x in warnings_of(table)}
    shapes = {("shapes-tiny", kind) for kind in ("rewarded", "clipping", "gradient")}
    assert said == {*shapes, ("llamagen-tiny", "clipping")}
