"""Prompt files: GenEval's JSONL, plain lines, JSON lists, tables with a prompt column."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignbench.api import Prompt
from alignbench.errors import UserError
from alignbench.files import parse_json

TEXT_NAMES = ("prompt", "prompts", "caption", "text")
"""Column or field of the text, in any case, the first that is there: DrawBench says Prompts, PartiPrompts
Prompt, GenEval prompt, COCO caption."""
TAG_NAMES = ("tag", "category")


def read_prompts(path: Path) -> list[Prompt]:
    """Read a prompt file, in its order, repetitions kept.

    The form goes by the name's end: `.jsonl` (an object or a string a line), `.json` (a list of strings or of
    objects, or COCO's captions, an object with a list of `annotations`), `.csv` and `.tsv` (with a header);
    anything else is one prompt a line. An object or row needs one of `TEXT_NAMES`; `tag` or `category`
    becomes the tag, and all of it is kept as metadata. Texts are taken as they stand. Blank lines separate
    nothing and are skipped; an entry whose prompt is blank is an error, since images made from it would be
    counted.

    Raises:
        UserError: no such file, not UTF-8, broken JSON or table, no prompts; names file and line.
    """
    prompts = [_prompt(where, entry) for where, entry in _entries(path, _text(path))]
    if not prompts:
        raise UserError(f"{path} holds no prompts")
    return prompts


def _text(path: Path) -> str:
    """Read UTF-8, with or without a byte-order mark."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8", fix="save the file as UTF-8") from error


def _entries(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Yield what a file holds, each with where it stands."""
    form = path.suffix.lower()
    if form == ".json":
        entries = _parse(str(path), text)
        entries = entries.get("annotations", entries) if isinstance(entries, dict) else entries
        if not isinstance(entries, list):
            raise UserError(f"{path} holds no list of prompts but {type(entries).__name__}")
        yield from ((f"{path}, entry {number}", entry) for number, entry in enumerate(entries, start=1))
        return
    if form in (".csv", ".tsv"):
        yield from _rows(path, text, "\t" if form == ".tsv" else ",")
        return
    # Not splitlines: a prompt may hold one of the rarer separators of Unicode.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _parse(where, line) if form == ".jsonl" else line.removesuffix("\r")


def _rows(path: Path, text: str, separator: str) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{where}: not as many fields as the header has")
            if separator == "\t" and any("\n" in value for value in row.values()):
                raise UserError(
                    f"{where}: a prompt of several lines",
                    fix='close the quotation mark that an earlier row opens, or write it as """"',
                )
            yield where, row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error


def _parse(where: str, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}") from error


def _prompt(where: str, entry: Any) -> Prompt:
    if isinstance(entry, str):
        return Prompt(_checked(where, entry))
    if not isinstance(entry, dict):
        raise UserError(f"{where}: neither a text nor an object with a prompt")
    names = {name.strip().lower(): name for name in entry}
    column = next((names[name] for name in TEXT_NAMES if name in names), None)
    if column is None:
        raise UserError(f"{where}: no field {', '.join(TEXT_NAMES)} among {', '.join(entry)}")
    text = entry[column]
    if not isinstance(text, str):
        raise UserError(f"{where}: {column} is not text")
    tag = next((str(entry[names[name]]) for name in TAG_NAMES if name in names), "")
    return Prompt(_checked(where, text), tag=whole_text(where, tag), metadata=dict(entry))


def _checked(where: str, text: str) -> str:
    if not text.strip():
        raise UserError(f"{where}: the prompt is empty")
    return whole_text(where, text)


def whole_text(where: str, text: str) -> str:
    """Return the text, or raise UserError: it holds halves of characters, as JSON can and no file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: {text!r} holds half a character", fix="write the text anew") from None
    return text
