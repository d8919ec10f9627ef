"""Token generation against teacher-forced logits and independent samplers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignbench.api import ClassLabels, Condition, Sampling
from alignbench.backbones.generate import filter_logits, generate_steps
from alignbench.backbones.llamagen.gpt import GPT, GPTConfig
from tests.backbones.test_gpt import CLASS_CONFIG, TEXT_CONFIG, caption, make, tokens_of

BOTH = pytest.mark.parametrize("config", [CLASS_CONFIG, TEXT_CONFIG], ids=["class", "text"])


def condition_for(config: GPTConfig, rows: int) -> Condition:
    torch.manual_seed(5)
    return ClassLabels(torch.arange(rows) % 4) if config.condition == "class" else caption(rows)


def uniforms_for(gpt: GPT, rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.rand(rows, gpt.config.num_tokens, generator=generator, dtype=torch.float64)


def guided(gpt: GPT, condition: Condition, context: torch.Tensor, scale: float) -> torch.Tensor:
    conditional, null = gpt(condition, context), gpt(gpt.null(condition), context)
    mixed: torch.Tensor = null + scale * (conditional - null)
    return mixed


@BOTH
def test_cached_logits_equal_the_full_forward(config: GPTConfig) -> None:
    gpt = make(config)
    condition, tokens = condition_for(config, 3), tokens_of(gpt, 3)
    trace = generate_steps(gpt, condition, uniforms_for(gpt, 3), Sampling(), forced=tokens, keep_logits=True)
    assert torch.equal(trace.tokens, tokens)
    torch.testing.assert_close(trace.logits, gpt(condition, tokens[:, :-1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@BOTH
def test_given_tokens_stand_and_the_others_are_drawn_after_them(config: GPTConfig, scale: float) -> None:
    """Held against whole forwards: each drawn token is that of its number, after all tokens before it."""
    gpt, rows = make(config), 6
    condition, uniforms, given = condition_for(config, rows), uniforms_for(gpt, rows), tokens_of(gpt, rows)
    place = uniforms.flip(0) < 0.5
    forced = given.where(place, -1)
    sampling = Sampling(cfg_scale=scale, temperature=0.8)
    tokens = generate_steps(gpt, condition, uniforms, sampling, forced=forced).tokens
    assert 0 < place.sum() < place.numel() and torch.equal(tokens[place], given[place])
    mass = (guided(gpt, condition, tokens[:, :-1], scale) / 0.8).double().softmax(-1).cumsum(-1)
    drawn = torch.searchsorted(mass, uniforms[..., None], right=True)[..., 0]
    assert torch.equal(tokens[~place], drawn[~place])
    free = generate_steps(gpt, condition, uniforms, sampling).tokens
    assert not torch.equal(free[~place], tokens[~place])  # what is given is read
    none = generate_steps(gpt, condition, uniforms, sampling, forced=torch.full_like(given, -1)).tokens
    assert torch.equal(free, none)


@BOTH
def test_guidance_mixes_both_halves_until_the_interval_ends(config: GPTConfig) -> None:
    gpt = make(config)
    condition, tokens = condition_for(config, 3), tokens_of(gpt, 3)
    plain = gpt(condition, tokens[:, :-1])
    mixed = guided(gpt, condition, tokens[:, :-1], 3.0)
    assert (plain - mixed).abs().amax(dim=(0, 2)).min() > 1e-3
    for interval in (-1, 0, 2, 50):
        sampling = Sampling(cfg_scale=3.0, cfg_interval=interval)
        trace = generate_steps(
            gpt, condition, uniforms_for(gpt, 3), sampling, forced=tokens, keep_logits=True
        )
        last = interval + 1 if interval >= 0 else 99
        expected = torch.where((torch.arange(6) <= last)[:, None], mixed, plain)
        torch.testing.assert_close(trace.logits, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("sampling", "rows"),
    [
        (Sampling(cfg_scale=2.0, cfg_interval=1), [6, 6, 6, 3, 3, 3]),
        (Sampling(cfg_scale=1.0), [3] * 6),
    ],
    ids=["after the interval", "without guidance"],
)
def test_the_null_half_is_computed_where_it_counts(sampling: Sampling, rows: list[int]) -> None:
    gpt, batches = make(CLASS_CONFIG), []
    gpt.layers[0].register_forward_hook(lambda _module, inputs, _out: batches.append(inputs[0].shape[0]))
    generate_steps(gpt, condition_for(CLASS_CONFIG, 3), uniforms_for(gpt, 3), sampling)
    assert batches == rows


@BOTH
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7, top_k=5, top_p=0.9, cfg_scale=1.5),
        Sampling(cfg_scale=2, cfg_interval=2),
    ],
    ids=["plain", "filtered", "interval"],
)
def test_batch_size_does_not_change_the_tokens(config: GPTConfig, sampling: Sampling) -> None:
    gpt = make(config)
    condition, uniforms = condition_for(config, 4), uniforms_for(gpt, 4)
    whole = generate_steps(gpt, condition, uniforms, sampling)
    parts = [
        generate_steps(gpt, condition.select(slice(i, j)), uniforms[i:j], sampling)
        for i, j in ((0, 1), (1, 4))
    ]
    assert torch.equal(whole.tokens, torch.cat([part.tokens for part in parts]))
    torch.testing.assert_close(whole.logprobs, torch.cat([part.logprobs for part in parts]))
    assert len({tuple(row) for row in whole.tokens.tolist()}) > 1


@BOTH
def test_logprobs_are_those_of_the_teacher_forced_policy(config: GPTConfig) -> None:
    gpt = make(config)
    condition = condition_for(config, 3)
    rollout = generate_steps(gpt, condition, uniforms_for(gpt, 3), Sampling(temperature=0.8))
    logits = gpt(condition, rollout.tokens[:, :-1]) / 0.8
    expected = logits.log_softmax(-1).gather(-1, rollout.tokens[..., None])[..., 0]
    torch.testing.assert_close(rollout.logprobs, expected.detach(), rtol=0, atol=1e-5)
    assert rollout.tokens.dtype == torch.int64 and rollout.logprobs.dtype == torch.float32


def test_first_tokens_follow_the_distribution() -> None:
    gpt = make(CLASS_CONFIG)
    rows = 4000
    uniforms = (torch.arange(rows, dtype=torch.float64)[:, None] + 0.5) / rows
    rollout = generate_steps(gpt, ClassLabels(torch.full((rows,), 3)), uniforms, Sampling(top_k=6))
    logits = gpt(ClassLabels(torch.tensor([3])), tokens_of(gpt, 1)[:, :-1])[0, 0].detach()
    kept = torch.where(logits >= logits.sort(descending=True).values[5], logits.exp(), 0.0)
    share = torch.bincount(rollout.tokens[:, 0], minlength=11) / rows
    torch.testing.assert_close(share, kept / kept.sum(), rtol=0, atol=2 / rows)


def test_greedy_ignores_the_random_numbers() -> None:
    gpt = make(CLASS_CONFIG)
    labels = condition_for(CLASS_CONFIG, 2)
    one = generate_steps(gpt, labels, uniforms_for(gpt, 2), Sampling(greedy=True))
    other = generate_steps(gpt, labels, torch.zeros(2, 6), Sampling(greedy=True))
    assert torch.equal(one.tokens, other.tokens)
    logits = gpt(labels, one.tokens[:, :-1])
    assert torch.equal(logits.argmax(-1), one.tokens)


@BOTH
@pytest.mark.parametrize("count", [1, 2, 4])
def test_shorter_sequences_are_prefixes(config: GPTConfig, count: int) -> None:
    gpt = make(config)
    condition, uniforms = condition_for(config, 2), uniforms_for(gpt, 2)
    whole = generate_steps(gpt, condition, uniforms, Sampling(cfg_scale=1.5))
    short = generate_steps(gpt, condition, uniforms[:, :count], Sampling(cfg_scale=1.5))
    assert torch.equal(short.tokens, whole.tokens[:, :count])


def test_generation_turns_dropout_off_and_leaves_the_mode() -> None:
    gpt = make(CLASS_CONFIG)
    labels, uniforms = condition_for(CLASS_CONFIG, 2), uniforms_for(gpt, 2)
    still = generate_steps(gpt, labels, uniforms, Sampling())
    gpt.train()
    assert torch.equal(generate_steps(gpt, labels, uniforms, Sampling()).tokens, still.tokens)
    assert gpt.training and gpt.get_submodule("layers.0.attention.resid_dropout").training
    assert not any("cache" in key for key in gpt.state_dict())


def reference_filter(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Slow filter of one row in float64, from the definitions."""
    logits = logits / sampling.temperature
    keep = np.ones(len(logits), dtype=bool)
    if sampling.top_k > 0:
        keep &= logits >= np.sort(logits)[::-1][min(sampling.top_k, len(logits)) - 1]
    if sampling.top_p < 1:
        mass = np.where(keep, np.exp(logits - logits.max()), 0.0)
        mass /= mass.sum()
        before, stays = 0.0, np.zeros(len(logits), dtype=bool)
        for code in np.argsort(-logits):
            stays[code] = before <= sampling.top_p
            before += mass[code]
        stays[np.argmax(logits)] = True
        keep &= stays
    return np.where(keep, logits, -np.inf)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(top_k=1),
        Sampling(top_k=7),
        Sampling(top_k=99),
        Sampling(top_p=0.0),
        Sampling(top_p=0.6),
        Sampling(top_k=9, top_p=0.7, temperature=1.7),
    ],
    ids=str,
)
def test_filter_matches_its_definition(sampling: Sampling) -> None:
    logits = torch.randn(20, 17, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    filtered = filter_logits(logits, sampling)
    assert torch.equal(logits, before)
    expected = np.stack([reference_filter(row, sampling) for row in logits.double().numpy()])
    np.testing.assert_allclose(filtered.numpy(), expected, rtol=1e-6)


def test_codes_tied_with_the_kth_survive() -> None:
    kept = filter_logits(torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0]]), Sampling(top_k=2)).isfinite()
    assert kept.tolist() == [[True, False, True, True, True]]
