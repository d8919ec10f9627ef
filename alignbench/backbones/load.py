"""."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from alignbench.api import Backbone, Condition, TextEncoder
from alignbench.backbones.text.cache import CachedText
from alignbench.backbones.text.random import RandomText
from alignbench.backbones.weights import load_strict, read_state_dict
from alignbench.config.plan import Plan
from alignbench.errors import UserError
from alignbench.hub import weights
from alignbench.registry import interfaces
from alignbench.registry.lookup import import_target


def build_model(plan: Plan, device: torch.device) -> Backbone:
    """Build the model as it is before training."""
    build = import_target(str(plan.model.target))
    files = None if plan.random_weights else {role: status.path for role, status in plan.weights.items()}
    # A plug-in's backbone knows of a text encoder only if its card names one.
    more: dict[str, Any] = {"encoder": build_text_encoder(plan, device)} if plan.model.text else {}
    section = plan.config.section("model")
    more |= {key: section[key] for key in plan.model.options}
    backbone: Backbone = build(plan.model, files, seed=0, device=device, **more)
    interfaces.require(f"model {plan.config.model!r}", backbone, interfaces.OBJECT_MEMBERS["models"])
    return backbone


def build_text_encoder(plan: Plan, device: torch.device) -> TextEncoder:
    """Build the text encoder that the model's card names, behind the cache of features.

    Random weights go with random features.

    Raises:
        UserError: its files do not fit.
    """
    spec, shape = plan.model.text, plan.model.policy
    assert spec is not None
    if shape.caption_dim is None:
        raise UserError("a text-conditional model card needs policy.caption_dim", fix="add it to the card")
    size = {"slots": shape.condition_tokens, "width": shape.caption_dim}
    if plan.random_weights:
        return RandomText(**size, device=device)
    if plan.text is not None:
        path, digest = plan.text.path, plan.text.sha256
    else:
        status = plan.weights["text"]
        assert status.path is not None
        path, digest = status.path, weights.verify(status)
    encoder: TextEncoder = import_target(spec.target)(path, digest=digest, device=device, **size)
    return CachedText(encoder, weights.cache_root() / "text", device=device)


def text_conditions(plan: Plan, backbone: Backbone) -> Callable[[Sequence[str]], Condition] | None:
    """What a `Stream` makes of captions; None for class-conditional models."""
    return backbone.text_condition if plan.model.condition == "text" else None


def load_export(run: Path, backbone: Backbone) -> None:
    """Put a run's exported weights into a backbone.

    Raises:
        UserError: the folder has no export, or it is of another model.
    """
    if not run.is_dir():
        raise UserError(f"{run} is not a run folder", fix="name the folder of a run that has trained")
    files = sorted((run / "export").glob("*.safetensors"))
    if not files:
        raise UserError(f"{run} has no exported weights", fix="name the folder of a run that has trained")
    for file in files:
        module: Any = backbone.policy if file.stem == "policy" else backbone.tokenizer
        load_strict(module, read_state_dict(file), name=str(file))
