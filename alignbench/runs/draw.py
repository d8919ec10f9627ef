"""Images for the eye: PNG files and a grid, from a model or from a run's export."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from alignbench import randomness
from alignbench.api import ClassLabels, Condition, Sampling
from alignbench.backbones.load import load_export
from alignbench.config.plan import Plan
from alignbench.data.prompts import whole_text
from alignbench.errors import UserError
from alignbench.samples import grid
from alignbench.samples.generated import check_probabilities
from alignbench.samples.pixels import to_uint8
from alignbench.training.parallel import choose_threads
from alignbench.training.setup import build_model

BATCH = 64


@torch.no_grad()
def draw(
    plan: Plan,
    *,
    run: Path | None,
    number: int,
    seed: int,
    classes: Sequence[int],
    prompts: Sequence[str],
    sampling: Sampling,
) -> torch.Tensor:
    """Draw images: [number, 3, H, W] uint8 on the CPU; image i depends on (seed, i) alone.

    Args:
        run: run folder whose export replaces the model's weights, or None.
        classes: class ids, repeated in turn; empty for all. For class-conditional models.
        prompts: repeated in turn. For text-conditional models.

    Raises:
        UserError: class ids the model does not have, prompts for classes or the reverse, or a run without an
            export.
        RunFailed: the model's probabilities are not numbers.
    """
    wanted = list(itertools.islice(itertools.cycle(_wanted(plan, classes, prompts)), number))
    choose_threads(plan.model.policy.parameters)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = build_model(plan, device)
    if run is not None:
        load_export(run, backbone)
    images = []
    for start in range(0, number, BATCH):
        part = wanted[start : start + BATCH]
        ids = range(start, start + len(part))
        if plan.model.condition == "text":
            condition: Condition = backbone.text_condition(part)
        else:
            condition = ClassLabels(torch.tensor(part, device=device))
        uniforms = randomness.uniforms(seed, "sample-token", 0, ids, (backbone.num_tokens,))
        rollout = backbone.generate(condition, torch.from_numpy(uniforms).to(device), sampling)
        check_probabilities(rollout)
        images.append(to_uint8(backbone.tokenizer.decode(rollout.tokens, backbone.grid)).cpu())
    return torch.cat(images)


def _wanted(plan: Plan, classes: Sequence[int], prompts: Sequence[str]) -> Sequence[Any]:
    """Return the class ids or the prompts that are drawn in turn."""
    if plan.model.condition == "text":
        if classes or not prompts:
            raise UserError(f"{plan.config.model} draws what a text asks for", fix='--prompt "…", repeatable')
        return [whole_text("--prompt", prompt) for prompt in prompts]
    if prompts:
        raise UserError(f"{plan.config.model} draws classes, not texts", fix="--classes 3,7")
    count = plan.model.num_classes or 1
    wrong = [label for label in classes if not 0 <= label < count]
    if wrong:
        raise UserError(f"--classes: the model has classes 0 to {count - 1}, not {wrong[0]}")
    return classes or range(count)


def write_images(images: Sequence[Image.Image], title: str, out: Path) -> Path:
    """Write `00000.png` … and `grid.png` into a folder; return the grid's path."""
    out.mkdir(parents=True, exist_ok=True)
    for image_id, image in enumerate(images):
        image.save(out / f"{image_id:05d}.png")
    path = out / "grid.png"
    pixels = torch.from_numpy(np.stack([np.array(image) for image in images])).permute(0, 3, 1, 2)
    grid.write_grid(path, [(title, pixels)])
    return path


def refuse_other_images(out: Path, number: int) -> None:
    """Make sure that new images replace all of an earlier call.

    Raises:
        UserError: the folder holds more than would be replaced.
    """
    numbered = [path for path in out.glob("*.png") if path.stem.isdigit()]
    others = sorted(path.name for path in numbered if int(path.stem) >= number)
    if others:
        raise UserError(
            f"{out} holds {len(others)} images that {number} new ones would not replace, e.g. {others[0]}",
            fix="remove them, or choose another folder with --out",
        )
