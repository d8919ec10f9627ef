"""Declarations of the options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


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
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RecordJson = Annotated[bool, typer.Option("--json", help="Print the plan or the record as JSON.")]
