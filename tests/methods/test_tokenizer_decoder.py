"""Decoder post-training: its gradient in closed form and by finite differences, and the whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignbench import api
from alignbench.backbones.llamagen.model import build
from alignbench.errors import UserError
from alignbench.files import package_file
from alignbench.methods.tokenizer_decoder import Experience, TokenizerDecoder
from alignbench.registry.lookup import Registry
from alignbench.training import setup
from tests.helpers.command import alignbench
from tests.methods.test_vapi import CODES, TOKENS, ToyBackbone, batch, built

REGISTRY = Registry.default()


def toy() -> Any:
    backbone: Any = ToyBackbone()
    backbone.tokenizer.trainable_decoder = lambda: backbone.tokenizer.decoder
    setup.trained_module(backbone, "decoder")
    return backbone


def make(backbone: Any, **changes: Any) -> TokenizerDecoder:
    method: TokenizerDecoder = built("tokenizer-decoder", backbone, **{"perceptual_weight": 0.0, **changes})
    return method


def kept(collected: api.Collected) -> Experience:
    assert isinstance(collected.experience, Experience)
    return collected.experience


def test_samples_come_from_the_clean_context_one_for_each_image() -> None:
    """Tokens of many copies of one image follow the policy's teacher-forced distribution (Eq. 36)."""
    backbone, size, one = toy(), 3000, batch(1)
    data = api.Batch(
        torch.arange(size), one.condition.repeat(size), one.images.expand(size, -1, -1, -1).contiguous()
    )
    collected = make(backbone, temperature=0.5).collect(data, step=0)
    assert (collected.images, collected.sequences, collected.tokens) == (size, size, 0)
    assert collected.reward_calls == {"pixel-mse": size}
    tokens = kept(collected).tokens
    assert tokens.shape == (size, TOKENS)
    backbone.policy.eval()
    clean = backbone.tokenizer.encode(one.images)
    expected = (backbone.logits(one.condition, clean[:, :-1]) / 0.5).softmax(-1)[0]
    for place in range(TOKENS):
        share = tokens[:, place].bincount(minlength=CODES) / size
        assert (share - expected[place]).abs().max().item() < 0.04


def test_samples_belong_to_seed_and_step() -> None:
    tokens = [
        kept(make(toy(), seed=seed).collect(batch(12), step)).tokens
        for seed, step in ((0, 0), (0, 1), (1, 0))
    ]
    assert not torch.equal(tokens[0], tokens[1]) and not torch.equal(tokens[0], tokens[2])


@pytest.mark.parametrize("perceptual", [0.0, 1.0])
def test_gradient_is_the_closed_form(perceptual: float) -> None:
    """The toy decodes a code vector c to W·c + b on a patch: dL/dW = Σ 2(W·c + b − x)·cᵀ / values."""
    backbone, data = toy(), batch()
    method = make(backbone, pixel_weight=0.7, perceptual_weight=perceptual, perceptual="pixel-mse")
    collected = method.collect(data, step=0)
    loss = method.loss(collected.experience)
    loss.value.backward()
    decoder, tokens = backbone.tokenizer.decoder, kept(collected).tokens
    weight, bias = torch.zeros(3, 3).double(), torch.zeros(3).double()
    for row in range(len(data)):
        for place in range(TOKENS):
            code = backbone.tokenizer.palette[tokens[row, place]]
            top, left = 2 * (place // 2), 2 * (place % 2)
            patch = data.images[row, :, top : top + 2, left : left + 2]
            error = (decoder.weight @ code + decoder.bias).detach()[:, None, None] - patch
            pull = (0.7 + perceptual) * 2 * error.sum(dim=(1, 2)) / data.images.numel()
            weight += pull[:, None] * code
            bias += pull
    assert decoder.weight.grad is not None and decoder.bias.grad is not None
    assert weight.abs().max() > 1e-3
    assert (decoder.weight.grad - weight).abs().max().item() < 1e-14
    assert (decoder.bias.grad - bias).abs().max().item() < 1e-14
    assert all(part.grad is None for part in backbone.policy.parameters())


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(UserError, match="both 0"):
        make(toy(), pixel_weight=0.0)


def test_recipes_short_by_default_and_long_by_name() -> None:
    for model in ("llamagen-tiny", "llamagen-xxl"):
        short = REGISTRY.recipe_for("tokenizer-decoder", model)
        assert short == f"tokenizer-decoder-{model}"
        long = REGISTRY.recipe(f"tokenizer-decoder-long-{model}")
        assert not long.default
        steps = REGISTRY.recipe(short).values["train.steps"], long.values["train.steps"]
        if model == "llamagen-xxl":
            assert steps == (100, 10_000)
        assert {**long.values, "train.steps": steps[0]}.items() <= REGISTRY.recipe(short).values.items()


# --- the whole run --------------------------------------------------------------------------------


def test_run_trains_exports_and_evaluates_the_tokenizer(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = alignbench(
        "run", "--out", out, "--method", "tokenizer-decoder", "--model", "llamagen-tiny", "--steps", "4",
        "--set", "protocol.samples=60", "--set", "protocol.seeds=0", "--set", "protocol.settings=t1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "complete" and list(record["exports"]) == ["tokenizer"]
    tokenizer = build(REGISTRY.model("llamagen-tiny"), None).tokenizer
    decoder = sum(part.numel() for part in tokenizer.trainable_decoder().parameters())
    assert record["model"]["trainable_parameters"] == decoder
    assert record["train"]["images"] == record["train"]["sequences"] == 4 * 32
    assert record["train"]["reward_calls"] == {"pixel-mse": 128, "perceptual-digits": 128}

    card = next(file for file in REGISTRY.model("llamagen-tiny").files if file.role == "tokenizer")
    before = load_file(package_file(card.path))
    after = load_file(out / "export" / "tokenizer.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)

    # The policy samples the same tokens; only the pixels differ, and with them the scores.
    codes = {subject: sample_tokens(out, subject) for subject in ("base", "method")}
    assert torch.equal(codes["base"], codes["method"])
    scores = {result["subject"]: result["metrics"] for result in record["results"]}
    assert scores["base"]["fd-pixels"] != scores["method"]["fd-pixels"]


def sample_tokens(out: Path, subject: str) -> Tensor:
    files = sorted((out / "samples" / subject / "t1" / "seed-0").glob("*.npz"))
    assert files
    return torch.cat([torch.from_numpy(np.load(file)["tokens"].astype("int64")) for file in files])
