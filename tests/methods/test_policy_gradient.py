"""The pure maths against closed forms and plain loops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from alignbench.methods.groups import GroupOptions
from alignbench.methods.policy_gradient import (
    Draws,
    Objective,
    clipped_surrogate,
    corrupt,
    group_advantages,
    prior_cross_entropy,
    token_logprobs,
    token_mean,
)

OPTIONS = GroupOptions(
    group_size=2,
    clip_range=0.2,
    clip_range_high=0.0,
    ratio="token",
    baseline="mean",
    advantage_std="group",
    redraws=0,
    kl_estimator="k3",
    kl_in="loss",
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randint(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


# --- advantages -----------------------------------------------------------------------------------


def test_advantages_are_standard_scores() -> None:
    rewards = randn(5, 8)
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-8)
    assert torch.allclose(group_advantages(rewards), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("value", [-0.2, -0.3141592, 0.0, -1e6, 1e-12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_give_exactly_zero(value: float, dtype: torch.dtype) -> None:
    advantages = group_advantages(torch.full((3, 8), value, dtype=dtype))
    assert advantages.dtype == dtype
    assert torch.equal(advantages, torch.zeros(3, 8, dtype=dtype))


def test_rewards_that_differ_by_rounding_give_exactly_zero() -> None:
    rewards = torch.full((1, 8), -0.2)
    rewards[0, 3] = torch.nextafter(rewards[0, 3], torch.tensor(0.0))
    assert rewards.unique().numel() == 2
    assert torch.equal(group_advantages(rewards), torch.zeros(1, 8))


def test_a_small_real_spread_survives() -> None:
    rewards = -0.2 + 1e-4 * randn(1, 8)
    assert group_advantages(rewards).std().item() == pytest.approx(1.0, abs=1e-3)


def test_invalid_scores_are_left_out() -> None:
    rewards = randn(1, 6)
    expected = group_advantages(rewards[:, :4])
    rewards[0, 4], rewards[0, 5] = torch.nan, torch.inf
    valid = torch.tensor([[True] * 4 + [False] * 2])
    advantages = group_advantages(rewards, valid=valid)
    assert torch.allclose(advantages[:, :4], expected, rtol=0, atol=1e-14)
    assert torch.equal(advantages[:, 4:], torch.zeros(1, 2, dtype=torch.float64))


@pytest.mark.parametrize("num_valid", [0, 1])
def test_groups_without_two_valid_scores_are_zero(num_valid: int) -> None:
    valid = torch.arange(4).expand(2, 4) < num_valid
    assert torch.equal(group_advantages(randn(2, 4), valid=valid), torch.zeros(2, 4, dtype=torch.float64))


def test_a_valid_nan_is_not_hidden() -> None:
    assert group_advantages(torch.tensor([[0.0, torch.nan, 1.0]])).isnan().all()


# --- log-probabilities ----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_token_logprobs_equal_a_gathered_log_softmax(temperature: float) -> None:
    logits, tokens = randn(2, 5, 9), randint(9, 2, 3, 5)
    table = (logits / temperature).log_softmax(-1)
    expected = torch.stack([table.gather(-1, tokens[:, g, :, None])[..., 0] for g in range(3)], dim=1)
    assert torch.allclose(token_logprobs(logits, tokens, temperature), expected, rtol=0, atol=1e-14)


def test_half_precision_logits_are_raised_to_float32() -> None:
    logits, tokens = randn(1, 4, 9).bfloat16(), randint(9, 1, 2, 4)
    result = token_logprobs(logits, tokens, 1.0)
    assert result.dtype == torch.float32
    assert torch.equal(result, token_logprobs(logits.float(), tokens, 1.0))


def test_nothing_larger_than_the_logits_is_kept_for_backward() -> None:
    logits = randn(2, 5, 64).requires_grad_()
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_logprobs(logits, randint(64, 2, 8, 5), 0.9)
    assert sizes and max(sizes) <= logits.numel()


# --- surrogate ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [
        (1.0, 2.0, -2.0, True),
        (1.1, 2.0, -2.2, True),
        (1.5, 2.0, -2.4, False),
        (0.5, 2.0, -1.0, True),
        (1.5, -2.0, 3.0, True),
        (0.5, -2.0, 1.6, False),
        (1.0, 9.0, -5.0, True),
        (1.0, -9.0, 5.0, True),
    ],
)
def test_surrogate_clips_only_moves_beyond_the_range(
    ratio: float, advantage: float, loss: float, moves: bool
) -> None:
    new = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    surrogate = clipped_surrogate(new, torch.zeros_like(new), torch.tensor([advantage]), 0.2, 5.0)
    assert surrogate.sequence_loss.item() == pytest.approx(loss, abs=1e-12)
    (gradient,) = torch.autograd.grad(surrogate.sequence_loss.sum(), new)
    assert (gradient.item() != 0) == moves
    assert surrogate.clip_fraction.item() == (abs(ratio - 1) > 0.2)


def test_token_mean_keeps_the_first_token_of_an_empty_row() -> None:
    values = torch.tensor([[1.0, 2.0, 6.0], [4.0, 5.0, 6.0]])
    keep = torch.tensor([[0, 1, 1], [0, 0, 0]])
    assert token_mean(values, keep).tolist() == [4.0, 4.0]
    assert keep.tolist() == [[0, 1, 1], [0, 0, 0]]
    assert token_mean(values).tolist() == [3.0, 5.0]


# --- prior ---------------------------------------------------------------------------------


def test_prior_equals_torch_cross_entropy() -> None:
    logits, targets = randn(3, 5, 9), randint(9, 3, 5)
    expected = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    assert torch.allclose(prior_cross_entropy(logits, targets), expected, rtol=0, atol=1e-14)


# --- the whole objective --------------------------------------------------------------------------

OBJECTIVE = Objective(
    policy_weight=1.0, prior_weight=0.0, clip_range=0.2, advantage_clip=5.0, temperature=1.0
)


def closed_form_gradient(
    logits: Tensor, targets: Tensor, draws: Draws, clip_range: float, beta: float
) -> Tensor:
    """dL/dlogits written out with sums over samples; no autograd."""
    rows, length, num_codes = logits.shape
    group = draws.tokens.shape[1]
    p = logits.softmax(-1)
    gradient = beta * (p - F.one_hot(targets, num_codes))
    for g in range(group):
        tokens = draws.tokens[:, g]
        one_hot = F.one_hot(tokens, num_codes)
        ratio = (p.log().gather(-1, tokens[..., None])[..., 0] - draws.logprobs[:, g]).exp()
        advantage = draws.advantages[:, g, None].expand_as(ratio)
        free = torch.where(advantage >= 0, ratio <= 1 + clip_range, ratio >= 1 - clip_range)
        c = (advantage * ratio * free)[..., None]
        gradient = gradient + (p * c - c * one_hot) / group
    return gradient / (rows * length)


@pytest.mark.parametrize("scatter", [0.0, 0.5])
@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
def test_gradient_of_the_objective_in_closed_form(scatter: float, beta: float) -> None:
    logits, targets, tokens = randn(3, 6, 11), randint(11, 3, 6), randint(11, 3, 8, 6, seed=1)
    old = token_logprobs(logits + scatter * randn(3, 6, 11, seed=2), tokens, 1.0)
    draws = Draws(tokens, old, group_advantages(randn(3, 8, seed=3)))
    objective = replace(OBJECTIVE, prior_weight=beta)
    leaf = logits.clone().requires_grad_()
    loss = objective(leaf, targets, draws)
    (gradient,) = torch.autograd.grad(loss.value, leaf)
    expected = closed_form_gradient(logits, targets, draws, 0.2, beta)
    assert (gradient - expected).abs().max().item() < 1e-15
    assert (loss.metrics["clip_fraction"] > 0.2) == (scatter > 0)


# --- noise ----------------------------------------------------------------------------------------


def noisy(tokens: Tensor, rate: float, kernel: Any, num_codes: int, seed: int = 0) -> Tensor:
    flips, replacements = torch.from_numpy(np.random.default_rng(seed).random((2, *tokens.shape)))
    return corrupt(
        tokens, rate, kernel, num_codes=num_codes, flip_uniforms=flips, replacement_uniforms=replacements
    )


@pytest.mark.parametrize("kernel", ["exclusive", "inclusive"])
def test_noise_of_rate_zero_changes_nothing_and_equal_numbers_give_equal_noise(kernel: str) -> None:
    tokens = randint(7, 3, 50)
    assert torch.equal(noisy(tokens, 0.0, kernel, 7), tokens)
    assert torch.equal(noisy(tokens, 0.5, kernel, 7), noisy(tokens, 0.5, kernel, 7))
    assert not torch.equal(noisy(tokens, 0.5, kernel, 7), noisy(tokens, 0.5, kernel, 7, seed=1))


@pytest.mark.parametrize(("kernel", "changed"), [("exclusive", 0.4), ("inclusive", 0.4 * 6 / 7)])
def test_share_of_tokens_that_change(kernel: str, changed: float) -> None:
    tokens = randint(7, 100, 500)
    share = (noisy(tokens, 0.4, kernel, 7) != tokens).double().mean().item()
    assert share == pytest.approx(changed, abs=4 * math.sqrt(changed * (1 - changed) / tokens.numel()))


@pytest.mark.parametrize("kernel", ["exclusive", "inclusive"])
def test_replacements_are_uniform_over_the_allowed_codes(kernel: str) -> None:
    tokens = torch.full((1, 70_000), 3)
    counts = noisy(tokens, 1.0, kernel, 7).flatten().bincount(minlength=7)
    assert counts.numel() == 7
    allowed = counts[torch.arange(7) != 3] if kernel == "exclusive" else counts
    expected = tokens.numel() / allowed.numel()
    assert ((allowed - expected).abs() < 4.5 * math.sqrt(expected)).all()
    assert (counts[3] == 0) == (kernel == "exclusive")


@pytest.mark.parametrize("kernel", ["exclusive", "inclusive"])
def test_largest_uniform_still_gives_a_code(kernel: Any) -> None:
    top = torch.full((1, 1), np.nextafter(1.0, 0.0), dtype=torch.float64)
    numbers = {"flip_uniforms": torch.zeros(1, 1), "replacement_uniforms": top}
    for num_codes in (2, 3, 24, 128, 16384):
        code = corrupt(torch.zeros(1, 1, dtype=torch.int64), 1.0, kernel, num_codes=num_codes, **numbers)
        assert code.item() == num_codes - 1
