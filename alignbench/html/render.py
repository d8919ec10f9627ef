"""Templates to pages: one file each that loads nothing, whatever the texts in it hold."""

from __future__ import annotations

import base64
import functools
import unicodedata
from pathlib import Path
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup

TEMPLATES = Path(__file__).resolve().parent.parent / "templates" / "html"


def render(template: str, **values: Any) -> str:
    """Return a page; the same values give the same bytes.

    Texts are escaped, and control characters in them (directions of writing among them) are replaced.

    Args:
        template: file name in `alignbench/templates/html`.
        values: what the template names; one that it lacks is an error (jinja2.UndefinedError).
    """
    return _environment().get_template(template).render(**values)


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Return a file's content as an address that a page may hold."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=plain,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"inline": _inline}
    return made


def _inline(text: str) -> Markup:
    """Render a line of Markdown; HTML inside it is shown, not used."""
    return Markup(MarkdownIt("commonmark", {"html": False}).renderInline(plain(text)))


def plain(value: Any) -> Any:
    """Return a text with control characters replaced, directions of writing among them; else the value."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(
        c if c in "\n\t" or not unicodedata.category(c).startswith("C") else "\ufffd" for c in value
    )
