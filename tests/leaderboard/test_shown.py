"""What is shown of a table: sentences, pages, terminal, files for programs, the report of one run."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from alignbench.leaderboard import export, markdown, terminal
from alignbench.leaderboard.board import build, collect
from alignbench.leaderboard.cells import labels
from alignbench.leaderboard.findings import findings
from alignbench.leaderboard.report import report_markdown
from alignbench.leaderboard.summary import sentences
from alignbench.leaderboard.table import Table, join, number
from alignbench.registry.lookup import Registry
from alignbench.text import one_line
from tests.conftest import ROOT
from tests.leaderboard.records import (
    FACTS,
    detailed,
    given,
    load,
    named,
    one_seed,
    only,
    stored,
    table_of,
)  # fmt: skip

# --- sentences ------------------------------------------------------------------------------------


def test_numbers_and_lists() -> None:
    shown = [number(*x) for x in ((-4e-4, 3), (-6e-4, 3), (-0.4, 0), (0.0, 1))]
    assert shown == ["0.000", "-0.001", "0", "0.0"]
    assert [join(x) for x in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]


def test_sentences_name_losses_as_plainly_as_gains() -> None:
    at_t1, with_cfg, other, overall, against_base = sentences(only(stored()))
    assert "VA-π (vapi-llamagen-tiny) at T=1: **better than** base at the same setting" in at_t1
    assert "FD 2.430 → 1.700; difference -0.730" in at_t1
    welch = stats.ttest_ind([1.70, 1.65, 1.75], [2.40, 2.43, 2.46], equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert f"[{interval.low:.3f}, {interval.high:.3f}]" in at_t1
    assert at_t1.endswith("Other metrics — no significant difference: Recall.")
    assert "**worse than** base at the same setting" in with_cfg
    assert with_cfg.endswith("Other metrics — worse: Recall.")
    assert other.startswith("AR-GRPO (ar-grpo-llamagen-tiny")
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
    assert "**better than** base" in sentences(table_of(one_seed(2.20, 0.10)))[0]
    assert "better than (one value, not tested)" in sentences(table_of(one_seed(2.39, None)))[0]


def test_findings_say_who_is_first_who_gains_and_who_only_sharpens() -> None:
    assert findings(only(stored())) == [
        "AR-GRPO is first by FD at T=1 (1.620 ± 0.298†); VA-π cannot be told from it.",
        "Against the base at T=1 (2.430 ± 0.075) – better: AR-GRPO (-0.810) and VA-π (-0.730).",
        "Each at its own best setting, base is first (0.800 ± 0.025 at T=0.8, CFG 1.5); "
        "all others are significantly behind. "
        "Against the base's best (0.800 ± 0.025 at T=0.8, CFG 1.5) – better: none; worse: AR-GRPO and VA-π.",
        "Of the methods whose rewards share no network with FD (no †), none is better than the base's best.",
        "As far as FD tells, AR-GRPO and VA-π only sharpen: better than the base at T=1, but at their best "
        "not better than the base at T=0.8, CFG 1.5, which takes no training.",
        "Where a method is better than the base at T=1, no other metric gets significantly worse.",
    ]
    untested, *_ = findings(table_of(one_seed(2.39, None)))
    assert untested == "VA-π is first by FD (2.390); not tested (single values): base."
    assert findings(table_of(load("base"))) == []


def test_labels_say_what_sets_a_recipe_apart_from_the_usual_one() -> None:
    recipes = {"AR-GRPO": ("ar-grpo", "gcpo"), "Next-token prediction": ("ntp", "ntp-annealed")}
    described = {name: (title, f"{name}-tiny") for title, names in recipes.items() for name in names}
    annealed = "Next-token prediction (annealed)"
    assert [*labels(described).values()] == ["AR-GRPO", "AR-GRPO (gcpo)", "Next-token prediction", annealed]


# --- terminal and files ---------------------------------------------------------------------------


def printed(table: Table, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(terminal.rich_table(table))
    return console.export_text()


def test_the_terminal_shows_the_same_cells() -> None:
    text = printed(only(stored()), 240)
    for part in ("0.800", "±0.025", "±0.298†", "3 training seeds", "better than base"):
        assert part in text
    assert "**" not in text
    own = only(build([detailed(one_seed(2.2, 0.1))], FACTS, sift=False))
    text = printed(own, 100)
    assert "Colours" not in text and "Colours" not in " ".join(sentences(own)) and "±0.100‡" in text
    assert "sampling error of one image set, not training luck" in " ".join(text.split())


def test_tables_for_programs_hold_the_same_numbers() -> None:
    table = only(stored())
    cells = {
        (str(x.kind), x.setting.name, x.name, metric): cell
        for x in table.rows
        for (metric, _), cell in x.cells.items()
    }
    rows = export.to_rows(table)
    lines = list(csv.DictReader(io.StringIO(export.Leaderboard((table,)).csv())))
    assert len(rows) == len(lines) == len(cells) == 9
    for entry, line in zip(rows, lines, strict=True):
        cell = cells[line["kind"], line["setting"], line["row"], line["metric"]]
        assert float(line["mean"]) == entry["mean"] == cell.interval.mean
        assert (line["best"], line["reward_network"]) == (str(cell.best), str(cell.rewarded))
        assert (entry["low"], entry["unit"]) == (cell.interval.low, cell.interval.kind)
    board = export.Leaderboard((table,))
    assert board.markdown().endswith("\n".join(["", *markdown.table_lines(table), ""]))
    (data,) = json.loads(board.json())
    assert data["rows"] == rows and data["findings"] == findings(table)
    first = data["headline"][0]
    paired = stats.ttest_rel([1.50, 1.62, 1.74], [2.40, 2.43, 2.46]).confidence_interval(0.95)
    assert (first["label"], first["rank"], first["rank_interval"]) == ("AR-GRPO", 1, [1, 2])
    assert first["plain"]["minus_base"]["low"] == pytest.approx(paired.low)


ODD = r"<b>x</b> | </details> [x](y) `c` $m$ a_b _c_ **d** \e & 50 % {f} ~g^h" + "\x1b[2J\u202e\n# i"


def test_texts_of_records_are_shown_as_they_are() -> None:
    """In Markdown, LaTeX and on a terminal; thirteen rows, so that the terminal shows the headline."""
    change = {"method.name": {"value": ODD, "origin": "--set"}}
    odd = named(12, 1.5, 0.1, command=f"alignbench run --set method.name='{ODD}'", changed=change)
    board = build([odd, *(named(number, 2.0 + number / 100, 0.1) for number in range(11))], FACTS)
    table = only(board)
    assert any(one_line(ODD) in row.name for row in table.rows)
    (page,) = markdown.pages(board).values()
    lines = [line for text in (page, report_markdown(odd, FACTS)) for line in text.splitlines()]
    for line in [line for line in lines if "50 %" in line and not line.startswith("alignbench")]:
        # Without code, escaped characters and intervals.
        bare = re.sub(r"``+ .*? ``+|`[^`]*`|\\[!-/:-@\[-`{-~]|\[[-+\d.]+, [-+\d.]+\]", "", line)
        assert not re.search(r"[<>\[\]`$~&]|\x1b|\u202e", bare), line
        assert bare.count("|") in (0, 3, 4, 5, 7, 12), "no cell is cut"
    assert page.count("<details>") == page.count("</details>") - page.count("`` alignbench run") == 2
    text = export.Leaderboard((table,)).latex()
    (line,) = [x for x in text.splitlines() if "textless" in x and not x.startswith("%")]
    assert r"\textless{}b\textgreater{}x" in line and r"50 \%" in line and r"a\_b \_c\_" in line
    assert re.sub(r"\\[&%$#_{}]", "", line).count("&") == 5 and line.endswith(r" \\")
    assert "VA-$\\pi$" in text and r"\toprule" in text and "\x1b" not in text + printed(table, 80)


DIGITS = (ROOT / "leaderboards" / "records").glob("*llamagen-tiny*.json")


def test_a_terminal_shows_the_headline_of_many_rows_within_80_columns() -> None:
    text = printed(only(build(collect(DIGITS), Registry.default().metric_facts())), 80)
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert (
        "1 (1–10)" in text
        and "Next-token" in text
        and "AR-GRPO (gcpo) cannot be told from it" in " ".join(text.split())
    )
    assert "at the same setting" not in text


# --- the report of a run --------------------------------------------------------------------------


def test_the_report_of_a_run() -> None:
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
        "\n## Warnings\n\n- One training seed only, so nothing is said about others: VA-π.\n\n## Samples\n",
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
