"""Decoding at fixed shapes, which CUDA graphs need, is decoding: the same tokens as with a growing cache.

That a step can be captured, and a replay gives the same, is in test_gpu.py; here the step itself, on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignbench.api import ClassLabels, Condition, Sampling, TextFeatures
from alignbench.backbones import cuda_graphs, generate
from alignbench.backbones.base import unwrap
from alignbench.backbones.cuda_graphs import FixedPolicy
from alignbench.backbones.generate import generate_steps
from alignbench.backbones.janus.model import build
from alignbench.backbones.llamagen.gpt import GPT, GPTConfig
from tests.backbones.test_janus import CAPTIONS, logits_matter
from tests.helpers import janus_toys

TOKENS = 25


CLASSES = GPTConfig(dim=32, layers=3, heads=4, ffn_hidden=64, vocab_size=50, grid=(5, 5), num_classes=7)


def classes() -> tuple[Any, Condition]:
    return spread(GPT(CLASSES)), ClassLabels(torch.tensor([0, 6, 3]))


def captions() -> tuple[Any, Condition]:
    numbers = torch.Generator().manual_seed(1)
    mask = torch.tensor([[False] * (6 - length) + [True] * length for length in (6, 1, 4)])
    features = torch.randn(3, 6, 12, generator=numbers) * mask[..., None]
    config = replace(CLASSES, condition="text", caption_dim=12, condition_tokens=6)
    return spread(GPT(config)), TextFeatures(features, mask)


def prompts() -> tuple[Any, Condition]:
    model = logits_matter(build(janus_toys.CARD, None, seed=1))
    return unwrap(model.policy), model.text_condition(CAPTIONS)


def spread(gpt: GPT) -> GPT:
    """Weights of a size at which every layer matters."""
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in gpt.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=numbers) * 0.3)
    return gpt.eval()


class Plain:
    """Takes the graph's place on a machine without CUDA: the fixed step, uncaptured."""

    def __init__(self, policy: FixedPolicy, state: Any) -> None:
        self.policy, self.state, self.steps = policy, state, 0

    def __call__(self, tokens: Tensor) -> Tensor:
        self.steps += 1
        return self.policy.fixed_step(tokens, self.state)

    def keep(self, rows: int) -> None:
        self.state.keep(rows)


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> list[Plain]:
    """Let `generate` use fixed steps here; returns those it has made."""
    made: list[Plain] = []

    def instead(policy: FixedPolicy, condition: Condition, cache: Any, *, steps: int) -> Plain:
        assert isinstance(policy, FixedPolicy) and steps == TOKENS - 1
        made.append(Plain(policy, policy.fix(condition, cache)))
        return made[-1]

    monkeypatch.setattr(generate, "graphed", instead)
    return made


@pytest.mark.parametrize("make", [classes, captions, prompts])
@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(cfg_scale=2.5), Sampling(cfg_scale=2.5, cfg_interval=9)],
    ids=["plain", "guided", "guided at first"],
)
@pytest.mark.parametrize("some_given", [False, True])
def test_fixed_steps_draw_what_growing_ones_draw(
    make: Callable[[], tuple[Any, Condition]],
    sampling: Sampling,
    some_given: bool,
    fixed: list[Plain],
    monkeypatch: Any,
) -> None:
    policy, condition = make()
    uniforms = torch.rand(3, TOKENS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    forced = torch.where(uniforms.flip(0) < 0.5, 3, -1) if some_given else None
    ours = generate_steps(policy, condition, uniforms, sampling, forced=forced, keep_logits=True)
    assert [item.steps for item in fixed] == [TOKENS - 1]
    monkeypatch.setattr(generate, "graphed", lambda *_, steps: None)
    plain = generate_steps(policy, condition, uniforms, sampling, forced=forced, keep_logits=True)
    assert len(fixed) == 1
    assert torch.equal(ours.tokens, plain.tokens) and len(plain.tokens.unique()) > 5
    assert ours.logits is not None and plain.logits is not None
    torch.testing.assert_close(
        ours.logits, plain.logits, rtol=1e-4, atol=1e-4 * float(plain.logits.abs().max())
    )


def test_what_lies_in_unused_memory_changes_nothing() -> None:
    policy, condition = classes()
    cache = policy.cache_for(condition, TOKENS)
    policy.prefill(condition, cache)
    for layer in cache:
        layer._keys[:, :, layer.length :] = torch.nan
        layer._values[:, :, layer.length :] = torch.nan
    state = policy.fix(condition, cache)
    assert policy.fixed_step(torch.tensor([1, 2, 3]), state).isfinite().all()


def test_graphs_are_for_cuda_and_for_policies_that_offer_them(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, condition = classes()
    cache = policy.cache_for(condition, TOKENS)
    policy.prefill(condition, cache)
    assert cuda_graphs.graphed(policy, condition, cache, steps=TOKENS) is None  # no CUDA
    assert isinstance(policy, FixedPolicy) and not isinstance(torch.nn.Linear(1, 1), FixedPolicy)
    monkeypatch.setattr(cuda_graphs, "GraphedStep", lambda *_: pytest.fail("must not be asked"))
    monkeypatch.setenv(cuda_graphs.SWITCH, "0")
    assert cuda_graphs.graphed(policy, condition, cache, steps=TOKENS) is None


def test_places_open_one_by_one_and_stay_hidden_where_padding_is() -> None:
    hidden = torch.tensor([[True, False], [False, False]])
    places = cuda_graphs.CachePosition.behind(3, 5, hidden, torch.device("cpu"))
    bias = places.bias(torch.float32)
    assert bias.shape == (2, 1, 1, 5)
    assert (bias[:, 0, 0] == 0).tolist() == [[False, True, True, True, False], [True] * 4 + [False]]
    places.advance()
    assert (places.bias(torch.float32)[:, 0, 0] == 0).tolist() == [[False] + [True] * 4, [True] * 5]
    places.keep(1)
    assert places.visible.shape == (1, 1, 1, 5)
