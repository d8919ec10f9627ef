"""Odd records through every output: texts of others are shown as they are and steer nothing; what is no
record is refused by name in one line, and the others are unharmed.

Markdown is read back by markdown-it, a CommonMark parser with GitHub's tables.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from alignbench.errors import UserError
from alignbench.leaderboard import audit, board, export, terminal
from alignbench.leaderboard.compare import compare, read_evaluated
from alignbench.leaderboard.report import report_markdown
from alignbench.leaderboard.warnings import warnings_of_run
from alignbench.record import MOST_BYTES, RunRecord, read
from alignbench.registry.lookup import Registry
from alignbench.text import fenced, field, latex, one_line, plain_line, visible_json
from tests.conftest import ROOT
from tests.helpers.command import alignbench

RECORDS = ROOT / "leaderboards" / "records"
(ODD_SOURCE,) = RECORDS.glob("vapi-llamagen-tiny-s0-*.json")
SOUND = RECORDS / "ntp-llamagen-tiny-s0-1472e9e2.json"
REGISTRY = Registry.default()
FACTS, PUBLISHED = REGISTRY.metric_facts(), REGISTRY.published_cards()

TEXTS = {
    "html": "<script>alert(1)</script> </details> <!-- &lt; &#65;",
    "fences": "a ``` b ````` c `d` ~~~",
    "cells": r"a | b \| c \\| d",
    "links": "[x](javascript:y) ![i](z) <http://e.v> [ref]: z",
    "rich": "[red]x[/red] [/] [link=file:///]y[bold",
    "ansi": "\x1b[2J\x1b]0;t\x07\x9b31m\x7f",
    "bidi": "a\u202eb\u2066c\u200ed",
    "lines": "a\n```\n# b\r\n- c\u2028d\n\n| e |",
    "emphasis": "_a_ *b* **c** ~~d~~ $e_1$ f_g \\h",
    "heading": "# x",
    "item": "- x",
    "number": "1. x",
    "rule": "---",
    "formula": "=HYPERLINK(1)",
    "math": r"$\frac$ $",
    "tex": r"\input{x} % & # ^ ~ {",
    "long": "x" * 2_000,
    "words": "ab " * 700,
}
HTML = re.compile(r"</?details>|</?summary>|<!-- Made by `alignbench leaderboard`[^>]*-->\s*")
LOCAL = re.compile(r"[A-Za-z0-9._-]+\.(md|csv|png)")


def content_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content | {"sha256": None}


def odd(text: str, *, apart: bool = False) -> RunRecord:
    """A record with a text wherever the form takes any; `apart`: also where that makes another table."""
    content = content_of(ODD_SOURCE)
    train, made = content["train"], content["environment"]
    content |= {"command": text, "plugins": [{"path": text, "sha256": "sha256:" + "0" * 64}]}
    content["changed"] = {
        "method.odd": {"value": text, "origin": text},
        f"train.{text}": {"value": [text], "origin": "--set"},
    }
    content["config"]["values"]["method.odd"] = text
    content["recipe"]["source"] = content["data"]["split"] = text
    content["method"]["options"] = {text: text}
    train |= {"device": text, "precision": text, "reward_calls": {text: 5}, "reward_failures": {text: 1}}
    train["optimizer"] = {text: text}
    train["trends"] = {text: dict.fromkeys(["first", "last", "mean", "highest", "error"], 1.0)}
    made |= {key: text for key in ("alignbench", "git_commit", "torch", "python", "platform", "device")}
    made["packages"] = {text: text}
    content["exports"] = {text: "sha256:" + "0" * 64}
    for result in content["results"]:
        result["networks_used_as_reward"] = [text]
        result["metrics"][text] = [1.0] * len(result["seeds"])
        if apart:
            result |= {"evaluator": f"{text}@1", "assets": {text: "sha256:" + "0" * 64}}
    if apart:
        content["model"]["weights"] = {text: "sha256:" + "0" * 64}
    return RunRecord.model_validate(content)


def is_safe(text: str) -> bool:
    directions = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return not any(
        (unicodedata.category(c) == "Cc" and c != "\n") or unicodedata.bidirectional(c) in directions
        for c in text
    )


def shown_by(page: str, *, ours: bool = False) -> tuple[list[str], list[str]]:
    """Check that a page holds no markup but ours; return its texts as a reader sees them, and code blocks.

    `ours`: words that we wrote ourselves are in italics.
    """
    assert is_safe(page)
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(page)
    texts, blocks = [], []
    for token in tokens:
        assert (
            token.type != "html_block"
            or not HTML.sub("", re.sub(r"(?<=<summary>).*(?=<)", "", token.content)).strip()
        )
        assert token.type != "heading_open" or token.level == 0, "a heading inside a list"
        blocks += [token.content] if token.type in ("fence", "code_block") else []
        for child in token.children or ():
            assert child.type not in ("html_inline", *([] if ours else ["em_open"]), "s_open"), child
            for target in (child.attrs.get("href"), child.attrs.get("src")):
                assert target is None or LOCAL.fullmatch(str(target)), target
        parts = [x.content for x in token.children or () if x.type in ("text", "code_inline")]
        texts += ["".join(parts)] if token.children else []
    return texts, blocks


def head(text: str) -> str:
    """What must be seen of a text: its beginning, on one line."""
    return one_line(text)[:200].strip()


# --- texts in good records ------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTS)
def test_texts_steer_nothing_in_pages_and_files(name: str, tmp_path: Path) -> None:
    text = TEXTS[name]
    record = odd(text, apart=True)
    board.write([record, read(SOUND)], tmp_path, FACTS, {})
    assert read(tmp_path / "records" / f"{record.id}.json") == record, "nothing is lost on the disk"
    assert all(line.endswith(".png: missing") for line in board.check(tmp_path, FACTS, {}))
    for path in tmp_path.glob("*.md"):
        shown_by(path.read_text(encoding="utf-8"))
    texts, _ = shown_by((tmp_path / "digits8-v1.md").read_text(encoding="utf-8"))
    assert any(head(text) in x for x in texts)
    assert sum("Next-token prediction" in x for x in texts) > 3, "the others are unharmed"

    texts, blocks = shown_by(report_markdown(record, FACTS))
    assert one_line(blocks[-1]) == one_line(text) or len(blocks) == 1
    assert sum(head(text) in x for x in texts) >= 5

    tables = board.build([record, read(SOUND)], FACTS).tables
    made = export.Leaderboard(tables)
    shown_by(made.markdown())
    assert is_safe(made.latex()) and is_safe(made.json())
    assert {row["row"] for row in json.loads(made.json())[0]["rows"]} <= {row["row"] for row in made.rows()}
    for line in csv.DictReader(io.StringIO(made.csv())):
        assert not any(value.startswith(tuple("=+@\t\r")) for value in line.values())


@pytest.mark.parametrize("name", TEXTS)
def test_texts_steer_no_terminal(name: str, tmp_path: Path) -> None:
    text = TEXTS[name]
    record = odd(text)
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    content = json.loads(record.model_dump_json(by_alias=True))
    for result in content["results"]:
        result["evaluator"] = f"{text}@1"
    for other in (record, RunRecord.model_validate(content)):
        for table in board.build([other, read(SOUND)], FACTS).tables:
            warned = warnings_of_run(other, [table])
            console.print(terminal.rich_table(table), terminal.rich_warnings(warned))
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(content_of(ODD_SOURCE) | json.loads(record.model_dump_json(by_alias=True))))
    found = compare(read_evaluated(str(path)), read_evaluated(str(SOUND)), FACTS)
    console.print(terminal.rich_comparison(found))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert is_safe(said) and max(map(len, said.splitlines())) <= 80
    squeezed = re.sub(r"\s", "", said)
    assert re.sub(r"\s", "", head(text)) in squeezed, "brackets are no markup of rich"
    pages = audit.page(audit.audit(board.build([record], FACTS), PUBLISHED))
    shown_by(pages, ours=True)


def test_commands_show_them_alike(tmp_path: Path) -> None:
    """All texts in one record; figures as well, where a glyph that is missing would be a warning."""
    text = " ".join(TEXTS[name] for name in TEXTS if name not in ("long", "words"))
    (other,) = RECORDS.glob("vapi-llamagen-tiny-s1-*.json")
    for name, content in {"odd": odd(text), "sound": read(other)}.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text(content.model_dump_json(by_alias=True))
    log = "".join(json.dumps({"step": n, "reward": n, f"reward/{text}": 1.0}) + "\n" for n in range(1, 5))
    (tmp_path / "runs" / "odd" / "metrics.jsonl").write_text(log)
    (tmp_path / "runs" / "sound" / "metrics.jsonl").write_text(log)
    runs, out = tmp_path / "runs", tmp_path / "board"
    shown: list[object] = ["leaderboard", runs, "--format"]
    commands: list[list[object]] = [
        ["leaderboard", runs, "--out", out],
        ["leaderboard", "--check", "--out", out],
        *([*shown, form] for form in ("markdown", "csv", "latex", "json")),
        ["compare", runs / "odd", runs / "sound"],
        ["compare", runs / "odd", runs / "sound", "--json"],
        ["audit", runs],
        ["audit", runs, "--json"],
    ]
    for arguments in commands:
        done = alignbench(*arguments)
        assert (done.returncode, done.stderr) == (0, "") and is_safe(done.stdout), arguments
        json.loads(done.stdout) if "json" in str(arguments[-1]) else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = alignbench(
            "figures", runs, "--out", tmp_path / "figures", "--kind", "tradeoff", "--kind", "curves"
        )
    assert done.returncode == 0, done.stderr
    texts, _ = shown_by((tmp_path / "figures" / "figures.md").read_text(encoding="utf-8"))
    assert any("<script>alert(1)</script>" in x for x in texts)


def test_fields_texts_and_fences() -> None:
    assert [field(x) for x in ("=1", "+1", "-x", "@a", " =1", "\t=1", "a=1", -1.5, None, True)] == [
        "'=1", "'+1", "'-x", "'@a", "' =1", "'\t=1", "a=1", -1.5, None, True,
    ]  # fmt: skip
    assert fenced("a ``` b")[0] == "````" and fenced("x") == ["```", "x", "```"]
    assert json.loads(visible_json(json.dumps("\x9b\u202e\x1b\n", ensure_ascii=False))) == "\x9b\u202e\x1b\n"
    assert latex("\x1b\u202e") == "\ufffd\ufffd"
    for text in ("x" * 301, "<b>", "a\nb", "\u202e", " "):
        with pytest.raises(ValueError, match=r"title|one line|markup") as error:
            plain_line(text)
        assert len(str(error.value)) < 200 and is_safe(str(error.value))
    assert plain_line("x" * 300)


# --- what is no record ----------------------------------------------------------------------------

Make = Callable[[Path], object]


def changed(change: Callable[[dict[str, Any]], object]) -> Make:
    def make(path: Path) -> None:
        content = content_of(ODD_SOURCE)
        change(content)
        path.write_text(json.dumps(content))

    return make


def inside(*keys: str | int, value: Any) -> Make:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return changed(change)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)


def written(content: str | bytes) -> Make:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


FD = "fd-digits"
BROKEN: dict[str, tuple[Make, str]] = {
    "empty": (written(""), "not readable JSON"),
    "binary": (written(bytes(range(256))), "not readable JSON"),
    "huge": (sparse, "larger than any run record, 64 MiB"),
    "folder": (lambda path: path.mkdir(), "holds no finished run"),
    "dangling": (lambda path: path.symlink_to("nowhere"), "does not exist"),
    "loop": (lambda path: path.symlink_to(path.name), "does not exist"),
    "list": (written("[]"), "it has no schema number"),
    "null": (written("null"), "it has no schema number"),
    "deep": (written("[" * 100_000), "nested too deeply"),
    "half": (written(json.dumps(content_of(ODD_SOURCE))[:5000]), "not readable JSON"),
    "older": (inside("schema", value=0), "schema 0, which never existed"),
    "negative": (inside("schema", value=-1), "schema -1, which never existed"),
    "newer": (inside("schema", value=99), "made by a newer alignbench"),
    "text": (inside("schema", value="1"), "it has no schema number"),
    "digest": (inside("sha256", value="sha256:" + "0" * 64), "changed since it was written"),
    "nan": (inside("results", 0, "metrics", FD, 0, value=float("nan")), "not JSON compliant"),
    "infinite": (inside("config", "values", "x", value=float("-inf")), "not JSON compliant"),
    "overflow": (
        written(json.dumps(content_of(ODD_SOURCE)).replace('"seed": 0', '"seed": 1e999', 1)),
        "not JSON",
    ),
    "enormous": (inside("results", 0, "metrics", FD, 0, value=1e200), f"metrics.{FD}.0"),
    "count": (inside("train", "sequences", value=10**400), "train.sequences"),
    "surrogate": (inside("command", value="\ud800"), "not readable JSON"),
    "values": (inside("results", 0, "metrics", FD, value=[1.0]), "1 values for 5 seeds"),
    "no results": (changed(lambda content: content.pop("results")), "results: Field required"),
    "html title": (inside("model", "title", value="<script>"), "model.title"),
    "ansi title": (inside("method", "title", value="\x1b[2J"), "method.title"),
    "bidi title": (inside("model", "title", value="a\u202eb"), "model.title"),
    "long title": (inside("model", "title", value="x" * 10_000), "a title at most 300"),
    "long words": (inside("method", "title", value="ab " * 4_000), "a title at most 300"),
    "path id": (inside("id", value="../../x"), "id: "),
    "long id": (inside("id", value="x" * 300), "id: "),
    "odd key": (inside("x\n\x1b[2J" * 200, value=1), "Extra inputs"),
    "odd metric": (inside("results", 0, "metrics", "x\n" * 200, value=[]), "0 values for 5 seeds"),
}


@pytest.fixture
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of runs, one of them broken, beside a sound one."""
    for folder in ("broken", "sound"):
        (tmp_path / "runs" / folder).mkdir(parents=True)
    (tmp_path / "runs" / "sound" / "run.json").write_bytes(SOUND.read_bytes())
    BROKEN[request.param][0](tmp_path / "runs" / "broken" / "run.json")
    return tmp_path / "runs" / "broken" / "run.json"


@pytest.mark.parametrize(("broken", "reason"), [(x, BROKEN[x][1]) for x in BROKEN], indirect=["broken"])
def test_what_is_no_record_is_named_and_left_out(broken: Path, reason: str) -> None:
    told: list[UserError] = []
    sound = broken.parents[1] / "sound"
    assert board.collect([broken, sound], told.append) == [read(SOUND)]
    with pytest.raises(UserError) as alone:
        board.collect([broken, broken], told.append)
    with pytest.raises(UserError) as first:
        board.collect([sound, broken])
    assert len(told) == 1 and str(told[0]) == str(alone.value) == str(first.value)
    assert reason in str(told[0]) and str(broken) in str(told[0])
    assert len(str(told[0])) < 1500 and "\n" not in str(told[0])
    if broken.is_file():
        assert board.collect([broken.parents[1]], told.append) == [read(SOUND)], "in a folder of runs"
        assert len(told) == 2


@pytest.mark.parametrize("broken", ["odd key"], indirect=True)
def test_commands_leave_out_what_is_no_record(broken: Path, tmp_path: Path) -> None:
    """Alone it is refused; beside others the rest is done, and the exit status says that one is missing."""
    out = tmp_path / "out"
    for arguments in (
        ["leaderboard", broken, "--out", out],
        ["leaderboard", broken, "--format", "json"],
        ["audit", broken],
        ["figures", broken, "--out", out],
        ["compare", broken, SOUND],
    ):
        done = alignbench(*arguments)
        assert (done.returncode, done.stdout) == (2, "") and is_safe(done.stderr) and not out.exists()
        assert done.stderr.startswith(f"alignbench: {broken} is not") and done.stderr.count("\n") == 1
    sound, runs = broken.parents[1] / "sound", broken.parents[1]
    templates: list[list[object]] = [
        ["leaderboard", "{}", "--out", out],
        ["leaderboard", "{}", "--format", "csv"],
        ["audit", "{}"],
        ["figures", "{}", "--out", out, "--kind", "tradeoff"],
    ]
    for template in templates:
        done = alignbench(*(runs if word == "{}" else word for word in template))
        assert done.returncode == 1 and is_safe(done.stderr)
        first, last = done.stderr.splitlines()
        assert first.startswith(f"left out: {broken} is not ")
        assert last.startswith("alignbench: 1 record left out, named above; the rest was done → mend")
        if str(out) not in map(str, template):
            assert done.stdout == alignbench(*(sound if word == "{}" else word for word in template)).stdout
    assert {path.name for path in out.iterdir()} >= {"digits8-v1.md", "tradeoff.png", "figures.md"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("broken", ["list"], indirect=True)
def test_a_file_that_may_not_be_read_is_named(broken: Path) -> None:
    broken.chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        board.collect([broken])


def test_a_broken_record_of_a_board_stops_it_before_anything_is_lost(tmp_path: Path) -> None:
    """Pages without it would be wrong, and its file must not be taken for one that belongs nowhere."""
    assert alignbench("leaderboard", SOUND, "--out", tmp_path).returncode == 0
    (stored,) = (tmp_path / "records").iterdir()
    stored.write_text("{")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    for arguments in (
        ["leaderboard", ODD_SOURCE, "--out", tmp_path],
        ["leaderboard", "--check", "--out", tmp_path],
    ):
        done = alignbench(*arguments)
        assert done.returncode == 2 and stored.name in done.stderr and done.stderr.count("\n") == 1
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}


# --- good records that are unlike others ----------------------------------------------------------


def test_records_that_come_twice(tmp_path: Path) -> None:
    """The same file, a copy, an older and a later run of one id; another id of one configuration."""
    sound_csv = alignbench("leaderboard", SOUND, "--format", "csv").stdout
    (tmp_path / "copy.json").write_bytes(SOUND.read_bytes())
    done = alignbench("leaderboard", SOUND, SOUND, tmp_path / "copy.json", "--format", "csv")
    assert (done.returncode, done.stdout, done.stderr) == (0, sound_csv, "")
    content = content_of(SOUND)
    for result in content["results"]:
        result["metrics"][FD] = [9.0] * 5
    for name, finished in {"older": "2001-01-01T00:00:00Z", "later": "2031-01-01T00:00:00Z"}.items():
        (tmp_path / name).write_text(json.dumps(content | {"finished": finished}))
    assert alignbench("leaderboard", SOUND, tmp_path / "older", "--format", "csv").stdout == sound_csv
    later = alignbench("leaderboard", tmp_path / "later", SOUND, "--format", "csv").stdout
    assert f",{FD}," in later and ",9.0," in later
    (tmp_path / "twin").write_text(json.dumps(content | {"id": "twin", "finished": "2001-01-01T00:00:00Z"}))
    assert alignbench("leaderboard", SOUND, tmp_path / "twin", "--out", tmp_path / "board").returncode == 0
    page = (tmp_path / "board" / "digits8-v1.md").read_text()
    assert (
        f"- `twin`: same configuration and training seed 0 as {content['id']}, which finished later" in page
    )


def test_runs_that_did_not_end_and_values_that_are_missing(tmp_path: Path) -> None:
    for status in ("partial", "failed"):
        content = content_of(ODD_SOURCE) | {"id": status, "status": status, "finished": None}
        (tmp_path / f"{status}.json").write_text(json.dumps(content))
        report = report_markdown(read(tmp_path / f"{status}.json"), FACTS)
        assert f"**{status}**: numbers may be missing" in report
        done = alignbench("compare", tmp_path / f"{status}.json", SOUND)
        assert done.returncode == 2 and f"the run is {status}" in done.stderr
    blank = content_of(ODD_SOURCE) | {"id": "blank"}
    for result in blank["results"]:
        result["metrics"] = {FD: [None] * 5, "recall": [0.5, None, 0.5, 0.5, 0.5]}
    (tmp_path / "blank.json").write_text(json.dumps(blank))
    empty = content_of(ODD_SOURCE) | {"id": "empty", "results": []}
    (tmp_path / "empty.json").write_text(json.dumps(empty))
    done = alignbench("leaderboard", tmp_path, SOUND, "--out", tmp_path / "board")
    assert (done.returncode, done.stderr) == (0, "")
    index = (tmp_path / "board" / "README.md").read_text()
    for line in ("`partial`: the run is partial", "`failed`: the run is failed", "`empty`: not evaluated"):
        assert f"- {line}" in index
    for form in ("markdown", "csv", "latex", "json"):
        done = alignbench("leaderboard", tmp_path / "blank.json", SOUND, "--format", form)
        assert (done.returncode, done.stderr) == (0, "") and "nan" not in done.stdout.lower()
    assert alignbench("leaderboard", tmp_path / "blank.json", "--format", "csv").stdout == "\n"
    assert alignbench("audit", tmp_path).returncode == 0
    done = alignbench("compare", tmp_path / "blank.json", SOUND)
    assert done.returncode == 2 and "is blank on a side" in done.stderr
    report_markdown(read(tmp_path / "blank.json"), FACTS)
    alone = alignbench("leaderboard", tmp_path / "empty.json", "--format", "json")
    assert (alone.returncode, alone.stdout) == (0, "[]\n")
