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
from alignbench.methods.tokenizer_decoder import Experience, TokenizerDecoder, kept_codes
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


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(UserError, match="both 0"):
        make(toy(), pixel_weight=0.0)
    for option in ({"preserved": 0.5}, {"cfg_scale": 2.0}, {"top_k": 5}, {"top_p": 0.9}):
        with pytest.raises(UserError, match="drawn one after another"):
            make(toy(), **option)


# --- generated tokens (RobusTok, §4.3) ------------------------------------------------------------


def digits(count: int = 24) -> tuple[Any, api.Batch]:
    """The shipped model, and training-like images."""
    card = REGISTRY.model("llamagen-tiny")
    backbone = build(card, {str(file.role): package_file(file.path) for file in card.files})
    setup.trained_module(backbone, "decoder")
    numbers = torch.Generator().manual_seed(3)
    images = torch.rand(count, 1, 8, 8, generator=numbers).expand(-1, 3, -1, -1) * 2 - 1
    return backbone, api.Batch(torch.arange(count) + 7, api.ClassLabels(torch.arange(count) % 10), images)


def test_a_code_is_kept_where_its_number_is_below_the_share() -> None:
    tokens, uniforms = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0.1, 0.8, 0.4, 0.95]])
    assert kept_codes(tokens, 0.7, uniforms).tolist() == [[5, -1, 7, -1]]
    assert torch.equal(kept_codes(tokens, 1.0, uniforms), tokens)
    assert (kept_codes(tokens, 0.0, uniforms) == -1).all()


def test_all_kept_is_plain_reconstruction() -> None:
    backbone, data = digits()
    method = make(backbone, samples="generated", preserved=1.0, pixel_weight=1.0)
    collected = method.collect(data, step=0)
    codes = backbone.tokenizer.encode(data.images)
    assert torch.equal(kept(collected).tokens, codes)
    assert (collected.tokens, collected.sequences) == (codes.numel(), len(data))
    error = backbone.tokenizer.decode(codes, backbone.grid) - data.images
    expected = error.square().mean().item()
    assert method.loss(collected.experience).value.item() == pytest.approx(expected, rel=1e-6)


def test_a_share_is_kept_and_the_rest_depends_on_it() -> None:
    backbone, data = digits(400)
    codes = backbone.tokenizer.encode(data.images)
    drawn = {
        share: kept(make(backbone, samples="generated", preserved=share).collect(data, 0)).tokens
        for share in (0.0, 0.7)
    }
    same = {share: (tokens == codes).double().mean().item() for share, tokens in drawn.items()}
    by_chance = same[0.0]
    assert same[0.7] == pytest.approx(0.7 + 0.3 * by_chance, abs=0.03)  # 6,400 codes
    sharper = make(backbone, samples="generated", top_k=1, cfg_scale=2.0).collect(data, 0)
    greedy = api.Sampling(greedy=True, cfg_scale=2.0)
    most_likely = backbone.generate(data.condition, torch.zeros(400, 16).double(), greedy).tokens
    assert torch.equal(kept(sharper).tokens, most_likely)


def test_images_are_read_again_through_the_decoder_as_it_was() -> None:
    backbone, data = digits()
    options: dict[str, Any] = {"preserved": 0.5, "pixel_weight": 1.0}
    drawn = kept(make(backbone, samples="generated", **options).collect(data, 0)).tokens
    method = make(backbone, samples="re-encoded", **options)
    pixels = np.trunc(
        np.clip(127.5 * backbone.tokenizer.decode(drawn, backbone.grid).detach().numpy() + 128, 0, 255)
    )
    expected = backbone.tokenizer.encode(torch.from_numpy(pixels / 127.5 - 1).float())
    assert not torch.equal(expected, drawn)
    for _ in range(2):
        assert torch.equal(kept(method.collect(data, 0)).tokens, expected)
        with torch.no_grad():
            for part in backbone.tokenizer.trainable_decoder().parameters():
                part.mul_(0.5)


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
