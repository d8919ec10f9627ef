"""What trains of a Janus policy, in which precision, and with which memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from alignbench.api import Sampling
from alignbench.backbones.base import unwrap
from alignbench.backbones.generate import generate_steps
from alignbench.backbones.janus.model import Janus, build
from alignbench.backbones.janus.policy import PARTS
from alignbench.errors import UserError
from tests.helpers import janus_toys

CAPTIONS = ["a cat", "two red cubes on a table", "x"]


@pytest.fixture
def model() -> Janus:
    return build(janus_toys.CARD, None, seed=1)


def drawn(rows: int, model: Janus) -> Tensor:
    numbers = torch.Generator().manual_seed(0)
    return torch.randint(0, model.tokenizer.num_codes, (rows, model.num_tokens), generator=numbers)


def test_casting_leaves_the_positions_alone(model: Janus) -> None:
    """A cast of the module would round the rotary frequencies, and with them every angle."""
    twin = model.reference()
    twin.policy.to(torch.bfloat16)
    rotary, original = (unwrap(each.policy).language_model.rotary_emb for each in (twin, model))
    assert rotary.inv_freq.dtype == torch.float32 and torch.equal(rotary.inv_freq, original.inv_freq)
    assert unwrap(twin.policy).generation_head.vision_head.weight.dtype == torch.bfloat16
    prompts = twin.text_condition(CAPTIONS)
    trace = generate_steps(unwrap(twin.policy), prompts, torch.zeros(3, 25), Sampling(), keep_logits=True)
    assert trace.logits is not None and trace.logits.dtype == torch.float32
    twin.policy.double()
    assert twin.logits(prompts, drawn(3, model)).dtype == torch.float64


def gradients(model: Janus) -> dict[str, Tensor]:
    model.policy.zero_grad(set_to_none=True)
    prompts, tokens = model.text_condition(CAPTIONS), drawn(3, model)
    chosen = model.logits(prompts, tokens[:, :-1]).log_softmax(-1).gather(-1, tokens[..., None])
    chosen.mean().backward()
    return {name: p.grad.clone() for name, p in model.policy.named_parameters() if p.grad is not None}


def test_recomputing_gives_the_same_gradients_in_eval_mode() -> None:
    model = build(janus_toys.CARD, None)
    model.policy.requires_grad_(True)
    calls: list[int] = []
    layer: Any = unwrap(model.policy).blocks()[0]
    layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    kept = gradients(model)
    assert len(calls) == 1
    model.recompute(True)
    again = gradients(model)
    assert len(calls) == 3, "once forward, once backward"
    assert kept.keys() == again.keys() and all(torch.equal(kept[name], again[name]) for name in kept)
    assert not any(part.training for part in model.policy.modules())
    assert not layer.gradient_checkpointing, "generation must not trip over it"
    model.recompute(False)
    gradients(model)
    assert len(calls) == 4


def test_all_of_the_policy_trains_by_default() -> None:
    model = build(janus_toys.CARD, None)
    model.policy.requires_grad_(True)
    found = gradients(model)
    assert found.keys() == {name for name, _ in model.policy.named_parameters()}
    assert all((value != 0).any() for value in found.values())


def test_the_row_of_padding_trains() -> None:
    """transformers keeps it fixed if there is a padding id; unconditional rows consist of it."""
    model = build(janus_toys.CARD, None)
    model.policy.requires_grad_(True)
    null = unwrap(model.policy).null(model.text_condition(["a cat"]))
    model.logits(null, drawn(1, model)[:, :-1]).square().mean().backward()
    gradient = model.policy.get_parameter("language_model.embed_tokens.weight").grad
    assert gradient is not None and (gradient[model.prompts.pad] != 0).any()


@pytest.mark.parametrize("parts", [("head",), "aligner, generation_embedding", ("language_model",)])
def test_gradients_only_where_asked(parts: str | tuple[str, ...]) -> None:
    model = build(janus_toys.CARD, None, trains=parts)
    model.policy.requires_grad_(True)
    found = gradients(model)
    names = parts.split(", ") if isinstance(parts, str) else parts
    wanted = tuple(prefix for part in names for prefix in PARTS[part])
    assert found and all(name.startswith(wanted) for name in found)
    assert found.keys() == {name for name, _ in model.policy.named_parameters() if name.startswith(wanted)}
    model.policy.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in model.policy.parameters())


def test_parts_cover_the_policy_once(model: Janus) -> None:
    prefixes = [prefix for part in PARTS.values() for prefix in part]
    for name, _ in model.policy.named_parameters():
        assert sum(name.startswith(prefix) for prefix in prefixes) == 1, name


@pytest.mark.parametrize("parts", [("heads",), (), "head,neck", ""])
def test_parts_that_do_not_exist_are_refused(parts: str | tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="part"):
        build(janus_toys.CARD, None, trains=parts)


def test_an_unknown_fidelity_is_refused() -> None:
    wrong: Any = "released"
    with pytest.raises(UserError, match="fidelity 'released' is not one of exact, as_released"):
        build(janus_toys.CARD, None, fidelity=wrong)


def test_a_reference_is_a_frozen_copy(model: Janus) -> None:
    twin = model.reference()
    assert twin.tokenizer is model.tokenizer
    assert not any(parameter.requires_grad for parameter in twin.policy.parameters())
    prompts, context = model.text_condition(CAPTIONS), drawn(3, model)[:, :-1]
    with torch.no_grad():
        before = model.logits(prompts, context)
        twin.policy.get_parameter("generation_head.vision_head.weight").zero_()
        assert torch.equal(before, model.logits(prompts, context))
        assert not torch.equal(before, twin.logits(prompts, context))
