"""Janus-Pro's image generator (arXiv:2501.17811) as an `api.Backbone`, over the networks of transformers.

See `policy` for the logits, `tokenizer` for codes and pixels, `prompts` for the text side.
transformers is imported when a model is built, not before: it is an optional dependency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignbench.backbones.base import CachedBackbone, unwrap
from alignbench.backbones.janus.files import (
    SHARD_SIZE,
    config_of,
    prompt_file,
    read_config,
    read_parts,
    require_transformers,
    write_hub_form,
)
from alignbench.backbones.janus.keys import Parts
from alignbench.backbones.janus.policy import PARTS, Fidelity, JanusPolicy
from alignbench.backbones.janus.prompts import (
    PROMPT_FILE,
    PromptTokenizer,
    PromptTokens,
    read_prompt_tokenizer,
    stand_in,
)
from alignbench.backbones.janus.tokenizer import JanusTokenizer
from alignbench.backbones.weights import NoDraws, load_strict
from alignbench.errors import UserError
from alignbench.randomness import torch_seed
from alignbench.registry.schema import ModelCard

DEFAULT_TRAINS = tuple(PARTS)


class Janus(CachedBackbone):
    """A `JanusPolicy` over the codes of a frozen tokenizer, driven by prompts; implements `api.Backbone`."""

    def __init__(
        self, config: Any, tokenizer: JanusTokenizer, policy: JanusPolicy, prompts: PromptTokenizer
    ) -> None:
        side = int(config.vq_config.num_patches)
        super().__init__(tokenizer, policy, (side, side))
        self.config, self.prompts = config, prompts
        self.rest: Mapping[str, Tensor] = {}
        """Tensors of the parts that only understanding needs, kept for `save`; may be empty."""

    def text_condition(self, texts: Sequence[str]) -> PromptTokens:
        """See `api.Backbone.text_condition`; padding to the longest changes no row's logits."""
        return self.prompts.encode(texts).to(next(self.policy.parameters()).device)

    def save(self, folder: Path, *, shard_size: str = SHARD_SIZE) -> None:
        """Write the whole model in the hub's form, prompt tokenizer included.

        Raises:
            UserError: the model was built without the parts that only understanding needs.
        """
        folder.mkdir(parents=True, exist_ok=True)
        state = self.export()
        parts = Parts(state["policy"], state["tokenizer"], dict(self.rest))
        write_hub_form(folder, self.config, parts, shard_size=shard_size)
        self.prompts.save(folder)


def build(
    card: ModelCard,
    files: Mapping[str, Path] | None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    fidelity: Fidelity = "exact",
    trains: str | Sequence[str] = DEFAULT_TRAINS,
) -> Janus:
    """Build a model in eval mode with a frozen tokenizer.

    Args:
        files: {role: file}. The policy's may be the released `pytorch_model.bin` or its shards (keys
            `policy`, `policy.2`, …), files or a folder in the hub's form, or a policy exported by a run. The
            VQ tokenizer is taken from `tokenizer` if given, else from the policy's files; the text tokenizer
            is `text`, or else `tokenizer.json` beside any of them. None: random weights and a text tokenizer
            of single bytes.
        device: where to build; on "meta" no weights are drawn.
        dtype: of the policy; the tokenizer stays float32, because rounding moves codes.
        trains: parts of the policy that train when its gradients are switched on, see `PARTS`; a list or one
            text with commas.

    Raises:
        UserError: a file that is missing, cannot be read or does not fit; a part that does not exist.
    """
    require_transformers()
    prompts = stand_in() if files is None else read_prompt_tokenizer(prompt_file(files))
    model = _networks(config_of(card), prompts, device, dtype, fidelity, trains)
    if files is not None:
        _load(model, files)
    elif torch.device(device).type != "meta":
        with torch_seed(torch.device(device), seed, "init/policy"):
            unwrap(model.policy).initialise()
        with torch_seed(torch.device(device), seed, "init/tokenizer"):
            model.tokenizer.initialise()
    return model


def load(folder: Path, **options: Any) -> Janus:
    """Read a model of any size from a folder in the hub's form, as `Janus.save` writes it.

    Options as of `build`.

    Raises:
        UserError: something is missing or does not fit.
    """
    require_transformers()
    prompts = read_prompt_tokenizer(folder / PROMPT_FILE)
    model = _networks(read_config(folder), prompts, **options)
    _load(model, {"policy": folder})
    return model


def _networks(
    config: Any,
    prompts: PromptTokenizer,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    fidelity: Fidelity = "exact",
    trains: str | Sequence[str] = DEFAULT_TRAINS,
) -> Janus:
    """Return a model on a device whose networks are still empty."""
    from transformers.models.janus.modeling_janus import JanusVQVAE

    vocabulary = config.text_config.vocab_size
    if prompts.size > vocabulary:
        raise UserError(
            f"the text tokenizer has {prompts.size} ids, the model knows {vocabulary}",
            fix="use the tokenizer.json that belongs to these weights",
        )
    with torch.device("meta"), NoDraws():
        policy = JanusPolicy(config, pad=prompts.pad, fidelity=fidelity, trains=trains).to(dtype)
        tokenizer = JanusTokenizer(JanusVQVAE(config.vq_config)).float()
    tokenizer = tokenizer.to_empty(device=device).eval().requires_grad_(False)
    return Janus(config, tokenizer, policy.to_empty(device=device).eval(), prompts)


def _load(model: Janus, files: Mapping[str, Path]) -> None:
    """Fill the networks; the tensors that only understanding needs are kept as they are on disk."""
    if "policy" not in files:
        raise UserError("no weights file for policy", fix="--set model.policy=PATH")
    parts = read_parts(path for role, path in files.items() if role.partition(".")[0] == "policy")
    own = [path for role, path in files.items() if role.partition(".")[0] == "tokenizer"]
    codes = read_parts(own).tokenizer if own else parts.tokenizer
    load_strict(model.policy, parts.policy, name=str(files["policy"]))
    load_strict(model.tokenizer, codes, name=str(own[0] if own else files["policy"]))
    model.rest = parts.rest
