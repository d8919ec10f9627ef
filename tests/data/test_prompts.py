"""Reading prompt files."""

from __future__ import annotations

import json
from pathlib import Path

from alignbench.api import Prompt
from alignbench.data.prompts import read_prompts
from tests.helpers.data_sets import refused

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_geneval_lines_keep_everything_they_say(tmp_path: Path) -> None:
    content = "".join(json.dumps(line) + "\n" for line in GENEVAL)
    assert read_prompts(write(tmp_path, "evaluation_metadata.jsonl", content)) == [
        Prompt("a photo of a bench", "single_object", GENEVAL[0]),
        Prompt("a photo of two clocks", "counting", GENEVAL[1]),
    ]


def test_plain_lines_in_order_with_repetitions(tmp_path: Path) -> None:
    for end, mark in (("\n", ""), ("\r\n", "\ufeff")):
        content = mark + end.join(["a fox", "", "a  “fox”\u2028in two", "a fox", "  "]) + end
        prompts = read_prompts(write(tmp_path, "mine.txt", content))
        assert prompts == [Prompt("a fox"), Prompt("a  “fox”\u2028in two"), Prompt("a fox")]


def test_json_list_of_texts_may_repeat(tmp_path: Path) -> None:
    """AR-GRPO's DrawBench list has each prompt five times in shuffled order."""
    texts = ["b", "a", "b", "a"]
    assert [prompt.text for prompt in read_prompts(write(tmp_path, "a.json", json.dumps(texts)))] == texts
    mixed = read_prompts(write(tmp_path, "b.json", json.dumps([GENEVAL[0], "x"])))
    assert mixed == [Prompt("a photo of a bench", "single_object", GENEVAL[0]), Prompt("x")]


def test_tables_of_drawbench_and_parti(tmp_path: Path) -> None:
    content = 'Prompts,Category\r\n"A cat, left of a dog.",Positional\r\nx,"T"\r\n'
    rows = [("A cat, left of a dog.", "Positional"), ("x", "T")]
    assert read_prompts(write(tmp_path, "d.csv", content)) == [
        Prompt(text, tag, {"Prompts": text, "Category": tag}) for text, tag in rows
    ]
    parti = write(tmp_path, "p.tsv", "Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tmeanings\n")
    (prompt,) = read_prompts(parti)
    assert (prompt.text, prompt.tag, prompt.metadata["Challenge"]) == ("bond", "Abstract", "Basic")


WRONG: list[tuple[str, str | bytes, str]] = [
    ("a.txt", b"fine\nb\xffd\n", "a.txt, line 2: not UTF-8"),
    ("a.txt", "\n \n", "a.txt holds no prompts"),
    ("a.jsonl", '{"prompt": "x"}\n\n{"prompt": \n', "a.jsonl, line 3: not JSON"),
    (
        "a.jsonl",
        '{"prompt": "x"}\n{"title": "x"}\n',
        "line 2: no field prompt, prompts, caption, text among title",
    ),
    ("a.jsonl", '{"prompt": 5}\n', "line 1: prompt is not text"),
    ("a.jsonl", '{"prompt": " "}\n', "line 1: the prompt is empty"),
    ("a.json", '{"prompt": "x"}', "no list of prompts but dict"),
    ("a.json", '["x", ""]', "entry 2: the prompt is empty"),
    ("a.json", '["x", 7]', "entry 2: neither"),
    ("a.csv", "title,kind\nx,y\n", "line 2: no field prompt, prompts, caption, text among title, kind"),
    ("a.csv", "Prompts,Category\nx,y,z\n", "line 2: not as many fields"),
    ("a.tsv", "Prompt\tCategory\nx\n", "line 2: not as many fields"),
    ("a.tsv", "Prompt\tCategory\n\ty\n", "line 2: the prompt is empty"),
]


def test_what_is_wrong_is_named_with_its_line(tmp_path: Path) -> None:
    for name, content, message in WRONG:
        assert message in refused(read_prompts, write(tmp_path, name, content))
    for name, content, message in (
        ("half.jsonl", '{"prompt": "a \\ud800 dog"}', "line 1: 'a \\ud800 dog' holds half a character"),
        ("tag.jsonl", '{"prompt": "a dog", "tag": "\\udc00"}', "holds half a character"),
        ("deep.jsonl", "[" * 200_000, "line 1: not JSON: it is nested too deeply"),
        ("stray.tsv", 'Prompt\tCategory\n"a dog\tx\nb cat\ty"\tz\n', "a prompt of several lines"),
    ):
        assert message in refused(read_prompts, write(tmp_path, name, content)), name
    message = refused(read_prompts, tmp_path / "none.txt")
    assert message.startswith("cannot read ") and message.endswith("none.txt: no such file or directory")
