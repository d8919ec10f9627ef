"""Declarations of the options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alignbench.errors import UserError

CLASS_LISTS = {"va-pi": (21, 167, 285, 538, 856, 933, 953, 997)}
"""{name: class ids}; va-pi: ImageNet's classes in Figures 8-15 of arXiv:2512.19680."""


def many(name: str, help: str, metavar: str | None = None) -> Any:
    """Declare an option that may be given several times, by default never."""
    return typer.Option(name, help=help, metavar=metavar, default_factory=list, show_default=False)


def changes(help: str) -> Any:
    """Declare `--set`."""
    return many("--set", help, "KEY=VALUE")


Plugins = Annotated[
    list[Path], many("--plugin", "Python file whose classes carry cards, or a folder of cards; repeatable.")
]
Protocol = Annotated[str | None, typer.Option("--protocol", help="Protocol; default: the model's.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; default: runs/<id>.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]
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
