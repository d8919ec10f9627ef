"""What is said about a table in sentences."""

from __future__ import annotations

from typing import Any

from alignbench.leaderboard.summary import sentences
from alignbench.leaderboard.table import join, number
from tests.leaderboard.records import load, one_seed, only, stored, table_of


def test_numbers_and_lists() -> None:
    assert (number(-0.0004, 3), number(-0.0006, 3), number(-0.4, 0), number(0.0, 1)) == (
        "0.000",
        "-0.001",
        "0",
        "0.0",
    )
    assert (join([]), join(["a"]), join(["a", "b"]), join("abc")) == ("", "a", "a and b", "a, b and c")


def test_sentences_name_losses_as_plainly_as_gains() -> None:
    from scipy import stats

    at_t1, with_cfg, other, overall, against_base = sentences(only(stored()))
    assert "VA-π (vapi-llamagen-tiny) at T=1: **better than** base at the same setting" in at_t1
    assert "FD 2.430 → 1.700; difference -0.730" in at_t1
    welch = stats.ttest_ind([1.70, 1.65, 1.75], [2.40, 2.43, 2.46], equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert f"[{interval.low:.3f}, {interval.high:.3f}]" in at_t1
    assert at_t1.endswith("Other metrics — no significant difference: Recall.")
    assert "**worse than** base at the same setting" in with_cfg
    assert with_cfg.endswith("Other metrics — worse: Recall.")
    assert "This is one trained model (seed 0)" in other and "one trained model" not in at_t1
    assert overall.startswith("Best row overall by FD: **base at T=0.8, CFG 1.5** (0.800 ± 0.025).")
    assert "Behind it, each at its own best setting: VA-π (vapi-llamagen-tiny) at T=0.8, CFG 1.5" in overall
    assert "is worse than it; AR-GRPO" in against_base


def test_sentences_say_what_was_tested() -> None:
    def like_base(content: dict[str, Any]) -> None:
        content["results"][2]["metrics"]["fd-digits"] = [2.3, 2.4, 2.6]

    assert "**not significantly different from** base" in sentences(table_of(load("vapi-0", like_base)))[0]
    tie = sentences(table_of(one_seed(2.30, 0.10)))[0]
    assert "**not significantly different from** base" in tie
    assert "95 % interval [-0.241, +0.041] from the sampling error of one image set" in tie
    assert "This is one trained model (seed 0)" in tie
    assert "**better than** base" in sentences(table_of(one_seed(2.20, 0.10)))[0]
    assert "better than (one value, not tested)" in sentences(table_of(one_seed(2.39, None)))[0]
