"""`alignbench reference`: make a reference file of the ADM form from real images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignbench.cli.common import put
from alignbench.cli.options import changes
from alignbench.config.settings import known_options, values_of
from alignbench.errors import UserError
from alignbench.progress import Progress
from alignbench.registry.lookup import Registry

WEIGHTS = "inception-2015-12-05"


def reference(
    *,
    images: Path = typer.Argument(help="Folder of real images, at any depth, or an ADM .npz file."),
    out: Path = typer.Option(..., "--out", help="The .npz file to write."),
    image_size: int = typer.Option(256, "--image-size", min=1, help="Side; images are cropped as ADM does."),
    limit: int = typer.Option(0, "--limit", min=0, help="Use a fixed random subset of this size; 0: all."),
    kept: int = typer.Option(10_000, "--images", min=1, help="Images kept for precision and recall."),
    seed: int = typer.Option(0, "--seed", min=0, help="Of both random choices."),
    batch: int = typer.Option(64, "--batch", min=1, help="Images the network sees at once."),
    workers: int = typer.Option(2, "--workers", min=0, help="Threads that decode."),
    assignments: Annotated[list[str], changes(f"assets.{WEIGHTS}=PATH for other weights.")],
) -> None:
    """Measure real images with the Inception network and write a reference to score samples against."""
    from alignbench.hub.locate import locate_asset
    from alignbench.hub.verify import verify_asset

    registry = Registry.default()
    key = f"assets.{WEIGHTS}"
    paths = values_of(assignments, {key: known_options(registry)[key]})
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: a reference is an .npz file", fix=f"--out {out}.npz")
    card = registry.asset(WEIGHTS)
    file = verify_asset(locate_asset(WEIGHTS, card, str(paths.get(key, ""))))

    import torch

    from alignbench.evaluation.reference import write_reference
    from alignbench.nets import inception
    from alignbench.samples.external import open_samples

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = inception.load(file.path, device)
    source = open_samples(images, image_size=image_size, fit="crop", limit=limit, seed=seed, workers=workers)
    progress = Progress()
    for note in source.notes:
        progress.say(note)
    with progress.stage("measure", len(source)) as stage:
        write_reference(
            source, out, net=net, network=file.sha256, images=kept, seed=seed, batch=batch, stage=stage
        )
    put(f"{out}: moments of {len(source):,} images, {min(kept, len(source)):,} of them inside")
