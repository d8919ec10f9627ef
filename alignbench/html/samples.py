"""The worst and the best images of a log of samples as one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignbench.html.render import data_uri, plain, render

FILE_NAME = "index.html"


def page(
    sets: Sequence[Mapping[str, Any]], columns: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]
) -> str:
    """Return the page; the same sets give the same bytes.

    Args:
        sets: one for each subject and setting: `subject`, `title`, `setting`, `files`, number of `images`,
            `pictures` (`id`, `seed`, `asked`, `group`; `src` and `original`, (type, file) each, or None;
            `values`, one for each column),
            `worst` and `best` ({number of column: numbers of pictures}), `tied`.
        columns: {score: what it means}.
        about: `run`, `protocol`, `digest`; `wanted` and `shown` images at each end; `left_out` ({reward:
            why}); `small` (whether pictures have their own size).
    """
    listed = [{"name": name, "direction": "", "doc": "", **fact} for name, fact in columns.items()]
    data = {"columns": listed, "sets": [{**one, "pictures": _pictures(one["pictures"])} for one in sets]}
    title = f"Samples of {about['run']}"
    return render("samples.html", title=title, data=_plain(data), columns=listed, sets=sets, about=about)


def _pictures(pictures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**picture, **{key: data_uri(*picture[key][::-1]) for key in ("src", "original") if picture[key]}}
        for picture in pictures
    ]


def _plain(value: Any) -> Any:
    """Replace control characters in all texts: a script shows them, which `render` does not see."""
    if isinstance(value, Mapping):
        return {plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return plain(value)
