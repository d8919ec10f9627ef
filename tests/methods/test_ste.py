"""Straight-through post-training on the toy generator: its gradient against the closed form, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from alignbench import api, randomness
from alignbench.errors import UserError
from alignbench.methods.ste import StraightThrough
from alignbench.registry.lookup import Registry
from alignbench.rewards.pixel import PixelDistance
from tests.methods.test_vapi import CODES, TOKENS, ToyBackbone, batch, built, kept

REGISTRY = Registry.default()
STORED = torch.linspace(-2.0, 3.0, CODES * 3, dtype=torch.float64).view(CODES, 3).flip(0)
"""The codebook as the toy's file has it; what its decoder sees is the palette."""


class FrozenToy(ToyBackbone):
    """The toy with a frozen decoder, a codebook on file, and its last logits kept."""

    def __init__(self, *, dropout: float = 0.3) -> None:
        super().__init__(dropout=dropout)
        self.tokenizer.decoder.requires_grad_(False)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.tokenizer.decoder.weight.normal_()
        self.seen: list[Tensor] = []

    def logits(self, condition: api.Condition, context: Tensor) -> Tensor:
        out = super().logits(condition, context)
        out.retain_grad()
        self.seen.append(out)
        return out

    def export(self) -> dict[str, dict[str, Tensor]]:
        return {"policy": {}, "tokenizer": {"quantize.embedding.weight": STORED}}


def make(backbone: FrozenToy | api.Backbone, **changes: Any) -> StraightThrough:
    method: StraightThrough = built(
        "ste", backbone, **{"perceptual_weight": 0.0, "prior_weight": 0.0} | changes
    )
    return method


def gumbel(seed: int, step: int, index: int) -> np.ndarray:
    uniform = randomness.uniforms(seed, "ste-gumbel", step, [index], (TOKENS, CODES))[0]
    return np.asarray(-np.log(-np.log(uniform)))


def expected_gradient(
    method: StraightThrough, backbone: FrozenToy, images: np.ndarray, targets: np.ndarray, index: list[int]
) -> tuple[np.ndarray, float]:
    """dL/dl = (1/τ)·y∘(g − ⟨y, g⟩) + β/(BT)·(p − e), position by position, and the loss itself."""
    config, decoder = method.config, backbone.tokenizer.decoder
    weight, bias = decoder.weight.numpy(), decoder.bias.numpy()
    codes = (STORED if config.codebook == "raw" else backbone.tokenizer.palette).numpy()
    logits = backbone.seen[-1].detach().numpy()
    gradient, loss, count = np.zeros_like(logits), 0.0, len(index) * TOKENS
    for row, number in enumerate(index):
        noise = gumbel(0, 5, number) if config.estimator == "gumbel" else np.zeros((TOKENS, CODES))
        for place in range(TOKENS):
            scores = logits[row, place] + noise[place]
            hard = int(scores.argmax())
            top, left = 2 * (place // 2), 2 * (place % 2)
            patch = images[row, :, top : top + 2, left : left + 2]  # a token is a 2×2 patch of one colour
            error = (weight @ codes[hard] + bias)[:, None, None] - patch
            loss += config.pixel_weight * (error**2).mean() / count
            # The mean is over B images of 3·4·4 values; a token holds 3·2·2 of them.
            pull = 2 * error.sum(axis=(1, 2)) / (len(index) * 48) * config.pixel_weight
            g = codes @ (weight.T @ pull)
            soft = softmax(scores / config.temperature)
            gradient[row, place] = soft * (g - soft @ g) / config.temperature
            plain = softmax(logits[row, place])
            truth = np.eye(CODES)[targets[row, place]]
            gradient[row, place] += config.prior_weight * (plain - truth) / count
            loss -= config.prior_weight * math.log(plain[targets[row, place]]) / count
    return gradient, loss


@pytest.mark.parametrize("estimator", ["argmax", "gumbel"])
@pytest.mark.parametrize("codebook", ["normalised", "raw"])
@pytest.mark.parametrize(("temperature", "prior"), [(1.0, 0.0), (0.5, 0.1), (2.0, 0.1)])
def test_gradient_is_the_closed_form(estimator: str, codebook: str, temperature: float, prior: float) -> None:
    backbone, data = FrozenToy(), batch()
    options = {"estimator": estimator, "codebook": codebook, "temperature": temperature}
    method = make(backbone, pixel_weight=0.7, prior_weight=prior, **options)
    collected = method.collect(data, step=5)
    loss = method.loss(collected.experience)
    loss.value.backward()
    experience = kept(collected)
    expected, value = expected_gradient(
        method, backbone, data.images.numpy(), experience.targets.numpy(), data.index.tolist()
    )
    found = backbone.seen[-1].grad
    assert found is not None and np.abs(expected).max() > 1e-4
    assert np.abs(found.numpy() - expected).max() < 1e-14
    assert loss.value.item() == pytest.approx(value, abs=1e-12)
    assert all(part.grad is None for part in backbone.tokenizer.decoder.parameters())
    assert all(part.grad is not None for part in backbone.policy.parameters())


def test_image_terms_are_weighted_and_logged_alone() -> None:
    backbone = FrozenToy()
    weights = {"pixel_weight": 2.0, "perceptual_weight": 3.0, "prior_weight": 0.5}
    method = make(backbone, estimator="argmax", perceptual="pixel-l1", **weights)
    collected = method.collect(batch(), step=0)
    assert (collected.images, collected.sequences, collected.tokens) == (3, 3, 0)
    assert collected.reward_calls == {"pixel-mse": 3, "pixel-l1": 3}
    loss = method.loss(collected.experience)
    parts = {name: value.item() for name, value in loss.metrics.items()}
    tokens = backbone.seen[-1].argmax(-1)
    difference = backbone.tokenizer.decode(tokens, backbone.grid) - batch().images
    assert parts["pixel"] == pytest.approx(difference.square().mean().item(), abs=1e-12)
    assert parts["perceptual"] == pytest.approx(difference.abs().mean().item(), abs=1e-12)
    total = 2 * parts["pixel"] + 3 * parts["perceptual"] + 0.5 * parts["prior_loss"]
    assert loss.value.item() == pytest.approx(total, abs=1e-12)
    targets = backbone.tokenizer.encode(batch().images)
    assert parts["accuracy"] == pytest.approx((tokens == targets).double().mean().item(), abs=1e-12)


def test_gumbel_tokens_follow_the_policy() -> None:
    """Argmax of logits plus Gumbel numbers is a draw from the softmax."""
    backbone, size = FrozenToy(dropout=0.0), 3000
    one = batch(1)
    data = api.Batch(
        torch.arange(size), one.condition.repeat(size), one.images.expand(size, -1, -1, -1).contiguous()
    )
    method = make(backbone, estimator="gumbel")
    experience = kept(method.collect(data, step=0))
    logits = backbone.logits(data.condition, experience.targets[:, :-1])
    scores = logits + method._noise(experience, logits)
    expected = logits[0].softmax(-1)
    for place in range(TOKENS):
        share = scores[:, place].argmax(-1).bincount(minlength=CODES) / size
        assert (share - expected[place]).abs().max().item() < 0.04  # more than four standard errors


@pytest.mark.parametrize("options", [{"dropout": True}, {"estimator": "gumbel"}])
def test_random_numbers_belong_to_seed_and_step(options: dict[str, Any]) -> None:
    values = []
    for seed, step in ((0, 0), (0, 1), (1, 0)):
        method = make(FrozenToy(), seed=seed, **options)
        parts = [method.loss(method.collect(part, step).experience).value for part in batch().split(1)]
        values.append(torch.stack(parts).mean().item())
    method = make(FrozenToy(), **options)
    whole = method.loss(method.collect(batch(), 0).experience).value.item()
    assert values[0] == pytest.approx(whole, abs=1e-12)
    assert all(value != pytest.approx(whole, abs=1e-6) for value in values[1:])


def test_dropout_is_on_only_if_asked_for_and_the_mode_is_put_back() -> None:
    values = {}
    for dropout in (False, True):
        backbone = FrozenToy(dropout=0.5)
        backbone.policy.train(not dropout)
        method = make(backbone, dropout=dropout)
        values[dropout] = method.loss(method.collect(batch(), 0).experience).value.item()
        assert backbone.policy.training is not dropout
        assert backbone.rows == ([1, 1, 1] if dropout else [3])
    assert values[False] != values[True]
    plain = make(FrozenToy(dropout=0.0), dropout=True)
    assert plain.loss(plain.collect(batch(), 0).experience).value.item() == pytest.approx(values[False])


class Blind(PixelDistance):
    """A distance without a gradient."""

    def distance(self, images: Tensor, prepared: Tensor, *, repeats: int) -> Tensor:
        return super().distance(images.detach(), prepared, repeats=repeats)


def test_what_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="both 0") as caught:
        make(FrozenToy(), pixel_weight=0.0)
    assert "method.pixel_weight" in caught.value.fix
    with pytest.raises(UserError, match="'none'"):
        make(FrozenToy(), perceptual_weight=1.0, perceptual="none")
    judged = {"perceptual": "judge", "perceptual_weight": 1.0, "pixel_weight": 0.0}
    with pytest.raises(UserError, match="'judge'"):
        make(FrozenToy(), reward=lambda spec: object(), **judged)
    blind = make(FrozenToy(), reward=lambda spec: Blind("mse"), **judged)
    with pytest.raises(UserError, match="not differentiable"):
        blind.loss(blind.collect(batch(), 0).experience)
    backbone = FrozenToy()
    monkeypatch.setattr(backbone, "export", lambda: {"tokenizer": {}})
    with pytest.raises(UserError, match=r"quantize\.embedding\.weight"):
        make(backbone, codebook="raw")


def test_raw_codebook_of_llamagen_is_the_stored_one() -> None:
    from alignbench.backbones.llamagen.model import build

    backbone = build(Registry.default().model("llamagen-tiny"), None)
    with torch.no_grad():
        backbone.tokenizer.quantize.embedding.weight.mul_(3.0)
    for codebook, length in (("raw", 3.0), ("normalised", 1.0)):
        method = make(backbone, codebook=codebook)
        lengths = torch.linalg.vector_norm(method.codebook, dim=1)
        assert torch.allclose(lengths, torch.full_like(lengths, length), atol=1e-5)


# --- recipes --------------------------------------------------------------------------------------


def test_the_long_recipes_have_the_switches_of_the_released_program() -> None:
    released = {"method.estimator": "gumbel", "method.codebook": "raw", "method.dropout": True}
    for model, times in (("llamagen-tiny", 10), ("llamagen-xxl", 100)):
        short, long = (REGISTRY.recipe(f"ste-{kind}{model}") for kind in ("", "long-"))
        assert REGISTRY.recipe_for("ste", model) == f"ste-{model}" and not long.default
        assert long.values["train.steps"] == times * int(short.values["train.steps"])
        assert (released | {"method.prior_weight": 0.0}).items() <= long.values.items()
    assert {"train.lr": 1e-5, "train.weight_decay": 1e-2, "train.beta2": 0.95}.items() <= long.values.items()
