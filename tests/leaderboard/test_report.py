"""The report of one run."""

from __future__ import annotations

from alignbench.leaderboard.report import report_markdown
from tests.leaderboard.records import FACTS, detailed, given, load, one_seed


def test_the_report_of_a_run() -> None:
    from scipy import stats

    text = report_markdown(load("vapi-0"), FACTS)
    half = stats.t.ppf(0.975, 2) * stats.sem([1.60, 1.70, 1.80])
    for part in (
        f"| T=1 | VA-π | **1.700 ± {half:.3f}** | 0.84 ± 0.00 |",
        "| T=1 | base | 2.430 ± 0.075 | 0.85 ± 0.02 |",
        "| T=0.8, CFG 1.5 | base | **0.800 ± 0.025** |",  # a loss is bold on the base's side
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
    synthetic = report_markdown(load("synthetic"), FACTS)
    assert "not for leaderboards" in synthetic and "| T=1 | VA-π | 0.200 ± 0.000 |" in synthetic
    assert "| changed: method.kl_weight | 0.01 (--set) |" in report_markdown(load("ar-grpo"), FACTS)
    bare = load("vapi-0", lambda content: content.update(status="failed", results=[], finished=None))
    failed = report_markdown(bare, FACTS)
    assert "**failed**" in failed and "Not evaluated." in failed and "samples.png" not in failed


def test_the_report_of_single_sets() -> None:
    inside = report_markdown(detailed(one_seed(2.30, 0.10)), FACTS)
    assert "| 2.300 ± 0.100‡ |" in inside and "not significantly different" in inside
    assert "### Details" in inside and "| T=1 | base | 0.25 |" in inside
    assert "| **2.200 ± 0.100‡** |" in report_markdown(one_seed(2.20, 0.10), FACTS)
    assert "| 2.200 |" in report_markdown(one_seed(2.20, None), FACTS), "untested: not bold"
    images = report_markdown(given("mine", 1.5, 0.05), FACTS)
    assert images.startswith("# Mine\n") and "| images | Mine, given |" in images
    assert "1.500 ± 0.050‡" in images and "Bold" not in images and "samples.png" not in images
