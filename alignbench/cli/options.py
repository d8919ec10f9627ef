"""Declarations of the options that several commands share."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from alignbench.commands import words
from alignbench.config.following import TRACKERS
from alignbench.errors import UserError

CLASS_LISTS = {"va-pi": (21, 167, 285, 538, 856, 933, 953, 997)}
"""{name: class ids}; va-pi: ImageNet's classes in Figures 8-15 of arXiv:2512.19680."""


@contextlib.contextmanager
def words_of_bash() -> Iterator[None]:
    """Let what completes inside the block see whole words: bash splits them at `=`, and replaces the part
    behind it alone."""
    line, number = os.environ.get("COMP_WORDS", ""), os.environ.get("COMP_CWORD", "")
    if os.environ.get("_ALIGNBENCH_COMPLETE") != "complete_bash" or not number.isdigit():
        yield
        return
    split = line.split("\n" if "\n" in line else " ")
    made, at, kept = words.joined(split, int(number))
    os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(made), str(at)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    finally:
        sys.stdout.writelines(found.removeprefix(kept) for found in said.getvalue().splitlines(keepends=True))


def completed(give: Callable[[words.Line, str, str], Iterable[str]]) -> Any:
    """Make a completion of a function of the line, the word so far and the command; it never fails, and typer
    keeps what fits."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        try:
            return list(give(ctx.params, incomplete, ctx.info_name or ""))
        except Exception:
            return []

    return complete


def card_names(*kinds: str) -> Any:
    """Complete names of cards."""
    return completed(lambda line, *_: words.names(line, *kinds))


MODELS, METHODS = card_names("models"), card_names("methods")
DATA, RECIPES, PROTOCOLS = card_names("datasets"), card_names("recipes"), card_names("protocols")
SET = completed(words.assignments)
METRICS = completed(lambda line, *_: words.metrics(line))


def one_of(given: Iterable[str]) -> Any:
    """Complete fixed words."""
    return completed(lambda *_: given)


def many(name: str, help: str, metavar: str | None = None, complete: Any = None) -> Any:
    """Declare an option that may be given several times, by default never."""
    return typer.Option(
        name, help=help, metavar=metavar, default_factory=list, show_default=False, autocompletion=complete
    )


def changes(help: str) -> Any:
    """Declare `--set`."""
    return many("--set", help, "KEY=VALUE", SET)


Plugins = Annotated[
    list[Path], many("--plugin", "Python file whose classes carry cards, or a folder of cards; repeatable.")
]
Protocol = Annotated[
    str | None,
    typer.Option(
        "--protocol", help="Protocol; default: the model's.", autocompletion=card_names("protocols")
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; default: runs/<id>.")]
Recipe = Annotated[
    str | None,
    typer.Option("--recipe", help="Recipe; default: the one for method and model.", autocompletion=RECIPES),
]
Trackers = Annotated[list[str], many("--track", f"Also log to {', '.join(TRACKERS)}; repeatable.")]
LogSamples = Annotated[
    bool, typer.Option("--log-samples", help="Also log every scored image with its numbers, and a page.")
]
Shown = Annotated[
    int, typer.Option("--log-shown", min=1, help="Worst and best images of each score on that page.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]
GridEvery = Annotated[
    int, typer.Option("--grid-every", min=0, help="Steps between sample grids while training; 0: none.")
]
Nproc = Annotated[
    int | None,
    typer.Option("--nproc", min=1, help="Processes on this machine, one for each GPU; through torchrun."),
]
Nodes = Annotated[
    int | None,
    typer.Option("--nodes", min=1, help="With --dry-run: what a run would need and take on so many nodes."),
]
Bench = Annotated[
    Path | None,
    typer.Option("--bench", help="With --dry-run and --nproc: times of one device, by bench --json."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RecordJson = Annotated[bool, typer.Option("--json", help="Print the plan or the record as JSON.")]


def class_ids(text: str) -> list[int]:
    """Read `--classes`: ids, or one of `CLASS_LISTS`; raises UserError: neither."""
    try:
        return list(CLASS_LISTS.get(text) or (int(part) for part in text.split(",") if text))
    except ValueError:
        raise UserError(
            f"--classes {text!r} is not of the form 3,7", fix=f"or {', '.join(CLASS_LISTS)}"
        ) from None
