"""A run's report as one page: what `report.md` says, its pictures inside, and the whole configuration."""

from __future__ import annotations

from collections.abc import Mapping

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from alignbench.html.render import render
from alignbench.leaderboard.report import title
from alignbench.record import RunRecord

FILE_NAME = "report.html"


def page(record: RunRecord, text: str, pictures: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        text: of `report.md`.
        pictures: {file name in it: an address that a page may hold}; others are left out.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("table_open", lambda *_: '<div class="scroll" tabindex="0"><table>')
    parser.add_render_rule("table_close", lambda *_: "</table></div>")
    tokens = parser.parse(text)[3:]  # without the heading: it is the page's
    for token in tokens:
        token.children = [x for x in token.children or [] if x.type != "image" or _filled(x, pictures)]
    body = Markup(parser.renderer.render(tokens, parser.options, {}))
    values = record.config.get("values")
    config = {key: value for key, value in record.config.items() if key != "values"}
    config |= values if isinstance(values, dict) else {}
    return render("report.html", title=title(record), body=body, config=config)


def _filled(image: Token, pictures: Mapping[str, str]) -> bool:
    """Put a picture into its place; False where it is not there."""
    address = pictures.get(str(image.attrs["src"]))
    if address is not None:
        image.attrs["src"] = address
    return address is not None
