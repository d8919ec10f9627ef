"""Texts of others, on terminals and in tables: nothing in them may steer either."""

from __future__ import annotations

import json
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

MARKUP = "<>[]`|"
"""Characters that a title may not have: it goes into Markdown tables and HTML pages."""
LONGEST = 300
"""Characters of a title: a file's name, which may be one, has at most 255."""
DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Bidirectional classes of the characters that reorder what stands around them."""
FORMULA = "=+-@"
"""A field of a CSV file that begins so is run by spreadsheets."""


def plain_line(text: str) -> str:
    """Return a title; raises ValueError: too long, more than one line, control characters, or markup."""
    if len(text) > LONGEST:
        raise ValueError(f"{text[:40]!r}… has {len(text):,} characters, a title at most {LONGEST}")
    if not text.strip() or any(unicodedata.category(character).startswith("C") for character in text):
        raise ValueError(f"{text!r} is not one line of text")
    if found := next((character for character in text if character in MARKUP), ""):
        raise ValueError(f"{text!r} holds {found!r}, which tables would take for markup")
    return text


def made_plain(text: str) -> str:
    """Return what may be a title, e.g. of a file's name."""
    return "".join("-" if c in MARKUP or unicodedata.category(c).startswith("C") else c for c in text)


def visible(text: str) -> str:
    """Replace control characters but line breaks and tabs: texts of others must not steer a terminal."""
    return "".join(c if c in "\n\t" or not _steers(c) else "\ufffd" for c in text)


def visible_json(text: str) -> str:
    """Escape in JSON what would steer a terminal: readers get the same values."""
    return "".join(json.dumps(c)[1:-1] if c not in "\n\t" and _steers(c) else c for c in text)


def _steers(character: str) -> bool:
    return unicodedata.category(character) == "Cc" or unicodedata.bidirectional(character) in DIRECTIONS


def field(value: object) -> object:
    """Return a field of a CSV file: a text that a spreadsheet would run gets a quotation mark in front."""
    return f"'{value}" if isinstance(value, str) and value.lstrip()[:1] in tuple(FORMULA) else value


def cut(text: str, most: int) -> str:
    """Return a text of at most so many characters; an ellipsis stands for the rest."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


NO_BREAK = "\u00a0"
"""A space at which `wrapped` does not break."""


def wrapped(text: str, width: int, indent: str = "", first: str | None = None) -> list[str]:
    """Break a text at spaces; a path or a command is never broken inside a word, but may be too wide.

    Args:
        width: of a line, in characters.
        indent: before every line.
        first: before the first line instead.
    """
    lines = textwrap.wrap(
        text,
        max(width, len(indent) + 16),
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(NO_BREAK, " ") for line in lines]


def aligned(
    headings: Sequence[str], rows: Iterable[Sequence[str]], width: int, right: Iterable[str] = ()
) -> list[str]:
    """Lay a table out; only its last column is wrapped, every other one is kept whole.

    Args:
        width: of a line, in characters.
        right: headings of the columns that are aligned right.

    Returns:
        The headings and the rows, one text each, with line breaks inside where a row is wrapped.
    """
    table = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    marks = [">" if heading in set(right) else "<" for heading in headings]
    wide = marks[-1] == ">" and sum(widths) + 2 * len(widths) - 2 > width
    gap = " " if wide else "  "
    lines = []
    for row in table:
        texts = [f"{x:{mark}{size}}" for x, mark, size in zip(row, marks, widths, strict=True)]
        start = gap.join([*texts[:-1], ""])
        if marks[-1] == ">" or not row[-1]:
            lines.append((start + texts[-1]).rstrip())
        else:
            lines.append("\n".join(wrapped(row[-1], width, " " * len(start), start)))
    return lines


def class_line(names: Sequence[str]) -> str:
    """Say how many classes there are, the first two and the last."""
    shown = [f"{number} = {name}" for number, name in enumerate(names)]
    gap = ["…"] if len(names) > 3 else []
    return f"{len(names)} classes: {', '.join(shown[:2] + gap + shown[2:][-1:])}"


def markdown(text: str) -> str:
    """Return Markdown that shows a text as it is, on one line, whatever it holds."""
    # An underscore inside a word means nothing and reads better as it is.
    shown = re.sub(r"([\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", one_line(text))
    return re.sub(r"^(\d*)([-+#.)])(?=#*(?:\s|$))", r"\1\\\2", shown)  # headings, lists


def markdown_code(text: str) -> str:
    """Return a code span that shows a text as it is: its fence is longer than any inside."""
    line = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if len(fence) > 1 else f"`{line}`"


def fenced(text: str) -> list[str]:
    """Return the lines of a code block that shows a text as it is: its fence is longer than any inside."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [fence, visible(text), fence]


LATEX = {character: "\\" + character for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "×": r"$\times$", "–": "--", "†": r"\dag{}",
    "‡": r"\ddag{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "≈": r"$\approx$",
    "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$",
}  # fmt: skip
"""The triangles are of amssymb."""


def latex(text: str) -> str:
    """Return LaTeX that shows a text as it is, on one line; small Greek letters become mathematics."""
    return "".join(LATEX.get(character) or _greek(character) for character in one_line(text))


def _greek(character: str) -> str:
    name = unicodedata.name(character, "").removeprefix("GREEK SMALL LETTER ").lower()
    name = name.replace("lamda", "lambda")  # Unicode's spelling
    return f"$\\{name}$" if "α" <= character <= "ω" and character not in "ος" else character


def one_line(text: str) -> str:
    """Return a text on one line, without control characters."""
    line = " ".join(text.split())
    return "".join("\ufffd" if unicodedata.category(c).startswith("C") else c for c in line)
