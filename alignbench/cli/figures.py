"""`alignbench figures`: runs to pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignbench.cli.common import leaving_out, put
from alignbench.cli.options import CLASS_LISTS, METRICS, class_ids, many, one_of
from alignbench.commands import drawing
from alignbench.data.prompts import read_prompts
from alignbench.figures.choice import ImageChoice


def figures(
    *,
    runs: list[Path] = typer.Argument(..., help="Run folders, run.json files, or folders of runs."),
    out: Path = typer.Option(Path("figures"), "--out", help="Folder for pictures, numbers and captions."),
    kinds: Annotated[
        list[str],
        many(
            "--kind",
            f"{', '.join(drawing.KINDS)}; repeatable; default: all possible.",
            complete=one_of(drawing.KINDS),
        ),
    ],
    setting: str = typer.Option("", "--setting", help="Sampling setting of pictures that show one."),
    metrics: Annotated[list[str], many("--metric", "Metric over an option; repeatable.", complete=METRICS)],
    images: int = typer.Option(400, "--images", min=8, help="From each model, for statistics of images."),
    seed: int = typer.Option(0, "--seed", help="Sampling seed of images."),
    classes: str = typer.Option("", "--classes", help=f"Class ids, e.g. 3,7, or {', '.join(CLASS_LISTS)}."),
    prompts: Annotated[list[str], many("--prompt", "Text to draw; repeatable.")],
    file: Path | None = typer.Option(None, "--prompts", help="File of texts to draw."),
) -> None:
    """Draw learning curves, trade-offs, tasks and samples, each with its numbers."""
    texts = [*prompts, *(prompt.text for prompt in (read_prompts(file) if file else ()))]
    choice = ImageChoice(images=images, seed=seed, classes=class_ids(classes), prompts=texts)
    with leaving_out() as tell:
        put(
            *drawing.figures(
                runs, out, kinds=kinds, setting=setting, metrics=metrics, images=choice, tell=tell
            )
        )
