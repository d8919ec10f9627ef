"""Texts of others, on terminals and in tables: nothing in them may steer either."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

MARKUP = "<>[]`|"
"""Characters that a title may not have: it goes into Markdown tables and HTML pages."""


def plain_line(text: str) -> str:
    """Return a title; raises ValueError: more than one line, control characters, or markup."""
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
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)


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
    return re.sub(r"([\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", _one_line(text))


def markdown_code(text: str) -> str:
    """Return a code span that shows a text as it is: its fence is longer than any inside."""
    line = _one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if len(fence) > 1 else f"`{line}`"


LATEX = {character: "\\" + character for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "×": r"$\times$", "–": "--", "†": r"\dag{}",
    "‡": r"\ddag{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "≈": r"$\approx$",
    "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$",
}  # fmt: skip
"""The triangles are of amssymb."""


def latex(text: str) -> str:
    """Return LaTeX that shows a text as it is, on one line; small Greek letters become mathematics."""
    return "".join(LATEX.get(character) or _greek(character) for character in _one_line(text))


def _greek(character: str) -> str:
    name = unicodedata.name(character, "").removeprefix("GREEK SMALL LETTER ").lower()
    name = name.replace("lamda", "lambda")  # Unicode's spelling
    return f"$\\{name}$" if "α" <= character <= "ω" and character not in "ος" else character


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return "".join("\ufffd" if unicodedata.category(c).startswith("C") else c for c in line)
