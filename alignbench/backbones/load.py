"""A model card becomes a backbone; a run's exported weights are put into one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from alignbench.api import Backbone, TextEncoder
from alignbench.backbones.text.cache import CachedText
from alignbench.backbones.text.random import RandomText
from alignbench.backbones.weights import load_strict, read_state_dict
from alignbench.errors import UserError
from alignbench.files import cache_root
from alignbench.registry import interfaces
from alignbench.registry.lookup import import_target
from alignbench.registry.schema import ModelCard, Scalar


def load_backbone(
    name: str,
    card: ModelCard,
    files: Mapping[str, Path | None] | None,
    *,
    text_encoder: TextEncoder | None,
    options: Mapping[str, Scalar],
    device: torch.device,
) -> Backbone:
    """Build the model of a card from {role: path} of its weight files, or with random weights.

    Raises:
        UserError: a file does not fit, or a plug-in's backbone lacks a member.
    """
    # A plug-in's backbone knows of a text encoder only if its card names one.
    more: dict[str, Any] = {"encoder": text_encoder} if card.text else {}
    backbone: Backbone = import_target(str(card.target))(
        card,
        files,
        seed=0,
        device=device,
        **more,
        **{key: options.get(key, option.default) for key, option in card.options.items()},
    )
    interfaces.require(f"model {name!r}", backbone, interfaces.OBJECT_MEMBERS["models"])
    return backbone


def load_text_encoder(card: ModelCard, file: tuple[Path, str] | None, device: torch.device) -> TextEncoder:
    """Build the text encoder that a model's card names, behind the cache of features.

    The file is the path and SHA-256 of its weights; None means random features, which go with random
    weights.

    Raises:
        UserError: the file does not fit, or the card gives no width.
    """
    spec, shape = card.text, card.policy
    assert spec is not None
    if shape.caption_dim is None:
        raise UserError("a text-conditional model card needs policy.caption_dim", fix="add it to the card")
    size = {"slots": shape.condition_tokens, "width": shape.caption_dim}
    if file is None:
        return RandomText(**size, device=device)
    path, digest = file
    encoder: TextEncoder = import_target(spec.target)(path, digest=digest, device=device, **size)
    return CachedText(encoder, cache_root() / "text", device=device)


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
