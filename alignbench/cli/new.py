"""`alignbench new`: a skeleton that runs and passes its tests as it is."""

from __future__ import annotations

import importlib.util
import keyword
import re
import string
from importlib import resources
from pathlib import Path

import typer

from alignbench.cli.common import put
from alignbench.cli.options import one_of
from alignbench.errors import UserError, suggest
from alignbench.registry.lookup import Registry

KINDS = ("method",)
FILES = {
    "module.py.tmpl": "{module}.py",
    "card.toml.tmpl": "methods/{name}.toml",
    "recipe.toml.tmpl": "recipes/{name}-llamagen-tiny.toml",
    "test.py.tmpl": "test_{module}.py",
}
"""{template: file of the skeleton}."""


def new(
    kind: str = typer.Argument(help="What to make: method.", autocompletion=one_of(KINDS)),
    name: str = typer.Argument(help="Its name: small letters, digits, - or _."),
    out: Path | None = typer.Option(None, "--out", help="Folder to write to; default: ./NAME."),
) -> None:
    """Write a working method of your own: module, card, recipe and test."""
    if kind not in KINDS:
        raise UserError(f"no skeleton for {kind!r}.{suggest(kind, KINDS)} Skeletons: {', '.join(KINDS)}")
    check_name(name, Registry.default())
    folder = out or Path(name)
    written = write(name, folder)
    command = f"alignbench run --plugin {folder} --method {name} --model llamagen-tiny"
    put(*written, f"run it: {command}", f"test it: python -m pytest {written[-1]}")


def check_name(name: str, registry: Registry) -> None:
    """Make sure that a name can be one of a card and of a module, and that both are free.

    Raises:
        UserError: saying which of these fails.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
        raise UserError(
            f"{name!r} cannot be a method's name: small letters, digits and single - or _ between them",
            fix="alignbench new method my-method",
        )
    module = name.replace("-", "_")
    if keyword.iskeyword(module):
        raise UserError(f"{name!r} is a word of Python", fix=f"alignbench new method {name}-method")
    if name in registry.names("methods"):
        raise UserError(f"a method named {name!r} exists already: alignbench show {name}")
    if importlib.util.find_spec(module) is not None:
        raise UserError(
            f"a module named {module!r} can be imported already and would be taken for the method's",
            fix=f"alignbench new method {name}-method",
        )


def write(name: str, folder: Path) -> list[Path]:
    """Write the skeleton and return its files.

    Raises:
        UserError: one of the files exists, or the folder cannot be written.
    """
    module = name.replace("-", "_")
    title = string.capwords(module.replace("_", " "))
    class_name = title.replace(" ", "")
    words = {"name": name, "module": module, "class_name": class_name, "title": title}
    words["test_file"] = f"test_{module}.py"
    source = resources.files("alignbench") / "templates" / "method"
    paths = {template: folder / path.format(**words) for template, path in FILES.items()}
    for path in paths.values():
        if path.exists():
            raise UserError(f"{path} exists already", fix="choose another folder with --out")
    try:
        for template, path in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            text = string.Template((source / template).read_text(encoding="utf-8")).substitute(words)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    return list(paths.values())
