"""Tiny, randomly initialised networks of the classes that the rewards use, saved in the hub's folder form."""

from __future__ import annotations

import string
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignbench.rewards import perceptual, vlm
from tests.helpers.lpips_trunks import random_trunk
from tests.helpers.tiny_open_clip import save_folder, seeded, spread

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_clip(folder: Path) -> str:
    """A CLIPModel with tokenizer and preprocessor: 32 px, 8-px patches, 16 numbers."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    words = [*string.ascii_lowercase, *string.digits]
    vocabulary = [*words, *(f"{word}</w>" for word in words), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: place for place, word in enumerate(vocabulary)}, merges=[])
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {
        **shape, "vocab_size": len(vocabulary), "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {**shape, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    with seeded():
        model = CLIPModel(config)
        spread(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder)
    return f"path={folder}"


def save_aesthetic(folder: Path) -> str:
    """The same CLIP, and a head of the official form."""
    options = save_clip(folder)
    widths = {0: (16, 12), 2: (12, 8), 4: (8, 8), 6: (8, 4), 7: (4, 1)}
    with seeded(1):
        layers = {number: torch.nn.Linear(*width) for number, width in widths.items()}
    head = {
        f"layers.{number}.{name}": value
        for number, layer in layers.items()
        for name, value in layer.state_dict().items()
    }
    torch.save(head, folder / "head.pth")
    return f"{options},head={folder / 'head.pth'}"


def save_hps(folder: Path) -> str:
    """An open_clip CLIP with a checkpoint of HPS's form."""
    weights = save_folder(folder, quick_gelu=False, weights="x.pt") / "x.pt"
    torch.save({"epoch": 0, "state_dict": torch.load(weights)}, folder / "HPS_v2.1_compressed.pt")
    return f"path={folder}"


def save_vlm(folder: Path, *, shard_size: str = "5GB") -> str:
    """A Qwen2.5-VL with processor and chat template."""
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    merges: list[Any] = [("y", "e"), ("ye", "s"), ("Y", "e"), ("Ye", "s"), ("n", "o"), ("N", "o")]
    marks = ["endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"]
    words = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    vocabulary = {word: place for place, word in enumerate(words)}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{mark}|>" for mark in marks]})
    ids: dict[str, Any] = {
        f"{mark.removesuffix('_pad')}_token_id": tokenizer.convert_tokens_to_ids(f"<|{mark}|>")
        for mark in marks[3:]
    }
    pictures: dict[str, Any] = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    processor = transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(size=size, **pictures),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(size=size, **pictures),
        chat_template=CHAT_TEMPLATE,
    )
    text = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": len(tokenizer),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 2, "patch_size": 4,
        "out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    with seeded():
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
        spread(model)
    model.save_pretrained(folder, max_shard_size=shard_size)
    processor.save_pretrained(folder)
    return f"path={folder},precision=fp32"


def save_scores(folder: Path, patch: pytest.MonkeyPatch) -> str:
    """The same network, whose babble of a few tokens counts as a score."""
    patch.setattr(vlm, "MAX_NEW_TOKENS", 12)
    patch.setattr(vlm, "score_in", lambda answer: zlib.crc32(answer.encode()) % 997 / 200)
    return save_vlm(folder)


def random_lpips(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """LPIPS with its real heads on a random trunk."""
    nets = {asset: net for net, asset in perceptual.TRUNKS.items()}
    patch.setattr(perceptual, "require_trunk", lambda asset, path: random_trunk(nets[asset], folder / asset))


TINY: dict[str, Callable[[Path, pytest.MonkeyPatch], str | None]] = {
    "aesthetic": lambda folder, patch: save_aesthetic(folder),
    "clip-score": lambda folder, patch: save_clip(folder),
    "hpsv2.1": lambda folder, patch: save_hps(folder),
    "lpips-alex": random_lpips,
    "lpips-vgg": random_lpips,
    "pickscore": lambda folder, patch: save_clip(folder),
    "vlm-judge": lambda folder, patch: f"{save_vlm(folder)},min_mass=0",
    "vlm-scores": save_scores,
}
"""{card: makes its network where the real weights are not here, and returns the options that use it}."""
