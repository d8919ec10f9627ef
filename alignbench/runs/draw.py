"""Images for the eye: PNG files and a grid, from a model or from a run's export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from alignbench import randomness
from alignbench.api import Backbone, ClassLabels, Sampling
from alignbench.backbones.load import load_export
from alignbench.config.plan import Plan
from alignbench.errors import UserError
from alignbench.samples import grid
from alignbench.samples.generated import check_probabilities
from alignbench.samples.pixels import to_uint8
from alignbench.training.parallel import choose_threads, local_device
from alignbench.training.setup import build_model

BATCH = 64


def draw(
    plan: Plan,
    *,
    run: Path | None,
    number: int,
    seed: int,
    classes: str,
    prompts: Sequence[str],
    sampling: Sampling,
    out: Path,
) -> Path:
    """Draw images into a folder and return the grid's path.

    Args:
        plan: names the model and its weights.
        run: run folder whose export replaces the model's weights, or None.
        number: how many images.
        seed: of the random numbers; image i depends on (seed, i) alone.
        classes: comma-separated class ids, repeated in turn; empty for all. For class-conditional models.
        prompts: repeated in turn. For text-conditional models.
        sampling: how to draw.
        out: folder for `00000.png` … and `grid.png`.

    Raises:
        UserError: class ids the model does not have, prompts for classes or the reverse, a run without an
            export, or more images of an earlier call in the folder than would be replaced.
        RunFailed: the model's probabilities are not numbers.
    """
    wanted = _wanted(plan, classes, prompts, number)
    choose_threads(plan.model.policy.parameters)
    device = local_device()
    backbone = build_model(plan, device)
    if run is not None:
        load_export(run, backbone)
    others = sorted(
        path.name for path in out.glob("*.png") if path.stem.isdigit() and int(path.stem) >= number
    )
    if others:
        raise UserError(
            f"{out} holds {len(others)} images that {number} new ones would not replace, e.g. {others[0]}",
            fix="remove them, or choose another folder with --out",
        )
    chunks = [range(start, min(start + BATCH, number)) for start in range(0, number, BATCH)]
    images = torch.cat([_images(backbone, wanted, seed, ids, sampling, device) for ids in chunks])
    out.mkdir(parents=True, exist_ok=True)
    for image_id, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(out / f"{image_id:05d}.png")
    path = out / "grid.png"
    grid.write_grid(path, [(f"{plan.config.model}, seed {seed}", images)])
    return path


def _wanted(plan: Plan, classes: str, prompts: Sequence[str], number: int) -> list[int] | list[str]:
    """Return the class id of each image, or its prompt."""
    by_text = plan.model.condition == "text"
    if by_text and (classes or not prompts):
        raise UserError(f"{plan.config.model} draws what a text asks for", fix='--prompt "…", repeatable')
    if prompts and not by_text:
        raise UserError(f"{plan.config.model} draws classes, not texts", fix="--classes 3,7")
    if by_text:
        return [prompts[image_id % len(prompts)] for image_id in range(number)]
    return _labels(classes, plan.model.num_classes or 1, number)


def _labels(classes: str, num_classes: int, number: int) -> list[int]:
    try:
        chosen = [int(text) for text in classes.split(",")] if classes else list(range(num_classes))
    except ValueError:
        raise UserError(f"--classes {classes!r} is not of the form 3,7") from None
    wrong = [label for label in chosen if not 0 <= label < num_classes]
    if wrong:
        raise UserError(f"--classes: the model has classes 0 to {num_classes - 1}, not {wrong[0]}")
    return [chosen[image_id % len(chosen)] for image_id in range(number)]


@torch.no_grad()
def _images(
    backbone: Backbone,
    wanted: Sequence[int] | Sequence[str],
    seed: int,
    ids: range,
    sampling: Sampling,
    device: torch.device,
) -> torch.Tensor:
    uniforms = randomness.uniforms(seed, "sample-token", 0, ids, (backbone.num_tokens,))
    chosen = [wanted[i] for i in ids]
    texts = [text for text in chosen if isinstance(text, str)]
    condition = (
        backbone.text_condition(texts)
        if texts
        else ClassLabels(torch.from_numpy(np.asarray(chosen)).to(device))
    )
    rollout = backbone.generate(condition, torch.from_numpy(uniforms).to(device), sampling)
    check_probabilities(rollout)
    return to_uint8(backbone.tokenizer.decode(rollout.tokens, backbone.grid)).cpu()
