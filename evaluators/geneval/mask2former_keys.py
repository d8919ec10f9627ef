"""mmdetection 2's Mask2Former-Swin checkpoints, renamed into transformers' Mask2Former.

The two are the same network with other names, and three differences in how numbers are stored: mmdetection
keeps query, key and value projections in one matrix, and orders the 4·C channels of Swin's patch merging by
channel (`nn.Unfold`) where transformers orders them by pixel. Names were read off `mmdet/models` (2.28:
SwinTransformer, MSDeformAttnPixelDecoder, Mask2FormerHead) and transformers 5.23.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from alignbench.errors import UserError

_SWIN = r"model\.pixel_level_module\.encoder\.swin\."
_BLOCK = _SWIN + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
_BLOCK_TO = r"backbone.stages.\1.blocks.\2."
_PIXEL = r"model\.pixel_level_module\.decoder\."
_PIXEL_TO = "panoptic_head.pixel_decoder."
_ENCODER = _PIXEL + r"encoder\.layers\.(\d+)\."
_ENCODER_TO = _PIXEL_TO + r"encoder.layers.\1."
_QUERIES = r"model\.transformer_module\."
_DECODER = _QUERIES + r"decoder\.layers\.(\d+)\."
_DECODER_TO = r"panoptic_head.transformer_decoder.layers.\1."
_HEAD = "panoptic_head."

_RENAMED: tuple[tuple[str, str], ...] = (
    (_SWIN + r"embeddings\.patch_embeddings\.projection\.", "backbone.patch_embed.projection."),
    (_SWIN + r"embeddings\.norm\.", "backbone.patch_embed.norm."),
    (_BLOCK + r"attention\.[qkv]_proj\.", _BLOCK_TO + "attn.w_msa.qkv."),
    (_BLOCK + r"attention\.o_proj\.", _BLOCK_TO + "attn.w_msa.proj."),
    (_BLOCK + r"attention\.relative_position_bias\.", _BLOCK_TO + "attn.w_msa."),
    (_BLOCK + r"layernorm_before\.", _BLOCK_TO + "norm1."),
    (_BLOCK + r"layernorm_after\.", _BLOCK_TO + "norm2."),
    (_BLOCK + r"mlp\.fc1\.", _BLOCK_TO + "ffn.layers.0.0."),
    (_BLOCK + r"mlp\.fc2\.", _BLOCK_TO + "ffn.layers.1."),
    (_SWIN + r"encoder\.layers\.(\d+)\.downsample\.", r"backbone.stages.\1.downsample."),
    (_PIXEL + r"level_embed$", _PIXEL_TO + "level_encoding.weight"),
    (_PIXEL + r"input_projections\.(\d+)\.0\.", _PIXEL_TO + r"input_convs.\1.conv."),
    (_PIXEL + r"input_projections\.(\d+)\.1\.", _PIXEL_TO + r"input_convs.\1.gn."),
    (_PIXEL + r"adapter_1\.0\.", _PIXEL_TO + "lateral_convs.0.conv."),
    (_PIXEL + r"adapter_1\.1\.", _PIXEL_TO + "lateral_convs.0.gn."),
    (_PIXEL + r"layer_1\.0\.", _PIXEL_TO + "output_convs.0.conv."),
    (_PIXEL + r"layer_1\.1\.", _PIXEL_TO + "output_convs.0.gn."),
    (_PIXEL + r"mask_projection\.", _PIXEL_TO + "mask_feature."),
    (_ENCODER + r"self_attn\.", _ENCODER_TO + "attentions.0."),
    (_ENCODER + r"self_attn_layer_norm\.", _ENCODER_TO + "norms.0."),
    (_ENCODER + r"fc1\.", _ENCODER_TO + "ffns.0.layers.0.0."),
    (_ENCODER + r"fc2\.", _ENCODER_TO + "ffns.0.layers.1."),
    (_ENCODER + r"final_layer_norm\.", _ENCODER_TO + "norms.1."),
    (_QUERIES + r"queries_embedder\.", _HEAD + "query_embed."),
    (_QUERIES + r"queries_features\.", _HEAD + "query_feat."),
    (_QUERIES + r"level_embed\.", _HEAD + "level_embed."),
    (_DECODER + r"cross_attn\.", _DECODER_TO + "attentions.0.attn."),
    (_DECODER + r"self_attn\.[qkv]_proj\.", _DECODER_TO + "attentions.1.attn.in_proj_"),
    (_DECODER + r"self_attn\.out_proj\.", _DECODER_TO + "attentions.1.attn.out_proj."),
    (_DECODER + r"cross_attn_layer_norm\.", _DECODER_TO + "norms.0."),
    (_DECODER + r"self_attn_layer_norm\.", _DECODER_TO + "norms.1."),
    (_DECODER + r"final_layer_norm\.", _DECODER_TO + "norms.2."),
    (_DECODER + r"fc1\.", _DECODER_TO + "ffns.0.layers.0.0."),
    (_DECODER + r"fc2\.", _DECODER_TO + "ffns.0.layers.1."),
    (_QUERIES + r"decoder\.layernorm\.", _HEAD + "transformer_decoder.post_norm."),
    (r"class_predictor\.", _HEAD + "cls_embed."),
)
"""(start of transformers' name, start of mmdetection's)."""

_UNUSED = re.compile(_SWIN + r"layernorm\.|criterion\.")
"""transformers only: a norm that no feature map passes through, and the weights of the loss."""
_DERIVED = re.compile(r"backbone\.stages\.\d+\.blocks\.\d+\.attn\.w_msa\.relative_position_index")
"""mmdetection only: follows from the window size."""


def source_of(name: str) -> str:
    """Return mmdetection's name of a transformers parameter.

    Raises:
        UserError: a name that this table does not know.
    """
    stage = re.fullmatch(r"model\.pixel_level_module\.encoder\.hidden_states_norms\.stage(\d)\.(\w+)", name)
    if stage:
        return f"backbone.norm{int(stage[1]) - 1}.{stage[2]}"
    layer = re.fullmatch(_QUERIES + r"decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.(\w+)", name)
    if layer:  # activations stand between the linear layers there
        return f"panoptic_head.mask_embed.{2 * int(layer[1])}.{layer[2]}"
    for start, replacement in _RENAMED:
        renamed, times = re.subn("^" + start, replacement, name)
        if times:
            return renamed
    raise UserError(
        f"this version of transformers calls a part of Mask2Former {name}, which is not known here",
        fix="install transformers 5.23",
    )


def by_pixel(values: Tensor) -> Tensor:
    """Reorder the last axis, 4·C, from `nn.Unfold`'s order to transformers'.

    Unfold: channel, row, column. transformers: column, row, channel.
    """
    channels = values.shape[-1] // 4
    result: Tensor = values.unflatten(-1, (channels, 2, 2)).transpose(-1, -3).flatten(-3)
    return result


def convert(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make a transformers state dict out of an mmdetection checkpoint.

    Of the model's own state dict names and shapes count; what no image passes through stays.

    Raises:
        UserError: names or shapes that do not fit, on either side.
    """
    converted: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, own in wanted.items():
        if _UNUSED.match(name):
            converted[name] = own
            continue
        source = source_of(name)
        if source not in state:
            raise UserError(f"the detector's checkpoint lacks {source}", fix="give mmdetection 2's file")
        used.add(source)
        values = _part(name, state[source])
        if values.shape != own.shape:
            shapes = f"{tuple(values.shape)}, not {tuple(own.shape)}"
            raise UserError(
                f"the detector's checkpoint: {source} is {shapes}", fix="give the Swin-S instance file"
            )
        converted[name] = values.to(own.dtype)
    left = [key for key in state if key not in used and not _DERIVED.fullmatch(key)]
    if left:
        raise UserError(f"the detector's checkpoint has {len(left)} parts too many, e.g. {left[0]}")
    return converted


def _part(name: str, values: Tensor) -> Tensor:
    """Take what belongs to one transformers parameter out of the stored one."""
    if "downsample." in name:
        return by_pixel(values)
    projection = re.search(r"\.([qkv])_proj\.", name)
    if projection:
        return torch.chunk(values, 3, dim=0)["qkv".index(projection[1])]
    return values
