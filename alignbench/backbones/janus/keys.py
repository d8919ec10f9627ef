"""Names of Janus-Pro's tensors in the forms its weights come in, turned into one.

The form used here is that of transformers' `JanusForConditionalGeneration` without the leading `model.`:
`language_model.…`, `generation_embeddings.weight`, `generation_aligner.…`, `generation_head.…`, `vqmodel.…`,
and for understanding only `vision_model.…`, `aligner.…`, `lm_head.weight`. The released program's own names
(`gen_embed`, `gen_vision_model.encoder.conv_blocks`, …) are renamed; its fused attention of the understanding
tower is cut in three.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from alignbench.errors import UserError

RELEASED_MARK = ("gen_embed.", "gen_vision_model.", "language_model.model.")
HUB_PREFIX = "model."
VQ_PREFIX = "vqmodel."
POLICY_PREFIXES = ("language_model.", "generation_embeddings.", "generation_aligner.", "generation_head.")
REST_PREFIXES = ("vision_model.", "aligner.", "lm_head.")
TOKENIZER_PREFIXES = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")

UNUSED = (
    r"gen_vision_model\.quantize\.codebook_used",
    r"vision_model\.vision_tower\.attn_pool\..*",
    r"language_model\.model\..*rotary_emb\.inv_freq",
)
"""What transformers has no place for: a usage counter, a pooling layer that nothing reads, and position
frequencies, which old versions saved although they follow from the configuration."""

RENAMED = (
    (r"language_model\.model\.", "language_model."),
    (r"language_model\.lm_head\.", "lm_head."),
    (r"gen_embed\.", "generation_embeddings."),
    (r"gen_aligner\.layers\.0\.", "generation_aligner.fc1."),
    (r"gen_aligner\.layers\.2\.", "generation_aligner.hidden_layers.0."),
    (r"gen_head\.output_mlp_projector\.", "generation_head.proj_out."),
    (r"gen_head\.vision_head\.", "generation_head.vision_head."),
    (r"aligner\.layers\.0\.", "aligner.fc1."),
    (r"aligner\.layers\.2\.", "aligner.hidden_layers.0."),
    (r"gen_vision_model\.", VQ_PREFIX),
    (r"vision_model\.vision_tower\.blocks\.", "vision_model.encoder.layers."),
    (r"vision_model\.vision_tower\.norm\.", "vision_model.post_layernorm."),
    (r"vision_model\.vision_tower\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"vision_model\.vision_tower\.pos_embed", "vision_model.embeddings.position_embedding.weight"),
)
"""Beginnings of released names; the first that fits is replaced."""

INSIDE_VQ = (
    (r"encoder\.conv_blocks\.", "encoder.down."),
    (r"decoder\.conv_blocks\.", "decoder.up."),
    (r"\.res\.", ".block."),
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
)
INSIDE_VISION = (
    (r"\.attn\.proj\.", ".self_attn.projection_layer."),
    (r"\.attn\.", ".self_attn."),
    (r"\.norm([12])\.", r".layer_norm\1."),
)
QKV = ".qkv."


@dataclass(frozen=True)
class Parts:
    """A checkpoint taken apart; the tensors are those of the file."""

    policy: dict[str, Tensor]
    """Under the keys of `janus_policy.JanusPolicy`."""
    tokenizer: dict[str, Tensor]
    """Under the keys of `janus_tokenizer.JanusTokenizer`."""
    rest: dict[str, Tensor]
    """What only understanding needs: tower, aligner and language head."""


def take_apart(state: Mapping[str, Tensor], *, name: str) -> Parts:
    """Sort the tensors of a checkpoint: released, transformers' or one that a run exported.

    Raises:
        UserError: tensors that are part of no Janus-Pro.
    """
    released = any(key.startswith(RELEASED_MARK) for key in state)
    named = from_released(state) if released else {_strip(key): value for key, value in state.items()}
    strays = [key for key in named if not key.startswith((*POLICY_PREFIXES, *REST_PREFIXES, VQ_PREFIX))]
    if strays:
        raise UserError(
            f"{name} holds {len(strays)} tensors that are part of no Janus-Pro ({', '.join(strays[:5])})",
            fix="use the weights of deepseek-ai/Janus-Pro or their transformers form",
        )
    return Parts(
        policy={key: value for key, value in named.items() if key.startswith(POLICY_PREFIXES)},
        tokenizer={
            key.removeprefix(VQ_PREFIX): value for key, value in named.items() if key.startswith(VQ_PREFIX)
        },
        rest={key: value for key, value in named.items() if key.startswith(REST_PREFIXES)},
    )


def put_together(parts: Parts) -> dict[str, Tensor]:
    """Return a checkpoint in the form of transformers."""
    tokenizer = {VQ_PREFIX + key: value for key, value in parts.tokenizer.items()}
    named = {**parts.policy, **tokenizer, **parts.rest}
    return {key if key.startswith("lm_head.") else HUB_PREFIX + key: value for key, value in named.items()}


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the released program's tensors; unknown names stay as they are."""
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        if any(re.fullmatch(pattern, key) for pattern in UNUSED):
            continue
        new = _renamed(key)
        if new.startswith("vision_model.") and QKV in new:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                named[new.replace(QKV, f".{letter}_proj.")] = part
        elif new.endswith("position_embedding.weight"):
            named[new] = value.squeeze(0)
        else:
            named[new] = value
    return named


def _renamed(key: str) -> str:
    for pattern, replacement in RENAMED:
        key, count = re.subn(f"^{pattern}", replacement, key)
        if count:
            break
    inside = INSIDE_VQ if key.startswith(VQ_PREFIX) else INSIDE_VISION
    if key.startswith((VQ_PREFIX, "vision_model.encoder.")):
        for pattern, replacement in inside:
            key = re.sub(pattern, replacement, key)
    return key


def _strip(key: str) -> str:
    if key.startswith(TOKENIZER_PREFIXES):
        return VQ_PREFIX + key
    return key.removeprefix(HUB_PREFIX)
