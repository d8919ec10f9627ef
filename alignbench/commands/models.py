"""Models at hand: load one, draw images from one. Imports torch when a function needs it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alignbench.commands.jobs import plan
from alignbench.config.plan import Plan
from alignbench.config.settings import only
from alignbench.errors import UserError, refuse
from alignbench.registry.schema import Scalar

if TYPE_CHECKING:
    from PIL.Image import Image

    from alignbench.api import Backbone, Sampling


def _plan_of(model: str, options: Mapping[str, Scalar] | Sequence[str]) -> Plan:
    """Return the plan of a model whose files are all here."""
    made = plan(None, model, options=options, evaluates=False).plan
    only(made.config, "model")
    refuse(made.id, made.problems)
    return made


def sample(
    model: str,
    number: int = 1,
    *,
    run: str | os.PathLike[str] | None = None,
    classes: Sequence[int] = (),
    prompts: Sequence[str] = (),
    seed: int = 0,
    setting: Sampling | None = None,
    options: Mapping[str, Scalar] | Sequence[str] = (),
) -> list[Image]:
    """Draw images from a model, or from what a run made of it.

    Args:
        run: folder of a finished run, whose exported weights are used.
        classes: class ids, in turn; default: all of them. For class-conditional models.
        prompts: texts, in turn. For text-conditional models.
        seed: image i depends on (seed, i) alone.
        setting: temperature, top-k, top-p and guidance; default: temperature 1, no guidance.
        options: `model.*` keys, as `--set` takes them.

    Returns:
        Pillow images in RGB.

    Raises:
        UserError: files are missing, the model has no such class or takes no prompt, or a number is infinite.
    """
    from PIL import Image as pillow

    from alignbench.api import Sampling
    from alignbench.runs.draw import draw

    setting = setting or Sampling()
    if not (math.isfinite(setting.temperature) and math.isfinite(setting.cfg_scale)):
        raise UserError("temperature and guidance must be finite numbers", fix="give other ones")
    drawn = draw(
        _plan_of(model, options),
        run=Path(run) if run is not None else None,
        number=number,
        seed=seed,
        classes=classes,
        prompts=prompts,
        sampling=setting,
    )
    return [pillow.fromarray(image.permute(1, 2, 0).numpy()) for image in drawn]


def load_model(
    model: str,
    *,
    run: str | os.PathLike[str] | None = None,
    options: Mapping[str, Scalar] | Sequence[str] = (),
    device: str = "cpu",
) -> Backbone:
    """Load a model, or what a run made of it: its policy, tokenizer and `generate`.

    Raises:
        UserError: files are missing or do not fit.
    """
    made = _plan_of(model, options)
    import torch

    from alignbench.backbones.load import load_export
    from alignbench.training.setup import build_model

    backbone = build_model(made, torch.device(device))
    if run is not None:
        load_export(Path(run), backbone)
    return backbone
