"""Images for the eye: PNG files and a grid, from a model or from a run's export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from alignbench import randomness
from alignbench.api import Backbone, ClassLabels, Condition, Sampling
from alignbench.backbones.load import load_export
from alignbench.config.plan import Plan
from alignbench.errors import UserError
from alignbench.samples import grid
from alignbench.samples.generated import check_probabilities
from alignbench.samples.pixels import to_uint8
from alignbench.training.parallel import choose_threads
from alignbench.training.setup import build_model

BATCH = 64


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
    """Draw images: [number, 3, H, W] uint8 on the CPU.

    Args:
        plan: names the model and its weights.
        run: run folder whose export replaces the model's weights, or None.
        number: how many images.
        seed: of the random numbers; image i depends on (seed, i) alone.
        classes: class ids, repeated in turn; empty for all. For class-conditional models.
        prompts: repeated in turn. For text-conditional models.
        sampling: how to draw.

    Raises:
        UserError: class ids the model does not have, prompts for classes or the reverse, or a run without an
            export.
        RunFailed: the model's probabilities are not numbers.
    """
    wanted = _wanted(plan, classes, prompts, number)
    choose_threads(plan.model.policy.parameters)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = build_model(plan, device)
    if run is not None:
        load_export(run, backbone)
    return torch.cat([_images(backbone, wanted, seed, ids, sampling, device) for ids in _chunks(number)])


def write_images(images: Sequence[Image.Image], title: str, out: Path) -> Path:
    """Write `00000.png` … and `grid.png` into a folder; return the grid's path."""
    out.mkdir(parents=True, exist_ok=True)
    for image_id, image in enumerate(images):
        image.save(out / f"{image_id:05d}.png")
    path = out / "grid.png"
    grid.write_grid(
        path, [(title, torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images]))]
    )
    return path


def refuse_other_images(out: Path, number: int) -> None:
    """Make sure that new images replace all of an earlier call.

    Raises:
        UserError: the folder holds more than would be replaced.
    """
    others = sorted(
        path.name for path in out.glob("*.png") if path.stem.isdigit() and int(path.stem) >= number
    )
    if others:
        raise UserError(
            f"{out} holds {len(others)} images that {number} new ones would not replace, e.g. {others[0]}",
            fix="remove them, or choose another folder with --out",
        )


def _chunks(number: int) -> list[range]:
    return [range(start, min(start + BATCH, number)) for start in range(0, number, BATCH)]


def _wanted(plan: Plan, classes: Sequence[int], prompts: Sequence[str], number: int) -> list[int] | list[str]:
    """Return the class id of each image, or its prompt."""
    by_text = plan.model.condition == "text"
    if by_text and (classes or not prompts):
        raise UserError(f"{plan.config.model} draws what a text asks for", fix='--prompt "…", repeatable')
    if prompts and not by_text:
        raise UserError(f"{plan.config.model} draws classes, not texts", fix="--classes 3,7")
    if by_text:
        return [prompts[image_id % len(prompts)] for image_id in range(number)]
    count = plan.model.num_classes or 1
    wrong = [label for label in classes if not 0 <= label < count]
    if wrong:
        raise UserError(f"--classes: the model has classes 0 to {count - 1}, not {wrong[0]}")
    chosen = classes or range(count)
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
    rollout = backbone.generate(
        _condition(backbone, [wanted[i] for i in ids], device),
        torch.from_numpy(uniforms).to(device),
        sampling,
    )
    check_probabilities(rollout)
    return to_uint8(backbone.tokenizer.decode(rollout.tokens, backbone.grid)).cpu()


def _condition(backbone: Backbone, wanted: Sequence[int | str], device: torch.device) -> Condition:
    texts = [text for text in wanted if isinstance(text, str)]
    if texts:
        return backbone.text_condition(texts)
    return ClassLabels(torch.from_numpy(np.asarray(wanted)).to(device))
