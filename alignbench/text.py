"""Texts of others, on terminals and in tables: nothing in them may steer either."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

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


def class_line(names: Sequence[str]) -> str:
    """Say how many classes there are, the first two and the last."""
    shown = [f"{number} = {name}" for number, name in enumerate(names)]
    gap = ["…"] if len(names) > 3 else []
    return f"{len(names)} classes: {', '.join(shown[:2] + gap + shown[2:][-1:])}"
