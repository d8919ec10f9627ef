"""Two runs side by side: which evidence is used, what it says, and what is refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from alignbench.leaderboard import export, terminal
from alignbench.leaderboard.board import build
from alignbench.leaderboard.compare import MetricDifference, compare, read_evaluated
from alignbench.leaderboard.ranking import cell_difference
from alignbench.leaderboard.report import report_markdown
from alignbench.record import RunRecord, read, write
from alignbench.registry.protocol import MetricFact
from tests.helpers.data_sets import refused

DATA = Path(__file__).parents[1] / "golden" / "records"
EVALUATOR = "scorer"
FACTS = {
    "fd": MetricFact(title="FD", direction="lower", digits=3),
    "score": MetricFact(title="Score", direction="higher", digits=3, column="value", per="prompt"),
}
D = "sha256:" + "d" * 64
Array = np.ndarray


def result(subject: str, metrics: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A result of 8 images for each seed at one setting."""
    values = [None] * 5 if subject == "samples" else [1.0, 0, 1.0, 1.0, -1]
    sampling = dict(zip(("temperature", "top_k", "top_p", "cfg_scale", "cfg_interval"), values, strict=True))
    name = "given" if subject == "samples" else "t1"
    protocol = {"name": "toy", "version": 1, "digest": "sha256:" + "a" * 64, "title": "Toy", "rank_by": "fd"}
    return {
        "subject": subject,
        "protocol": protocol | changes.pop("protocol", {}),
        "setting": {"name": name, "title": name.upper(), **sampling},
        "seeds": list(range(len(next(iter(metrics.values()))))),
        "n": 8,
        "reference": "sha256:" + "b" * 64,
        "evaluator": EVALUATOR,
        "metrics": metrics,
        "sample_seconds": 1.0,
        "evaluate_seconds": 1.0,
        **changes,
    }


def run(folder: Path, *results: dict[str, Any], kind: str = "method", values: Any = None) -> Path:
    """Write a run folder with these results."""
    content = json.loads((DATA / "vapi-llamagen-tiny-s0-11111111.json").read_text(encoding="utf-8"))
    content |= {"id": folder.name, "kind": kind, "results": list(results)}
    if values:
        content["config"]["values"] |= values
    if kind != "method":
        content |= {"method": None, "train": None}
    if kind == "samples":
        content["model"] |= {"title": folder.name, "parameters": 0, "trainable_parameters": 0, "weights": {}}
    folder.mkdir(parents=True, exist_ok=True)
    write(RunRecord.model_validate(content), folder)
    return folder


def only(a: Path, b: Path, **more: Any) -> MetricDifference:
    (found,) = compare(read_evaluated(str(a)), read_evaluated(str(b)), FACTS, **more).metrics
    return found


def check(found: MetricDifference, evidence: str, detail: str, interval: Sequence[float]) -> None:
    assert (found.evidence, found.detail) == (evidence, detail)
    assert (found.difference.low, found.difference.high) == pytest.approx(tuple(interval))


def test_tables_reports_and_compare_use_one_test(tmp_path: Path) -> None:
    """A base and one trained model share their sampling seeds: Student's t over the pairs, everywhere."""
    from scipy import stats

    base, method = [2.0, 2.3, 2.7], [2.1, 2.42, 2.79]
    folder = run(tmp_path / "run", result("base", {"fd": base}), result("method", {"fd": method}))
    pairs = stats.ttest_rel(method, base).confidence_interval(0.95)
    assert not stats.ttest_ind(method, base, equal_var=False).pvalue < 0.05 < pairs.low
    compared = only(Path(f"{folder}:base"), Path(f"{folder}:method"))
    assert compared.evidence == "paired sampling seeds" and compared.outcome == "A is better"
    ends = compared.difference.low, compared.difference.high
    assert ends == pytest.approx((pairs.low, pairs.high))
    (table,) = build([read(folder)], FACTS, sift=False).tables
    (column,) = [column for column in table.columns if column.metric == "fd"]
    cells = {row.kind: row.cells[column.key] for row in table.rows}
    change = cell_difference(cells["method"], cells["base"])
    assert (change.low, change.high) == pytest.approx((pairs.low, pairs.high))
    assert [cells[kind].best for kind in ("base", "method")] == [True, False]
    assert f"[+{pairs.low:.3f}, +{pairs.high:.3f}]" in report_markdown(read(folder), FACTS)


def scored(
    folder: Path, values: Array, prompts: Array | None = None, *, subject: str = "method", times: float = 1.0
) -> Path:
    """A run whose one metric is the mean of the rows [seeds, images] that it keeps, as evaluations do."""
    run(folder, result(subject, {"score": [float(times * column.mean()) for column in values]}), kind=subject)
    setting = "given" if subject == "samples" else "t1"
    for seed, column in enumerate(values):
        place = folder / "rows" / subject / setting / f"seed-{seed}" / EVALUATOR
        place.mkdir(parents=True)
        for number, start in enumerate(range(0, len(column), 3)):
            part = slice(start, start + 3)
            prompt: dict[str, Any] = {} if prompts is None else {"prompt": prompts[part]}
            np.savez(place / f"shard-{number:05d}.npz", **META, value=column[part], **prompt)
    return folder


META: dict[str, Any] = {"_meta": np.array(json.dumps({"key": "k"}))}
GENERATOR = np.random.default_rng(0)
LUCK = GENERATOR.normal(size=(1, 8))
A_ROWS = LUCK + 0.05 * GENERATOR.normal(size=(1, 8))
B_ROWS = LUCK + 0.2 + 0.05 * GENERATOR.normal(size=(1, 8))
PROMPTS = np.array([5, 5, -3, -3, 9, 9, 1, 1])


# --- rows, the best evidence ----------------------------------------------------------------------


def test_images_are_paired(tmp_path: Path) -> None:
    found = only(scored(tmp_path / "a", A_ROWS), scored(tmp_path / "b", B_ROWS))
    expected = stats.ttest_rel(B_ROWS[0], A_ROWS[0])
    check(found, "paired images", "8 images", expected.confidence_interval(0.95))
    assert found.difference.mean == pytest.approx(found.b.interval.mean - found.a.interval.mean)
    assert (found.outcome, found.why) == ("B is better", "")
    assert stats.ttest_ind(B_ROWS[0], A_ROWS[0]).pvalue > 0.3, "unpaired images would not have seen it"
    same = only(tmp_path / "a", tmp_path / "a")
    assert (same.difference.mean, same.outcome) == (0.0, "difference not significant")


def test_images_of_one_prompt_count_once(tmp_path: Path) -> None:
    found = only(scored(tmp_path / "a", A_ROWS, PROMPTS), scored(tmp_path / "b", B_ROWS, PROMPTS))
    a, b = (rows.reshape(4, 2).mean(axis=1) for rows in (A_ROWS, B_ROWS))
    check(found, "paired prompts", "4 prompts", stats.ttest_rel(b, a).confidence_interval(0.95))
    # Over all sampling seeds, too.
    a, b = (np.concatenate([rows, rows[:, ::-1] + 0.1]) for rows in (A_ROWS, B_ROWS))
    found = only(scored(tmp_path / "c", a, PROMPTS), scored(tmp_path / "d", b, PROMPTS))
    differences = [(b - a)[:, prompt == PROMPTS].mean() for prompt in np.unique(PROMPTS)]
    interval = stats.t.interval(0.95, 3, loc=np.mean(differences), scale=stats.sem(differences))
    check(found, "paired prompts", "4 prompts", interval)


def test_prompts_are_matched_by_key(tmp_path: Path) -> None:
    a = scored(tmp_path / "a", A_ROWS, PROMPTS)
    straight = only(a, scored(tmp_path / "b", B_ROWS, PROMPTS))
    order = np.array([7, 2, 5, 0, 3, 6, 1, 4])
    mixed = only(a, scored(tmp_path / "c", B_ROWS[:, order], PROMPTS[order]))
    assert mixed.difference.low == pytest.approx(straight.difference.low)
    uneven = only(a, scored(tmp_path / "d", B_ROWS, np.array([5, 5, 5, -3, 9, 9, 1, 1])))
    assert uneven.evidence == "paired prompts"
    assert uneven.difference.mean == pytest.approx(B_ROWS.mean() - A_ROWS.mean()), "that of the means"
    assert only(a, scored(tmp_path / "e", B_ROWS, PROMPTS + 1)).why == "the prompts differ"


def test_per_cent_of_a_boolean_column(tmp_path: Path) -> None:
    a, b = np.arange(8)[None] < 3, np.arange(8)[None] < 6
    found = only(scored(tmp_path / "a", a, times=100.0), scored(tmp_path / "b", b, times=100.0))
    interval = stats.ttest_rel(100.0 * b[0], 100.0 * a[0]).confidence_interval(0.95)
    check(found, "paired images", "8 images", interval)
    assert found.difference.mean == pytest.approx(37.5) and found.outcome == "difference not significant"


def test_given_images_are_paired_by_prompt_only(tmp_path: Path) -> None:
    mine = scored(tmp_path / "a", A_ROWS, PROMPTS, subject="samples")
    assert only(mine, scored(tmp_path / "b", B_ROWS, PROMPTS)).evidence == "paired prompts"
    bare = scored(tmp_path / "c", A_ROWS, subject="samples")
    found = only(bare, scored(tmp_path / "d", B_ROWS))
    assert found.evidence == "not tested" and "nothing to do with" in found.why


def rewrite(shard: Path, **changes: Any) -> None:
    np.savez(shard, **(META | {"value": B_ROWS[0, 6:]} | changes))


SPOILED: dict[str, Callable[[Path], object]] = {
    "keeps no rows": lambda shard: list(map(Path.unlink, shard.parent.iterdir())),
    "cannot be read": lambda shard: shard.write_bytes(shard.read_bytes()[:100]),
    "shard-00002.npz cannot be read": lambda shard: rewrite(shard, _meta=np.array("{}")),
    "does not hold one number for each of 8 images": lambda shard: shard.unlink(),
    "more than one evaluation": lambda shard: rewrite(shard, _meta=np.array(json.dumps({"key": "other"}))),
    "do not give the recorded values": lambda shard: rewrite(shard, value=np.array([9.0, 9.0])),
    "some rows lack their prompt": lambda shard: rewrite(shard, prompt=PROMPTS[6:]),
}


@pytest.mark.parametrize("reason", SPOILED)
def test_rows_that_cannot_be_used_are_not(tmp_path: Path, reason: str) -> None:
    a, b = scored(tmp_path / "a", A_ROWS), scored(tmp_path / "b", B_ROWS)
    SPOILED[reason](b / "rows" / "method" / "t1" / "seed-0" / EVALUATOR / "shard-00002.npz")
    found = only(a, b)
    assert reason in found.why
    assert (found.evidence, found.outcome[:10]) == ("not tested", "not tested")


# --- values ---------------------------------------------------------------------------------------

A_SEEDS, B_SEEDS = [2.40, 2.51, 2.13, 2.90], [2.31, 2.40, 2.05, 2.77]


def test_sampling_seeds_are_paired(tmp_path: Path) -> None:
    a = run(tmp_path / "a", result("method", {"fd": A_SEEDS}))
    b = run(tmp_path / "b", result("method", {"fd": B_SEEDS}))
    found = only(a, b)
    interval = stats.ttest_rel(B_SEEDS, A_SEEDS).confidence_interval(0.95)
    check(found, "paired sampling seeds", "4 sampling seeds", interval)
    assert (found.outcome, only(b, a).outcome) == ("B is better", "A is better"), "lower is better"
    drawn = {"fd": [[1.0, 2.0]] * 4}
    c = run(tmp_path / "c", result("method", {"fd": A_SEEDS}, resampled=drawn))
    d = run(tmp_path / "d", result("method", {"fd": B_SEEDS}, resampled=drawn))
    assert only(c, d).evidence == "paired sampling seeds", "they go before resamples"
    assert stats.ttest_ind(A_SEEDS, B_SEEDS, equal_var=False).pvalue > 0.05


def test_given_images_meet_every_setting_and_their_seeds_are_no_pairs(tmp_path: Path) -> None:
    a = run(tmp_path / "a", result("method", {"fd": A_SEEDS}))
    b = run(tmp_path / "b", result("samples", {"fd": B_SEEDS}), kind="samples")
    found = only(a, b)
    interval = stats.ttest_ind(B_SEEDS, A_SEEDS, equal_var=False).confidence_interval(0.95)
    check(found, "unpaired", "4 sampling seeds", interval)
    assert found.outcome == "difference not significant"
    found = only(single(tmp_path / "c", 2.5, 0.05, "samples"), a)
    assert (found.setting.name, found.evidence) == ("t1", "unpaired")
    assert found.detail == "1 image set against 4 sampling seeds"


A_DRAWN, B_DRAWN = [2.5, 2.9, 2.7, 2.4, 2.8], [2.41, 2.80, 2.62, 2.30, 2.69]


def single(
    folder: Path,
    value: float,
    half: float | None,
    subject: str = "method",
    drawn: list[float] | None = None,
    **changes: Any,
) -> Path:
    """A run of one image set with the error ±half, and what resamples of it gave."""
    interval = None if half is None else [value - half, value + half]
    more = {"intervals": {"fd": [interval]}, "resampled": {"fd": [drawn]} if drawn else {}, **changes}
    return run(folder, result(subject, {"fd": [value]}, **more), kind=subject)


def test_single_sets_of_one_seed_are_compared_by_their_resamples(tmp_path: Path) -> None:
    a, b = single(tmp_path / "a", 2.3, 0.4, drawn=A_DRAWN), single(tmp_path / "b", 2.2, 0.4, drawn=B_DRAWN)
    found = only(a, b)
    half = stats.t.ppf(0.975, 4) * np.std(np.subtract(B_DRAWN, A_DRAWN), ddof=1)
    check(found, "paired resamples", "5 resamples of 1 image set", (-0.1 - half, -0.1 + half))
    assert found.outcome == "B is better" and only(b, a).outcome == "A is better"
    same = only(a, single(tmp_path / "c", 2.3, 0.4, drawn=A_DRAWN))
    assert (same.evidence, same.outcome) == ("paired resamples", "difference not significant")


def test_resamples_are_no_pairs_without_common_images(tmp_path: Path) -> None:
    a = single(tmp_path / "a", 2.3, 0.4, drawn=A_DRAWN)
    for other in (
        single(tmp_path / "b", 2.2, 0.4, drawn=B_DRAWN[:4]),
        single(tmp_path / "c", 2.2, 0.4),
        single(tmp_path / "d", 2.2, 0.4, "samples", B_DRAWN),
    ):
        assert (only(a, other).evidence, only(a, other).outcome) == ("unpaired", "difference not significant")


def test_single_sets_are_compared_by_their_errors(tmp_path: Path) -> None:
    a = single(tmp_path / "a", 2.4, 0.1)
    near, far = only(a, single(tmp_path / "b", 2.3, 0.1)), only(a, single(tmp_path / "c", 2.2, 0.1))
    assert (near.outcome, far.outcome) == ("difference not significant", "B is better")
    interval = stats.norm.interval(0.95, loc=-0.2, scale=2**0.5 * 0.1 / stats.norm.ppf(0.975))
    check(far, "unpaired", "1 image set", interval)
    bare = only(a, single(tmp_path / "d", 1.0, None))
    assert bare.evidence == "not tested" and bare.outcome.startswith("not tested")


# --- what is refused ------------------------------------------------------------------------------


OTHER = {"protocol": {"digest": D}}
REAL = {"assets": {"real": "sha256:" + "e" * 64}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"protocol": {"digest": D, "name": "geneval"}}, "different protocols: toy against geneval"),
    ({"protocol": {"digest": D, "version": 2}}, "toy version 1 against version 2"),
    (OTHER, "both toy, but its card was changed (digest aaaaaaaaaaaa against dddddddddddd)"),
    (OTHER | REAL, "both toy, but asset real none against eeeeeeeeeeee"),
    (OTHER | {"reference": None, "n": 9}, "but reference bbbbbbbbbbbb against none, 8 against 9 images"),
    ({"reference": D}, "different references: bbbbbbbbbbbb against dddddddddddd"),
    ({"n": 9}, "different numbers of images: 8 against 9"),
    ({"seeds": [3]}, "different sampling seeds: 0 against 3"),
    ({"evaluator": f"{EVALUATOR}@2"}, f"different evaluators: {EVALUATOR} against {EVALUATOR}@2"),
    (REAL, "different assets: asset real none against eeee"),
]


def test_different_protocols_are_refused_by_field(tmp_path: Path) -> None:
    a = single(tmp_path / "a", 2.4, 0.1)
    for number, (changes, reason) in enumerate(REFUSED):
        assert reason in refused(only, a, single(tmp_path / str(number), 2.2, 0.1, **changes))
    other = result("method", {"fd": [1.0]}, **OTHER)
    a = run(tmp_path / "a", result("method", {"fd": [1.0]}), values={"protocol.samples": 0})
    b = run(tmp_path / "b", other, values={"protocol.samples": 500, "protocol.seeds": "0", "train.lr": 9})
    assert "but protocol.samples as on the card against 500 (digest" in refused(only, a, b)
    other = result("method", {"fd": [1.0]})
    other["setting"] |= {"temperature": 0.5, "title": "T=0.5"}
    message = refused(only, a, run(tmp_path / "c", other))
    assert "no metric at a setting of both (T1 against T=0.5)" in message


def test_blanks_and_unknown_metrics_are_left_out_by_name(tmp_path: Path) -> None:
    a, b = (
        run(tmp_path / name, result("method", {"fd": [1.0], "score": values, "beauty": [2.0]}))
        for name, values in (("a", [0.5]), ("b", [None]))
    )
    found = compare(read_evaluated(str(a)), read_evaluated(str(b)), FACTS)
    assert [item.column.metric for item in found.metrics] == ["fd"]
    assert found.left_out == ("Score at T1 is blank on a side", "no evaluator card describes beauty")


def test_metrics_are_chosen_by_name(tmp_path: Path) -> None:
    a = run(tmp_path / "a", result("method", {"fd": [1.0], "score": [0.5]}))
    assert only(a, a, metrics=["score"]).column.metric == "score"
    assert "named 'scores'. Did you mean score" in refused(only, a, a, metrics=["scores"])


# --- sides ----------------------------------------------------------------------------------------


def test_subjects_are_chosen_after_a_colon(tmp_path: Path) -> None:
    both = run(tmp_path / "a", result("base", {"fd": [2.0]}), result("method", {"fd": [1.0]}))
    assert read_evaluated(str(both)).subject == "method"
    assert read_evaluated(f"{both}:base").subject == "base"
    mine = single(tmp_path / "mine", 1.0, None, "samples")
    assert [read_evaluated(text).title for text in (f"{both}:base", str(both), str(mine))] == [
        "LlamaGen-tiny, base",
        "VA-π on LlamaGen-tiny, training seed 0",
        "mine",
    ]
    found = only(Path(f"{both}:base"), both)
    assert (found.a.interval.mean, found.b.interval.mean) == (2.0, 1.0)
    for text, reason in (
        (f"{both}:bas", "no subject named 'bas'. Did you mean base"),
        (f"{both}:samples", "has no result of 'samples': it has base, method"),
        (str(run(tmp_path / "b")), "it was not evaluated"),
        (str(tmp_path / "nowhere"), "does not exist"),
    ):
        assert reason in refused(read_evaluated, text)
    renamed = single(tmp_path / "c", 1.0, None).rename(tmp_path / "c:base")
    assert read_evaluated(str(renamed)).subject == "method", "a folder may have a colon in its name"


def test_a_record_file_has_no_rows(tmp_path: Path) -> None:
    a = scored(tmp_path / "a", A_ROWS)
    copy = tmp_path / "a.json"
    copy.write_bytes((a / "run.json").read_bytes())
    assert read_evaluated(str(a / "run.json")).folder == a
    assert read_evaluated(str(copy)).folder is None
    assert "only a record is here" in only(a, copy).why


def test_records_are_compared_without_torch() -> None:
    record = "leaderboards/records/vapi-llamagen-tiny-s0-79503d67.json"
    code = (
        "import sys\n"
        "from alignbench.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", f"{record}:base", record, "--metric", "fd-digits", "--json"],
        capture_output=True, text=True, cwd=DATA.parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    assert [item["evidence"] for item in metrics] == ["paired sampling seeds"] * 4
    assert metrics[3]["verdict"] == "difference not significant"


# --- what is printed ------------------------------------------------------------------------------


def test_the_sentence(tmp_path: Path) -> None:
    a, b = single(tmp_path / "a", 2.4, 0.1), single(tmp_path / "b", 2.3, 0.1)
    console = Console(width=80, file=io.StringIO(), record=True)
    found = compare(read_evaluated(str(a)), read_evaluated(str(b)), FACTS)
    console.print(terminal.rich_comparison(found))
    text = console.export_text()
    assert "FD: difference not significant." in text
    assert "[-0.241, +0.041]" in text and "Toy · T1 · aaaaaaaaaaaa" in text
    assert "nothing is said about other training seeds" in " ".join(text.split())


def test_json_is_plain_and_complete(tmp_path: Path) -> None:
    a, b = scored(tmp_path / "a", A_ROWS, PROMPTS), scored(tmp_path / "b", B_ROWS, PROMPTS)
    data = export.comparison_data(compare(read_evaluated(str(a)), read_evaluated(str(b)), FACTS))
    (item,) = json.loads(json.dumps(data, allow_nan=False))["metrics"]
    assert (item["metric"], item["evidence"], item["verdict"]) == ("score", "paired prompts", "B is better")
    assert item["low"] < item["difference"] < item["high"] and item["significant"]
    assert (data["a"]["run"], data["b"]["subject"]) == ("a", "method")
