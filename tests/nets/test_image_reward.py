"""ImageReward on transformers' networks against its formulas in float64, on small files of the same form."""

from __future__ import annotations

import math
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from alignbench.errors import UserError
from alignbench.nets import image_reward
from alignbench.nets.image_reward import ImageReward
from tests.helpers.tiny_open_clip import seeded

RELEASED = {"width": 1024, "blocks": 24, "read": 768, "layers": 12, "words": 30_524, "side": 224}
SMALL = {"width": 128, "blocks": 2, "read": 64, "layers": 2, "words": 0, "side": 32}
HEAD = {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
"""Dropout has the other numbers."""
TEXTS = ("a red cat", "two dogs", "cat " * 60, "")


def form(
    width: int, blocks: int, read: int, layers: int, words: int, side: int
) -> dict[str, tuple[int, ...]]:
    """{name in the released file: shape}, as its program's classes make them (BLIP's vit.py and med.py)."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    seen = "blip.visual_encoder."
    shapes[f"{seen}cls_token"] = (1, 1, width)
    shapes[f"{seen}pos_embed"] = (1, (side // 16) ** 2 + 1, width)
    add(f"{seen}patch_embed.proj", width, 3, 16, 16)
    add(f"{seen}norm", width)
    for block in (f"{seen}blocks.{number}." for number in range(blocks)):
        add(f"{block}norm1", width)
        add(f"{block}attn.qkv", 3 * width, width)
        add(f"{block}attn.proj", width, width)
        add(f"{block}norm2", width)
        add(f"{block}mlp.fc1", 4 * width, width)
        add(f"{block}mlp.fc2", width, 4 * width)
    text = "blip.text_encoder."
    shapes[f"{text}embeddings.position_ids"] = (1, 512)
    shapes[f"{text}embeddings.word_embeddings.weight"] = (words, read)
    shapes[f"{text}embeddings.position_embeddings.weight"] = (512, read)
    add(f"{text}embeddings.LayerNorm", read)
    for layer in (f"{text}encoder.layer.{number}." for number in range(layers)):
        for attention, source in (("attention", read), ("crossattention", width)):
            add(f"{layer}{attention}.self.query", read, read)
            add(f"{layer}{attention}.self.key", read, source)
            add(f"{layer}{attention}.self.value", read, source)
            add(f"{layer}{attention}.output.dense", read, read)
            add(f"{layer}{attention}.output.LayerNorm", read)
        add(f"{layer}intermediate.dense", 4 * read, read)
        add(f"{layer}output.dense", read, 4 * read)
        add(f"{layer}output.LayerNorm", read)
    add("blip.vision_proj", 256, width)
    add("blip.text_proj", 256, read)
    for number, (inputs, outputs) in HEAD.items():
        add(f"mlp.layers.{number}", outputs, min(inputs, read) if number == 0 else inputs)
    return shapes


def save_tokenizer(folder: Path) -> int:
    """BERT's tokenizer with a vocabulary of letters; returns its size."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [*string.ascii_lowercase, *string.digits]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return len(words)


def save_small(folder: Path) -> str:
    """A small file of the released form beside its tokenizer; returns the options of the reward."""
    words = save_tokenizer(folder) + len(image_reward.ADDED)
    with seeded():
        state = {name: _values(name, shape) for name, shape in form(**{**SMALL, "words": words}).items()}
    torch.save(state, folder / "ImageReward.pt")
    return f"path={folder / 'ImageReward.pt'},tokenizer={folder}"


def _values(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("position_ids"):
        return torch.arange(shape[1])[None]
    spread = 1 / math.sqrt(shape[-1]) if len(shape) == 2 and "embeddings" not in name else 0.3
    return spread * torch.randn(shape) + float("orm" in name and name.endswith("weight"))


# --- the formulas ---------------------------------------------------------------------------------


def oracle(state: dict[str, Tensor], pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """[N, 3, side, side], [N, 35] ids and mask → [N] scores, in float64, from the file's own names."""
    w = {name: value.double() for name, value in state.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        apart = x - x.mean(dim=-1, keepdim=True)
        scale = (apart.square().mean(dim=-1, keepdim=True) + eps).sqrt()
        return apart / scale * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attend(q: Tensor, k: Tensor, v: Tensor, kept: Tensor | None = None) -> Tensor:
        """Softmax attention in heads of 64; `kept` [N, S] says which keys count."""
        q, k, v = (x.unflatten(-1, (-1, 64)).transpose(1, 2) for x in (q, k, v))
        weights = q @ k.transpose(-1, -2) / 8
        if kept is not None:
            weights = weights.masked_fill(kept[:, None, None] == 0, -math.inf)
        return (weights.softmax(dim=-1) @ v).transpose(1, 2).flatten(start_dim=2)

    def gelu(x: Tensor) -> Tensor:
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    seen = "blip.visual_encoder."
    patches = F.unfold(pixels.double(), 16, stride=16).transpose(1, 2)
    kernel = w[f"{seen}patch_embed.proj.weight"].flatten(start_dim=1)
    x = patches @ kernel.T + w[f"{seen}patch_embed.proj.bias"]
    x = torch.cat([w[f"{seen}cls_token"].expand(len(x), -1, -1), x], dim=1) + w[f"{seen}pos_embed"]
    for number in range(SMALL["blocks"]):
        block = f"{seen}blocks.{number}."
        query, key, value = linear(norm(x, f"{block}norm1", 1e-6), f"{block}attn.qkv").chunk(3, dim=-1)
        x = x + linear(attend(query, key, value), f"{block}attn.proj")
        x = x + linear(gelu(linear(norm(x, f"{block}norm2", 1e-6), f"{block}mlp.fc1")), f"{block}mlp.fc2")
    picture = norm(x, f"{seen}norm", 1e-6)

    text = "blip.text_encoder."
    places = w[f"{text}embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = w[f"{text}embeddings.word_embeddings.weight"][ids] + places
    x = norm(x, f"{text}embeddings.LayerNorm", 1e-12)
    for number in range(SMALL["layers"]):
        layer = f"{text}encoder.layer.{number}."
        for name, source, kept in (("attention", None, mask), ("crossattention", picture, None)):
            part, keys = f"{layer}{name}.", x if source is None else source
            query, key = linear(x, f"{part}self.query"), linear(keys, f"{part}self.key")
            change = linear(
                attend(query, key, linear(keys, f"{part}self.value"), kept), f"{part}output.dense"
            )
            x = norm(x + change, f"{part}output.LayerNorm", 1e-12)
        wide = gelu(linear(x, f"{layer}intermediate.dense"))
        x = norm(x + linear(wide, f"{layer}output.dense"), f"{layer}output.LayerNorm", 1e-12)
    score = x[:, 0]
    for number in HEAD:
        score = linear(score, f"mlp.layers.{number}")
    return (score[:, 0] - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("imagereward")
    save_small(made)
    return made


def test_scores_follow_the_formulas_in_float64(folder: Path) -> None:
    from transformers import BertTokenizer

    words: Any = BertTokenizer.from_pretrained(folder)
    tokens = words(list(TEXTS), padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    pixels = torch.randn(len(TEXTS), 3, 32, 32, generator=torch.Generator().manual_seed(1))
    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    expected = oracle(state, pixels, tokens["input_ids"], tokens["attention_mask"])
    network = image_reward.load(folder / "ImageReward.pt", folder)
    assert expected.std() > 0.1
    assert (network.double()(pixels.double(), TEXTS) - expected).abs().max() < 1e-12
    network.float()
    assert (network(pixels, TEXTS) - expected).abs().max() < 1e-5
    assert [network.is_cut(text) for text in TEXTS] == [False, False, True, False]
    assert tokens["input_ids"][0, 0] == words.cls_token_id, "[CLS] stays in front"


def test_every_weight_of_the_released_form_has_its_place() -> None:
    with torch.device("meta"):
        given = {name: torch.empty(shape) for name, shape in form(**RELEASED).items()}
        network = ImageReward(image_reward.renamed(given), None)
    unused = {f"blip.{part}_proj.{kind}" for part in ("vision", "text") for kind in ("weight", "bias")}
    unused |= {"blip.text_encoder.embeddings.position_ids"}
    places = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
    found = {name: tuple(weight.shape) for name, weight in image_reward.renamed(given).items()}
    assert found == places and len(found) == len(given) - len(unused) == 620
    assert (network.side, network.vision.config.num_attention_heads) == (224, 16)
    assert network.text.config.num_attention_heads == 12
    # 1,786,880,927 bytes is what others saw of the released file; the rest are names and alignment.
    size = 4 * sum(weight.numel() for weight in given.values())
    assert 0 < 1_786_880_927 - size < 400 * len(given)


def test_other_files_are_refused(folder: Path, tmp_path: Path) -> None:
    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    short = {name: value for name, value in state.items() if "crossattention" not in name}
    longer = {**state, "blip.itm_head.weight": torch.zeros(2, 64)}
    for wrong, what in ((short, "Missing key"), (longer, "Unexpected key"), ({}, "KeyError"), ([1], "Attr")):
        torch.save(wrong, tmp_path / "ImageReward.pt")
        with pytest.raises(UserError, match=f"is no ImageReward: .*{what}"):
            image_reward.load(tmp_path / "ImageReward.pt", folder)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na")
    with pytest.raises(UserError, match=r"has 6 tokens, .* was trained with 77"):
        image_reward.load(folder / "ImageReward.pt", tmp_path)
