"""A random text-to-image LlamaGen of a few thousand parameters, and a reward that reads captions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from alignbench import api
from alignbench.backbones.llamagen.model import build
from alignbench.backbones.text.words import WordConfig, WordEncoder
from alignbench.registry.lookup import Registry, read_card
from tests.helpers.captioned_images import COLOURS
from tests.helpers.tiny_t5 import WIDTH, WORDS

BUILT_IN = Path(__file__).parents[2] / "registry"
SLOTS = 8
MODEL = f"""\
target = "alignbench.backbones.llamagen.model:build"
title = "tiny t2i"
summary = "Random weights."
family = "llamagen"
condition = "text"
image_size = 16
dataset = "text-images"
protocol = "drawbench"

[policy]
dim = 16
layers = 2
heads = 2
ffn_hidden = 24
vocab_size = 32
tokens = 16
condition_tokens = {SLOTS}
caption_dim = {WIDTH}
parameters = 1

[tokenizer]
base_channels = 32
multipliers = [1, 1, 1]
res_blocks = 1
z_channels = 16
codebook_size = 32
code_dim = 4
parameters = 1

[[files]]
role = "policy"
path = "policy.safetensors"

[[files]]
role = "tokenizer"
path = "tokenizer.safetensors"
"""
OWN_TEXT = """
[[files]]
role = "text"
path = "text.safetensors"

[text]
target = "alignbench.backbones.text.words:build"
"""
T5_TEXT = """
[text]
target = "alignbench.backbones.text.t5:build"
asset = "tiny-t5"
packages = ["transformers"]
"""
T5_ASSET = """\
title = "tiny T5"
summary = "Random weights."
what = "network"
file = "."
files = ["config.json", "tokenizer.json", "model.safetensors"]
"""
REWARD = """\
target = "tests.helpers.tiny_t2i:NamedColour"
title = "named colour"
summary = "How much of the colour that the caption names."
direction = "higher"
differentiable = true
scope = "image"
needs = ["text"]
"""


class NamedColour:
    """Mean of the channel that the caption names, less the mean of all."""

    def __init__(self, device: torch.device) -> None:
        pass

    def score(self, request: api.ScoreRequest) -> api.Scores:
        assert len(request.texts) == len(request.images)
        channels = [
            next(place for place, colour in enumerate(COLOURS) if colour in text) for text in request.texts
        ]
        means = request.images.mean(dim=(2, 3))
        values = means[torch.arange(len(means)), torch.tensor(channels)] - means.mean(dim=1)
        return api.Scores(values, torch.ones(len(values), dtype=torch.bool))


def registry(folder: Path) -> Registry:
    """Write cards and weights (into the cache) of `tiny-t2i`, with words, and `tiny-t2i-t5`."""
    cards = {
        "models/tiny-t2i": MODEL + OWN_TEXT,
        "models/tiny-t2i-t5": MODEL + T5_TEXT,
        "assets/tiny-t5": T5_ASSET,
        "rewards/named-colour": REWARD,
    }
    for name, content in cards.items():
        path = folder / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    card: Any = read_card(folder / "models" / "tiny-t2i.toml", "models")
    model = build(card, None)
    torch.manual_seed(3)
    words = WordEncoder(WordConfig(words=WORDS, slots=SLOTS, width=WIDTH))
    for name in ("tiny-t2i", "tiny-t2i-t5"):
        place = Path(os.environ["ALIGNBENCH_CACHE"]) / "weights" / name
        model.save(place)
        words.save(place / "text.safetensors")
    return Registry([("built-in", BUILT_IN), ("test", folder)])
