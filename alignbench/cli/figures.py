"""`alignbench figures`: runs to pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignbench.cli.common import put
from alignbench.cli.options import many
from alignbench.commands import drawing


def figures(
    *,
    runs: list[Path] = typer.Argument(..., help="Run folders, run.json files, or folders of runs."),
    out: Path = typer.Option(Path("figures"), "--out", help="Folder for pictures, numbers and captions."),
    kinds: Annotated[
        list[str], many("--kind", f"{', '.join(drawing.KINDS)}; repeatable; default: all possible.")
    ],
    setting: str = typer.Option("", "--setting", help="Sampling setting of pictures that show one."),
    metrics: Annotated[list[str], many("--metric", "Metric over an option; repeatable.")],
) -> None:
    """Draw learning curves, trade-offs, tasks and samples, each with its numbers."""
    put(*drawing.figures(runs, out, kinds=kinds, setting=setting, metrics=metrics))
