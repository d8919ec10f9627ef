"""LlamaGen as an `api.Backbone`: building it from a card, with weights from files or drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from alignbench.api import Condition, TextEncoder
from alignbench.backbones.base import CachedBackbone, unwrap
from alignbench.backbones.llamagen.gpt import GPT, INIT_STD, GPTConfig
from alignbench.backbones.llamagen.vq import VQConfig, VQModel
from alignbench.backbones.weights import NoDraws, load_strict, read_state_dict
from alignbench.errors import UserError
from alignbench.randomness import torch_seed
from alignbench.registry.schema import ModelCard

ROLES = ("policy", "tokenizer")
USAGE_KEY = "quantize.codebook_used"


class LlamaGen(CachedBackbone):
    """A `GPT` over the codes of a frozen `VQModel`; implements `api.Backbone`."""

    def __init__(self, tokenizer: VQModel, policy: GPT, encoder: TextEncoder | None = None) -> None:
        super().__init__(tokenizer, policy, policy.config.grid)
        self.encoder = encoder

    def text_condition(self, texts: Sequence[str]) -> Condition:
        if unwrap(self.policy).config.condition == "class":
            raise UserError(
                "this model is class-conditional: it reads no text",
                fix="choose a text-conditioned model: alignbench list models",
            )
        if self.encoder is None:
            raise UserError(
                "the model was built without a text encoder",
                fix="name one under [text] on its card, or pass encoder= to build",
            )
        return self.encoder.encode(texts)

    def save(self, folder: Path) -> dict[str, Path]:
        """Write one safetensors file a role into a folder and return {role: file}."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = {}
        for role, state in self.export().items():
            paths[role] = folder / f"{role}.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, paths[role])
        return paths


def gpt_config(card: ModelCard, *, image_size: int | None = None) -> GPTConfig:
    """Return the policy's geometry; the weights of one model serve every image size, in pixels.

    Raises:
        UserError: the size is not a multiple of the tokenizer's ratio.
    """
    shape = card.policy
    size = card.image_size if image_size is None else image_size
    side, rest = divmod(size, card.tokenizer.downsample)
    if rest or side < 1:
        raise UserError(
            f"image size {size} is not a multiple of {card.tokenizer.downsample}",
            fix=f"choose a multiple, e.g. {card.image_size}",
        )
    if card.condition == "class" and card.num_classes is None:
        raise UserError("a class-conditional model card needs num_classes", fix="add it to the card")
    if card.condition == "text" and shape.caption_dim is None:
        raise UserError("a text-conditional model card needs policy.caption_dim", fix="add it to the card")
    as_written = {
        **shape.model_dump(include={field.name for field in fields(GPTConfig)} - {"caption_dim"}),
        **dict.fromkeys(("token_dropout", "residual_dropout", "ffn_dropout"), shape.dropout),
    }
    return GPTConfig(
        **as_written,
        grid=(side, side),
        condition=card.condition,
        num_classes=card.num_classes or 0,
        caption_dim=shape.caption_dim or 0,
    )


def vq_config(card: ModelCard) -> VQConfig:
    """Return the tokenizer's geometry."""
    as_written = card.tokenizer.model_dump(include={field.name for field in fields(VQConfig)})
    return VQConfig(**{**as_written, "multipliers": tuple(card.tokenizer.multipliers)})


def build(
    card: ModelCard,
    files: Mapping[str, Path] | None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    image_size: int | None = None,
    encoder: TextEncoder | None = None,
) -> LlamaGen:
    """Build a model in eval mode with a frozen tokenizer.

    Args:
        files: {"policy": file, "tokenizer": file}, or None for random weights. Random weights include a
            random output head (the recipe's head starts at zero), so that logits are informative.
        device: where to build; on "meta" no weights are drawn.
        dtype: of the policy; the tokenizer stays float32, as LlamaGen samples.
        encoder: of captions, with its features on `device`.

    Raises:
        UserError: a role without a file, a file that cannot be read or does not fit.
    """
    device = torch.device(device)
    tokenizer_config = vq_config(card)
    states = None if files is None else _read(files)
    if states is not None and USAGE_KEY in states["tokenizer"]:
        # The window's length is no part of the geometry; take what the file holds.
        window = states["tokenizer"][USAGE_KEY].numel()
        tokenizer_config = replace(tokenizer_config, usage_window=window)
    with torch.device("meta"), NoDraws():
        policy = GPT(gpt_config(card, image_size=image_size)).to(dtype)
        tokenizer = VQModel(tokenizer_config)
    policy, tokenizer = policy.to_empty(device=device), tokenizer.to_empty(device=device)
    if files is not None and states is not None:
        load_strict(policy, states["policy"], name=str(files["policy"]))
        load_strict(tokenizer, states["tokenizer"], name=str(files["tokenizer"]))
    elif device.type != "meta":
        with torch_seed(device, seed, "init/policy"):
            policy.initialise(head_std=INIT_STD)
        with torch_seed(device, seed, "init/tokenizer"):
            tokenizer.initialise()
    return LlamaGen(tokenizer.eval().requires_grad_(False), policy.eval(), encoder)


def _read(files: Mapping[str, Path]) -> dict[str, dict[str, Tensor]]:
    absent = [role for role in ROLES if role not in files]
    if absent:
        raise UserError(f"no weights file for {' and '.join(absent)}", fix="name one file for each role")
    return {role: read_state_dict(files[role]) for role in ROLES}
