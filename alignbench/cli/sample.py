"""`alignbench sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignbench.cli.common import put
from alignbench.cli.options import MODELS, changes, class_ids, many
from alignbench.commands import models


def sample(
    *,
    model: str = typer.Option(
        ..., "--model", help="Model to sample from; see: list models.", autocompletion=MODELS
    ),
    run: Path | None = typer.Option(None, "--run", help="Use the weights a finished run exported."),
    number: int = typer.Option(40, "--number", "-n", min=1, help="Images."),
    seed: int = typer.Option(0, "--seed", help="Sampling seed; image i depends on nothing else."),
    labels: str = typer.Option("", "--classes", help="Class ids, e.g. 3,7; default: all in turn."),
    prompts: Annotated[list[str], many("--prompt", "Text to draw; repeatable, all in turn.")],
    temperature: float = typer.Option(1.0, "--temperature", min=0.01),
    top_k: int = typer.Option(0, "--top-k", min=0),
    top_p: float = typer.Option(1.0, "--top-p", min=0.0, max=1.0),
    cfg_scale: float = typer.Option(1.0, "--cfg", min=0.0, help="Guidance; 1: off."),
    assignments: Annotated[list[str], changes("model.* keys; repeatable.")],
    out: Path = typer.Option(Path("samples"), "--out", help="Folder for PNG files and grid.png."),
) -> None:
    """Draw images from a model, or from what a run made of it, into PNG files and a grid."""
    classes = class_ids(labels)
    from alignbench.api import Sampling
    from alignbench.runs.draw import refuse_other_images, write_images

    refuse_other_images(out, number)
    images = models.sample(
        model,
        number,
        run=run,
        classes=classes,
        prompts=prompts,
        seed=seed,
        setting=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, cfg_scale=cfg_scale),
        options=assignments,
    )
    written = write_images(images, f"{model}, seed {seed}", out)
    put(f"{number} images in {out}, all of them in {written}")
