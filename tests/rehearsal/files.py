"""What the real experiment reads, in the released containers under the released names, with random weights.

LlamaGen is of size B on a small grid of tokens; tokenizer, Inception, VGG-16, GenEval's detector and its
CLIP have their real size; Janus-Pro, Flan-T5, the rewards' CLIP, HPSv2.1 and Qwen2.5-VL are small models of
the official classes.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from alignbench.backbones.llamagen.model import build
from alignbench.files import file_sha256
from alignbench.hub.transfer import human_size
from alignbench.nets import clip, inception
from alignbench.registry.lookup import Registry
from tests.backbones.test_janus_files import released_names
from tests.conftest import ROOT
from tests.evaluators.test_mask2former import official_shapes
from tests.helpers import janus_toys, tiny_rewards, tiny_t5
from tests.helpers.inception_toys import pictures, save_random
from tests.helpers.lpips_trunks import random_trunk
from tests.helpers.tiny_open_clip import save_archive
from tests.rehearsal.server import digest_of

PACKAGES = ("alignbench", "methods", "evaluators", "registry")
B = {"dim": 768, "layers": 12, "heads": 12, "ffn_hidden": 2048}
GRIDS = {"llamagen-xxl": 8, "llamagen-xl": 8, "llamagen-xl-t2i": 16}
"""Tokens along a side: a model's files are the same for every grid. GenEval's protocol asks for 256 px."""
JANUS = {
    "dim": 64, "layers": 2, "heads": 4, "ffn_hidden": 128, "text_vocab": 264, "vocab_size": 512,
    "base_channels": 32, "z_channels": 32, "codebook_size": 512,
}  # fmt: skip
CLASSES = 1000


class Cards:
    """A copy of the package whose cards describe the stand-ins.

    Args:
        folder: where the copy goes.
        server: address of the server; cards with an address of their own lead there.
    """

    def __init__(self, folder: Path, server: str) -> None:
        self.folder, self.server = folder, server
        for name in PACKAGES:
            skipped = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=skipped)

    def edit(self, card: str, change: Callable[[str], str]) -> None:
        path = self.folder / "registry" / f"{card}.toml"
        path.write_text(change(path.read_text()))

    def resize(self, card: str, values: dict[str, int], parameters: tuple[int, int]) -> None:
        """Give a model's card other sizes; `parameters`: those of policy and tokenizer."""

        def change(text: str) -> str:
            for key, value in values.items():
                text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
            counts = iter(parameters)
            return re.sub(
                r"(?m)^parameters = \d+$", lambda _: f"parameters = {next(counts, 0)}", text, count=2
            )

        self.edit(f"models/{card}", change)

    def describe(self, card: str, file: Path, name: str) -> None:
        """Put the size and digest of a stand-in where a card states those of the released file."""

        def change(text: str) -> str:
            start = text.index(f'= "{name}"')
            end = text.find("[[files]]", start) % (len(text) + 1)
            part = re.sub(r"(?m)^size = \d+$", f"size = {file.stat().st_size}", text[start:end])
            part = re.sub(r'(?m)^sha256 = ".*"$', f'sha256 = "{digest_of(file)}"', part)
            return text[:start] + part + text[end:]

        self.edit(card, change)

    def lead_here(self) -> None:
        """Let the addresses on all cards lead to the server, and protocols sample in fp32 as runs train."""
        for path in (self.folder / "registry").rglob("*.toml"):
            text = path.read_text().replace('precision = "bf16"', 'precision = "fp32"')
            path.write_text(re.sub(r'(?m)^url = "https://', f'url = "{self.server}/web/', text))


def _web_path(root: Path, asset: str) -> Path:
    """Where the server keeps the file of an asset."""
    card = Registry.default().asset(asset)
    path = (
        root / "web" / card.url.removeprefix("https://") if card.url else root / "hub" / card.repo / card.file
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def count(module: torch.nn.Module) -> int:
    """Parameters."""
    return sum(value.numel() for value in module.parameters())


def save(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def llamagen(root: Path, cards: Cards, model: str) -> None:
    """Write policy and tokenizer of one card, at size B, in LlamaGen's containers."""
    card = Registry.default().model(model)
    side = GRIDS[model]
    sizes = {**B, "tokens": side**2, "image_size": side * card.tokenizer.downsample}
    policy = card.policy.model_copy(update={key: sizes[key] for key in (*B, "tokens")})
    small = card.model_copy(update={"policy": policy, "image_size": sizes["image_size"]})
    backbone = build(small, None, seed=1)
    modules = {"policy": backbone.policy, "tokenizer": backbone.tokenizer}
    cards.resize(model, sizes, (count(backbone.policy), count(backbone.tokenizer)))
    for file in card.files:
        state = dict(modules[file.role].state_dict())
        if file.role == "policy":  # the released files hold the table of rotations, too
            state["freqs_cis"] = torch.zeros(card.policy.tokens + 1, B["dim"] // B["heads"] // 2, 2)
        path = root / "hub" / file.repo / file.path
        if not path.exists():
            save(path, {"model": state})
        cards.describe(f"models/{model}", path, file.path)


def janus(root: Path, cards: Cards) -> None:
    """Write a small Janus-Pro as its authors' repository holds it: all parts in one file, and a tokenizer."""
    card, config = Registry.default().model("janus-pro-1b"), janus_toys.hub_config()
    config.vq_config.channel_multiplier = list(card.tokenizer.multipliers)
    config.vq_config.num_res_blocks, config.vq_config.num_embeddings = 2, JANUS["codebook_size"]
    network = janus_toys.hub_model(1, config)
    whole, tokenizer = (count(module) for module in (network, network.model.vqmodel))
    policy = (
        whole
        - tokenizer
        - count(network.model.vision_model)
        - count(network.model.aligner)
        - count(network.lm_head)
    )
    folder = root / "hub" / card.files[0].repo
    state = {key: value.clone() for key, value in network.state_dict().items()}
    save(folder / "pytorch_model.bin", released_names(state))
    janus_toys.processor().tokenizer.save_pretrained(folder)
    cards.resize("janus-pro-1b", JANUS, (policy, tokenizer))


def _random(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Weights that keep the size of what passes through them."""
    numbers = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("_index"):
            state[name] = torch.zeros(shape, dtype=torch.int64)
        elif len(shape) > 1:
            fan_in = torch.Size(shape[1:]).numel()
            state[name] = torch.randn(shape, generator=numbers) * (2 / fan_in) ** 0.5
        else:
            state[name] = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    return state


def assets(root: Path, cards: Cards) -> None:
    """Write Inception, VGG-16, detector and CLIP of GenEval, prompts, Flan-T5."""
    files = {
        name: _web_path(root, name)
        for name in ("inception-2015-12-05", "lpips-vgg16-trunk", "mask2former-swin-s-mmdet",
                     "clip-vit-l-14-openai", "geneval-prompts")
    }  # fmt: skip
    save_random(files["inception-2015-12-05"])
    random_trunk("vgg", files["lpips-vgg16-trunk"])
    # torchvision's names end in the digits that the file must have.
    trunk = files["lpips-vgg16-trunk"]
    files["lpips-vgg16-trunk"] = trunk.rename(trunk.with_name(f"vgg16-{file_sha256(trunk)[:8]}.pth"))
    cards.edit(
        "assets/lpips-vgg16-trunk", lambda text: text.replace(trunk.name, files["lpips-vgg16-trunk"].name)
    )
    detector = {"meta": {}, "state_dict": _random(official_shapes())}
    torch.save(detector, files["mask2former-swin-s-mmdet"])
    save_archive(files["clip-vit-l-14-openai"], clip.architecture_of("ViT-L-14-quickgelu"))
    files["geneval-prompts"].write_text("".join(f"{json.dumps(line)}\n" for line in _prompts()))
    for name, path in files.items():
        cards.describe(
            f"assets/{name}", path, path.name if "vgg" in name else Registry.default().asset(name).file
        )
    tiny_t5.write_tiny_t5(root / "hub" / "google" / "flan-t5-xl", width=2048, shard_size="4MB")


def _prompts() -> list[dict[str, Any]]:
    """As many questions as GenEval has, in its form; the sentences are made up."""
    colours, things = ("red", "green", "blue", "yellow"), ("apple", "dog", "clock", "bus", "bench")
    lines = []
    for number in range(553):
        colour, thing = colours[number % 4], things[number % 5]
        text = f"a photo of {colour} {thing} number {number}"
        question = {"class": thing, "count": 1, "color": colour}
        lines.append({"tag": "colors", "include": [question], "prompt": text})
    return lines


def rewards(root: Path, cards: Cards) -> None:
    """Write the networks that AR-GRPO's recipe names; Qwen2.5-VL in shards, as it was released."""
    hub = root / "hub"
    tiny_rewards.save_clip(hub / "openai" / "clip-vit-base-patch32")
    tiny_rewards.save_hps(hub / "xswu" / "HPSv2")
    judge = hub / "Qwen" / "Qwen2.5-VL-3B-Instruct"
    tiny_rewards.save_vlm(judge, shard_size="200KB")
    # A random judge says neither yes nor no.
    cards.edit("rewards/vlm-judge", lambda text: text.replace("default = 0.05", "default = 0.0"))
    # The released checkpoint is a ViT-H-14 and needs no description of its architecture.
    add = '"{checkpoint}", "open_clip_config.json"'
    cards.edit("rewards/hpsv2.1", lambda text: text.replace('"{checkpoint}"', add))


def imagenet(folder: Path) -> None:
    """Write train/ and val/ with a JPEG for each of 1,000 classes, or for the first few."""
    for split, count in (("train", CLASSES), ("val", 8)):
        for number, pixels in enumerate(pictures(count, seed=len(split), side=288)):
            path = folder / split / f"n{1440764 + 17 * number:08d}" / f"{split}_{number}.JPEG"
            path.parent.mkdir(parents=True)
            Image.fromarray(pixels).save(path)


def captioned(folder: Path) -> None:
    """Write pictures with a caption beside each."""
    folder.mkdir(parents=True)
    for number, pixels in enumerate(pictures(8, seed=9, side=288)):
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
        (folder / f"{number}.txt").write_text(f"a photo of a red circle and {number} squares")


def reference(root: Path) -> None:
    """Write the arrays of ADM's reference batch, of 24 pictures."""
    images = pictures(24, seed=5, side=256)
    net = inception.load(_web_path(root, "inception-2015-12-05"), torch.device("cpu"))
    rows = net.rows(torch.from_numpy(images).permute(0, 3, 1, 2), batch=16)
    arrays: dict[str, Any] = {}
    for mean, covariance, column in (("mu", "sigma", "pool"), ("mu_s", "sigma_s", "spatial")):
        values = rows[column].astype(np.float64)
        arrays |= {mean: values.mean(0), covariance: np.cov(values, rowvar=False)}
    np.savez(_web_path(root, "imagenet256-adm-reference"), arr_0=images, **arrays)


def total_size(folder: Path) -> str:
    """Of all files in a folder, for people."""
    return human_size(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
