"""ImageReward (arXiv:2304.05977) out of its released file, on transformers' BLIP networks.

BLIP's ViT-L/16 sees the picture; a BERT-base reads the prompt with cross-attention to it; five linear layers
without activations make a number of the [CLS] token. The image-reward package imports what transformers 5 no
longer has, so only its file is used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from alignbench.errors import UserError

SIDE = 224
"""Of the pictures that the released network takes."""
LENGTH = 35
"""Tokens of a prompt, [CLS] and [SEP] among them."""
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw scores; the released program subtracts and divides."""
ADDED = ("[DEC]", "[ENC]")
"""Tokens of BLIP behind BERT's 30,522. The prompt keeps [CLS] in front, where BLIP's matching puts [ENC]."""
HEAD_WIDTH = 64
"""Of an attention head, in both networks."""
RENAMED = (
    ("blip.text_encoder.", "text."),
    ("mlp.layers.", "head."),
    ("blip.visual_encoder.cls_token", "vision.embeddings.class_embedding"),
    ("blip.visual_encoder.pos_embed", "vision.embeddings.position_embedding"),
    ("blip.visual_encoder.patch_embed.proj.", "vision.embeddings.patch_embedding."),
    ("blip.visual_encoder.norm.", "vision.post_layernorm."),
    ("blip.visual_encoder.blocks.", "vision.encoder.layers."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
)
"""(part of a name in the file, what stands there in transformers' networks)."""
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
"""In the file, and no part of the score."""


class ImageReward(nn.Module):
    """The network with its tokenizer; float32, frozen, in eval mode. Sizes are those of a state dict."""

    def __init__(self, state: Mapping[str, Tensor], tokenizer: Any) -> None:
        """Take {name: weight} with the names of `renamed`; nothing is filled in.

        Raises:
            KeyError, IndexError: weights that decide a size are missing.
        """
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        width, _, patch, _ = state["vision.embeddings.patch_embedding.weight"].shape
        places = state["vision.embeddings.position_embedding"].shape[1] - 1
        self.side = round(places**0.5) * patch
        self.vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=width,
                intermediate_size=len(state["vision.encoder.layers.0.mlp.fc1.bias"]),
                num_hidden_layers=_layers(state, "vision.encoder.layers."),
                num_attention_heads=max(1, width // HEAD_WIDTH),
                image_size=self.side,
                patch_size=patch,
                layer_norm_eps=1e-6,  # timm's, which the file was trained with; transformers' own is 1e-5
            )
        )
        words, read = state["text.embeddings.word_embeddings.weight"].shape
        self.text = BlipTextModel(
            BlipTextConfig(
                vocab_size=words,
                hidden_size=read,
                encoder_hidden_size=width,
                intermediate_size=len(state["text.encoder.layer.0.intermediate.dense.bias"]),
                num_hidden_layers=_layers(state, "text.encoder.layer."),
                num_attention_heads=max(1, read // HEAD_WIDTH),
                max_position_embeddings=len(state["text.embeddings.position_embeddings.weight"]),
                layer_norm_eps=1e-12,
                is_decoder=True,  # has cross-attention; attention to the prompt stays bidirectional
            ),
            add_pooling_layer=False,
        )
        linear = {
            name.removeprefix("head.").removesuffix(".weight"): nn.Linear(*weight.T.shape)
            for name, weight in state.items()
            if name.startswith("head.") and weight.dim() == 2
        }
        self.head = nn.Sequential(OrderedDict(linear))
        self.tokenizer = tokenizer

    def forward(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        """[N, 3, side, side] normalised pictures and N prompts → [N] scores; differentiable."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        ).to(pixels.device)
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=seen,
        ).last_hidden_state
        score: Tensor = (self.head(read[:, 0])[:, 0] - MEAN) / STD
        return score

    def is_cut(self, text: str) -> bool:
        """Whether the text is too long for the network."""
        return len(self.tokenizer(text)["input_ids"]) > LENGTH


def _layers(state: Mapping[str, Tensor], start: str) -> int:
    return 1 + max(int(name.removeprefix(start).split(".")[0]) for name in state if name.startswith(start))


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the weights of the released file the names of `ImageReward`; what is unused is left out."""
    result = {}
    for name, weight in state.items():
        if not name.startswith(UNUSED):
            for old, new in RENAMED:
                name = name.replace(old, new)
            result[name] = weight
    return result


def load(path: Path, tokenizer: Path) -> ImageReward:
    """Read the network.

    Args:
        path: ImageReward.pt, or a file of other sizes with its names.
        tokenizer: folder with the tokenizer of bert-base-uncased.

    Raises:
        UserError: the file holds other weights, or the tokenizer has another vocabulary.
    """
    from transformers import BertTokenizer

    words: Any = BertTokenizer.from_pretrained(tokenizer, local_files_only=True)
    words.add_tokens(list(ADDED), special_tokens=True)
    try:
        state = renamed(torch.load(path, map_location="cpu", weights_only=True))
        with init_empty_weights(include_buffers=False):
            network = ImageReward(state, words)
        network.load_state_dict({name: weight.float() for name, weight in state.items()}, assign=True)
    except Exception as error:  # torch.load raises whatever the damaged bytes suggest
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is no ImageReward: {type(error).__name__}: {reason}") from error
    rows = network.text.config.vocab_size
    if len(words) != rows:
        raise UserError(
            f"{tokenizer} has {len(words) - len(ADDED)} tokens, {path} was trained with {rows - len(ADDED)}",
            fix="give the tokenizer of bert-base-uncased",
        )
    return network.eval().requires_grad_(False)
