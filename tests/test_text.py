"""Texts of others steer neither a terminal nor a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignbench import record
from alignbench.errors import UserError
from alignbench.text import made_plain, plain_line, visible
from tests.conftest import DATA
from tests.helpers.command import alignbench

HOSTILE = ["two\nlines", "\x1b[31mred", "<script>alert(1)</script>", "[x](javascript:alert(1))", "a|b", " "]


@pytest.mark.parametrize("title", HOSTILE)
def test_titles_with_markup_are_refused_wherever_they_come_from(title: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        plain_line(title)
    assert title == " " or plain_line(made_plain(title))
    content = json.loads(next((DATA / "records").glob("vapi-*.json")).read_text(encoding="utf-8"))
    content["model"]["title"] = title
    (tmp_path / "run.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"is not a run record: model\.title"):
        record.read(tmp_path)


def test_escape_sequences_in_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    assert visible("a\x1b[2Jb\x9bc\td\n") == "a\ufffd[2Jb\ufffdc\td\n"
    done = alignbench("evaluate", "--samples", tmp_path / "a\x1b[31mb", "--protocol", "digits8")
    assert done.returncode == 2 and "\x1b" not in done.stderr and "does not exist" in done.stderr
