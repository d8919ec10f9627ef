"""Tiny, randomly initialised networks of the classes that the rewards use, saved in the hub's folder form."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from alignbench.data.shapes_scenes import SIZE, Thing, draw
from alignbench.rewards import perceptual
from tests.helpers.lpips_trunks import random_trunk

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def spread(module: torch.nn.Module) -> None:
    """Widen the default initialisation, so that scores differ between images by more than rounding."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)


def save_clip(folder: Path) -> str:
    """A CLIPModel with tokenizer and preprocessor: 32 px, 8-px patches, 16 numbers."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    words = [*string.ascii_lowercase, *string.digits]
    vocabulary = [*words, *(f"{word}</w>" for word in words), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: place for place, word in enumerate(vocabulary)}, merges=[])
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **shape,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 77,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**shape, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
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
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 28, "layers": 2, "width": 32, "head_width": 8, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with seeded():
        model = open_clip.CLIP(**config)
        spread(model)
    torch.save({"epoch": 0, "state_dict": model.state_dict()}, folder / "HPS_v2.1_compressed.pt")
    return f"path={folder}"


def save_vlm(folder: Path) -> str:
    """A Qwen2.5-VL with processor and chat template."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2Tokenizer,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    merges = [("y", "e"), ("ye", "s"), ("Y", "e"), ("Ye", "s"), ("n", "o"), ("N", "o")]
    marks = ["endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"]
    words = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Qwen2Tokenizer(vocab={word: place for place, word in enumerate(words)}, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{mark}|>" for mark in marks]})
    ids = {mark: tokenizer.convert_tokens_to_ids(f"<|{mark}|>") for mark in marks}
    pictures = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, **pictures),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size, **pictures),
        chat_template=CHAT_TEMPLATE,
    )
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    with seeded():
        model = Qwen2_5_VLForConditionalGeneration(config)
        spread(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return f"path={folder},min_mass=0,precision=fp32"


def random_lpips(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """LPIPS with its real heads on a random trunk."""
    nets = {name: net for net, name in perceptual.TRUNKS.items()}
    patch.setattr(perceptual, "require_trunk", lambda name: random_trunk(nets[name], folder / name))


TINY: dict[str, Callable[[Path, pytest.MonkeyPatch], str | None]] = {
    "aesthetic": lambda folder, patch: save_aesthetic(folder),
    "clip-score": lambda folder, patch: save_clip(folder),
    "hpsv2.1": lambda folder, patch: save_hps(folder),
    "lpips-alex": random_lpips,
    "lpips-vgg": random_lpips,
    "pickscore": lambda folder, patch: save_clip(folder),
    "vlm-judge": lambda folder, patch: save_vlm(folder),
}
"""{card: makes its network where the real weights are not here, and returns the options that use it}."""


def captioned_shapes(side: int) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Five scenes that show ever more of one caption, [5, 3, side, side], cut or padded with black."""
    circles = [[], [("circle", "red")], [("circle", "white")], [("circle", "white")], [("circle", "white")]]
    squares = [[], [], [], [("square", "red")], [("square", "green")]]
    scenes = [
        draw([Thing(*kind, row, 0) for row, kind in zip((0, 2), (*circle, *square), strict=False)])
        for circle, square in zip(circles, squares, strict=True)
    ]
    pixels = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2)[..., :side, :side].float() / 255
    room = (0, max(0, side - SIZE), 0, max(0, side - SIZE))
    return torch.nn.functional.pad(pixels, room), ("a white circle and a green square",) * 5


REQUESTS: dict[str, Callable[[int], tuple[torch.Tensor, tuple[str, ...]]]] = {
    "shapes-detector": captioned_shapes,
}
"""{card: (images, captions) of a side that it understands}, for rewards that take no other language."""
