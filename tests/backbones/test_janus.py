"""The Janus backbone: alignment, padding, cache, guidance, training, and what it must not inherit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from alignbench.api import Backbone, ClassLabels, Sampling, Tokenizer
from alignbench.backbones.base import unwrap
from alignbench.backbones.generate import generate_steps
from alignbench.backbones.janus.model import Janus, build
from alignbench.backbones.janus.policy import PARTS
from alignbench.backbones.janus.prompts import PromptTokens
from alignbench.errors import UserError
from alignbench.registry.lookup import Registry

CAPTIONS = ["a cat", "two red cubes on a table", "x"]
CARD = Registry.default().model("janus-tiny")
CODES = 128


def logits_matter(model: Janus) -> Janus:
    """Make every layer of fresh weights matter, so that choices do not hang on rounding."""
    with torch.no_grad():
        for parameter in model.policy.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return model


@pytest.fixture(scope="module")
def model() -> Janus:
    return logits_matter(build(CARD, None, seed=1))


@pytest.fixture(scope="module")
def released() -> Janus:
    return logits_matter(build(CARD, None, seed=1, fidelity="as_released"))


def drawn(rows: int, model: Janus, seed: int = 0) -> Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randint(0, CODES, (rows, model.num_tokens), generator=numbers)


def first_changed(model: Janus, length: int, place: int) -> int:
    """First entry of the logits that another token at `place` of the context changes."""
    prompts, context = model.text_condition(CAPTIONS), drawn(3, model)[:, :length]
    other = context.clone()
    other[:, place] = (other[:, place] + 1) % CODES
    with torch.no_grad():
        difference = (model.logits(prompts, context) - model.logits(prompts, other)).abs().amax(dim=(0, 2))
    assert (difference[difference > 0] > 1e-4).all(), "a change is either none or plain"
    return int(difference.nonzero()[0])


def test_it_is_a_backbone(model: Janus) -> None:
    assert isinstance(model, Backbone) and isinstance(model.tokenizer, Tokenizer)
    assert (model.grid, model.num_tokens, model.image_size) == ((5, 5), 25, 20)
    with pytest.raises(TypeError, match="ClassLabels"):
        model.logits(ClassLabels(torch.zeros(1, dtype=torch.int64)), drawn(1, model))


# --- alignment ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 7, 23])
def test_a_token_changes_only_what_comes_after_it(model: Janus, released: Janus, place: int) -> None:
    """The released alignment scores a token that it has read."""
    assert first_changed(model, model.num_tokens - 1, place) == place + 1
    assert first_changed(released, released.num_tokens - 1, place) == place
    assert first_changed(released, released.num_tokens, place) == place


def test_the_released_alignment_is_the_exact_one_moved_by_one(model: Janus, released: Janus) -> None:
    """For prompts of one length; the last entry needs the last token."""
    prompts, tokens = model.text_condition(["a cat", "a dog"]), drawn(2, model)
    with torch.no_grad():
        exact = model.logits(prompts, tokens)
        assert torch.equal(exact[:, :-1], model.logits(prompts, tokens[:, :-1]))
        whole, short = released.logits(prompts, tokens), released.logits(prompts, tokens[:, :-1])
    assert whole.shape == short.shape == (2, 25, CODES)
    torch.testing.assert_close(whole, exact[:, 1:], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(short[:, :-1], exact[:, 1:-1], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(short[:, -1], exact[:, -2], atol=1e-4, rtol=1e-5)


def test_the_released_padding_makes_rows_depend_on_their_neighbours(released: Janus) -> None:
    prompts, tokens = released.text_condition(CAPTIONS), drawn(3, released)
    with torch.no_grad():
        batched = released.logits(prompts, tokens)
        alone = [released.logits(released.text_condition([text]), tokens[row : row + 1])
                 for row, text in enumerate(CAPTIONS)]  # fmt: skip
    errors = [float((batched[row] - one[0]).abs().max()) for row, one in enumerate(alone)]
    assert errors[1] < 1e-4, "the longest prompt is not padded"
    assert errors[0] > 0.1 and errors[2] > 0.1


def test_both_alignments_generate_alike(model: Janus, released: Janus) -> None:
    prompts, numbers = model.text_condition(CAPTIONS), torch.zeros(3, 25)
    sampling = Sampling(greedy=True, cfg_scale=3.0)
    one, other = (each.generate(prompts, numbers, sampling) for each in (model, released))
    assert torch.equal(one.tokens, other.tokens)


# --- padding --------------------------------------------------------------------------------------


def test_prompts_of_different_lengths_together_and_alone(model: Janus) -> None:
    prompts, context = model.text_condition(CAPTIONS), drawn(3, model)[:, :-1]
    assert not prompts.mask[2, 0] and prompts.mask[1].all()
    for kind in (lambda given: given, unwrap(model.policy).null):
        with torch.no_grad():
            batched = model.logits(kind(prompts), context)
            alone = [model.logits(kind(model.text_condition([text])), context[row : row + 1])[0]
                     for row, text in enumerate(CAPTIONS)]  # fmt: skip
        for together, own in zip(batched, alone, strict=True):
            assert float((together - own).abs().max()) < 1e-5 * max(float(own.abs().max()), 1.0)


def test_what_stands_in_the_padding_does_not_matter(model: Janus) -> None:
    prompts, context = model.text_condition(CAPTIONS), drawn(3, model)[:, :-1]
    garbage = PromptTokens(prompts.ids.where(prompts.mask, 77), prompts.mask)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(garbage, context), model.logits(prompts, context))


def test_unconditional_prompts_keep_length_and_attend_to_the_padding(model: Janus) -> None:
    prompts = model.text_condition(CAPTIONS)
    null, tokenizer = unwrap(model.policy).null(prompts), model.prompts
    assert torch.equal(null.mask, prompts.mask) and null.texts == ()
    for ids, mask in zip(null.ids, null.mask, strict=True):
        row = ids[mask].tolist()
        assert row == [tokenizer.bos, *[tokenizer.pad] * (len(row) - 2), tokenizer.begin_image]


def test_conditions_are_cut_and_repeated_by_rows(model: Janus) -> None:
    prompts = model.text_condition(CAPTIONS)
    twice = prompts.repeat(2)
    assert len(twice) == 6 and twice.texts == ("a cat", "a cat", *CAPTIONS[1:2] * 2, "x", "x")
    assert torch.equal(twice.ids[1], prompts.ids[0]) and torch.equal(twice.ids[4], prompts.ids[2])
    part = twice.select(slice(2, 5))
    assert part.texts == (CAPTIONS[1], CAPTIONS[1], "x") and torch.equal(part.ids[2], prompts.ids[2])
    assert len(model.text_condition([])) == 0


# --- generation -----------------------------------------------------------------------------------


def recomputed(model: Janus, prompts: PromptTokens, sampling: Sampling) -> Tensor:
    """Greedy tokens without any cache: the whole sequence again for each."""
    policy, tokens = unwrap(model.policy), torch.empty(len(prompts), 0, dtype=torch.int64)
    for place in range(model.num_tokens):
        logits = policy(prompts, tokens)[:, -1]
        if sampling.cfg_scale > 1 and not 0 <= sampling.cfg_interval < place - 1:
            null = policy(policy.null(prompts), tokens)[:, -1]
            logits = null + sampling.cfg_scale * (logits - null)
        tokens = torch.cat([tokens, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return tokens


@pytest.mark.parametrize(("scale", "interval"), [(1.0, -1), (5.0, -1), (5.0, 4)])
@torch.no_grad()
def test_the_cache_changes_no_token(model: Janus, scale: float, interval: int) -> None:
    prompts = model.text_condition(CAPTIONS)
    sampling = Sampling(greedy=True, cfg_scale=scale, cfg_interval=interval)
    rollout = model.generate(prompts, torch.zeros(3, 25), sampling)
    assert torch.equal(rollout.tokens, recomputed(model, prompts, sampling))
    assert len(rollout.tokens.unique()) > 5, "the model says more than one thing"


def test_a_sequence_is_the_same_in_any_company(model: Janus) -> None:
    prompts, numbers = model.text_condition(CAPTIONS), torch.rand(3, 25, generator=torch.manual_seed(0))
    sampling = Sampling(cfg_scale=2.0, temperature=0.7, top_k=20)
    together = model.generate(prompts, numbers, sampling).tokens
    for row, text in enumerate(CAPTIONS):
        one = slice(row, row + 1)
        alone = model.generate(model.text_condition([text]), numbers[one], sampling).tokens
        assert torch.equal(together[one], alone)


def test_sampled_tokens_are_scored_as_they_were_drawn(model: Janus) -> None:
    prompts, numbers = model.text_condition(CAPTIONS), torch.rand(3, 25, generator=torch.manual_seed(1))
    for sampling in (Sampling(), Sampling(cfg_scale=3.0, temperature=2.0, top_k=30, top_p=0.9)):
        rollout = model.generate(prompts, numbers, sampling)
        with torch.no_grad():
            logits = model.sampled_logits(prompts, rollout.tokens, sampling)
        scored = logits.log_softmax(dim=-1).gather(-1, rollout.tokens[..., None])[..., 0]
        torch.testing.assert_close(scored, rollout.logprobs, atol=2e-3, rtol=1e-3)


def test_the_cache_is_allocated_once(model: Janus) -> None:
    prompts, policy = model.text_condition(CAPTIONS), unwrap(model.policy)
    cache = policy.cache_for(prompts, 25)
    layers: list[Any] = list(cache[0].states.layers)
    policy.prefill(prompts, cache)
    place = layers[0].keys.data_ptr()
    policy.step(torch.zeros(3, dtype=torch.int64), prompts, cache)
    assert layers[0].keys.data_ptr() == place
    assert layers[0].keys.shape[2] == prompts.ids.shape[1] + 24


# --- training -------------------------------------------------------------------------------------


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
    model = build(CARD, None)
    model.policy.requires_grad_(True)
    calls: list[int] = []
    layer: Any = unwrap(model.policy).language_model.layers[0]
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
    """transformers keeps the row of padding fixed; unconditional rows consist of it."""
    model = build(CARD, None)
    model.policy.requires_grad_(True)
    found = gradients(model)
    assert found.keys() == {name for name, _ in model.policy.named_parameters()}
    assert all((value != 0).any() for value in found.values())
    null = unwrap(model.policy).null(model.text_condition(["a cat"]))
    model.policy.zero_grad()
    model.logits(null, drawn(1, model)[:, :-1]).square().mean().backward()
    gradient = model.policy.get_parameter("language_model.embed_tokens.weight").grad
    assert gradient is not None and (gradient[model.prompts.pad] != 0).any()


@pytest.mark.parametrize("parts", [("head",), "aligner, generation_embedding", ("language_model",)])
def test_gradients_only_where_asked(parts: str | tuple[str, ...]) -> None:
    model = build(CARD, None, trains=parts)
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
def test_parts_and_fidelities_that_do_not_exist_are_refused(parts: str | tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="part"):
        build(CARD, None, trains=parts)
    with pytest.raises(UserError, match="fidelity 'released' is not one of exact, as_released"):
        build(CARD, None, fidelity="released")  # type: ignore[arg-type]


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
