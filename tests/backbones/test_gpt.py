"""The transformer against its golden numbers, and properties that no golden number shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignbench.api import ClassLabels, TextFeatures
from alignbench.backbones.llamagen.gpt import GPT, GPTConfig, ffn_hidden, token_loss
from alignbench.backbones.llamagen.transformer import rope_table, rotate, text_mask

DATA = Path(__file__).parents[1] / "golden" / "llamagen"
NOISE = ("token_dropout", "residual_dropout", "ffn_dropout", "condition_dropout")
CLASS_CONFIG = GPTConfig(
    dim=24, layers=2, heads=2, ffn_hidden=32, vocab_size=11, grid=(2, 3), num_classes=4, condition_dropout=0.5
)
TEXT_CONFIG = replace(
    CLASS_CONFIG, condition="text", caption_dim=5, condition_tokens=4, condition_dropout=0.1
)


def make(config: GPTConfig, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    gpt = GPT(config)
    gpt.initialise(head_std=0.5)
    return gpt.eval()


def tokens_of(gpt: GPT, rows: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(gpt.config.vocab_size, (rows, gpt.config.num_tokens), generator=generator)


def caption(rows: int, config: GPTConfig = TEXT_CONFIG) -> TextFeatures:
    """Left-padded features with 1, 2, … real tokens."""
    features = torch.randn(rows, config.condition_tokens, config.caption_dim)
    count = torch.arange(1, rows + 1)[:, None]
    mask = torch.arange(config.condition_tokens) >= config.condition_tokens - count
    return TextFeatures(features * mask[..., None], mask)


def test_teacher_forced_logits_match_the_official_ones() -> None:
    expected = load_file(DATA / "c2i_io.safetensors")
    config = json.loads((DATA / "config.json").read_text())["c2i"]
    shape = GPTConfig(
        dim=64, layers=2, heads=4, ffn_hidden=ffn_hidden(64), vocab_size=256, grid=(4, 4), num_classes=10
    )
    gpt = GPT(shape).eval()
    assert config["dim"] == gpt.config.dim
    gpt.load_state_dict(load_file(DATA / "c2i_weights.safetensors"))
    logits = gpt(ClassLabels(expected["labels"]), expected["tokens"][:, :-1])
    torch.testing.assert_close(logits, expected["tf_logits"], rtol=0, atol=2e-5)
    loss = token_loss(logits, expected["tokens"], expected["valid"])
    torch.testing.assert_close(loss, expected["tf_loss_valid"][0], rtol=0, atol=1e-6)


def test_rope_rows_of_the_released_grid() -> None:
    expected = load_file(DATA / "misc_io.safetensors")
    rows = [0, 1, 2, 25, 30, 300, 576]
    for head_dim in (64, 100):
        table = rope_table((24, 24), head_dim, condition_tokens=1)
        torch.testing.assert_close(table[rows], expected[f"rope_24x24_hd{head_dim}_rows"], rtol=0, atol=1e-5)


def test_rope_of_a_wide_grid_turns_by_row_and_column() -> None:
    table = rope_table((2, 3), 8, condition_tokens=2)
    assert table.shape == (8, 4, 2)
    assert torch.equal(table[:2], torch.zeros(2, 4, 2))
    # Token 5 sits in row 1, column 2; the two frequencies are 1 and 1/100.
    angles = torch.tensor([1.0, 0.01, 2.0, 0.02])
    torch.testing.assert_close(table[7], torch.stack([angles.cos(), angles.sin()], dim=-1))


def test_rotation_is_a_complex_product_of_adjacent_channels() -> None:
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    table = rope_table((1, 5), 8, condition_tokens=0)
    product = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.view_as_complex(table.double())
    torch.testing.assert_close(rotate(x, table), torch.view_as_real(product).flatten(-2))


def test_rope_table_survives_a_cast_and_is_not_saved() -> None:
    gpt = make(CLASS_CONFIG).bfloat16()
    logits = gpt(ClassLabels(torch.tensor([1])), tokens_of(gpt, 1)[:, :-1])
    assert logits.dtype == torch.float32
    assert all(table.dtype == torch.float32 for table in gpt._tables.values())
    assert not [
        key for key in gpt.state_dict() if "rope" in key or "freqs" in key or "table" in key.split(".")
    ]


@pytest.mark.parametrize("config", [CLASS_CONFIG, TEXT_CONFIG], ids=["class", "text"])
def test_a_token_changes_only_later_logits(config: GPTConfig) -> None:
    """The off-by-one that scores a token from itself would show at the changed position."""
    gpt = make(config)
    condition = ClassLabels(torch.tensor([1, 2])) if config.condition == "class" else caption(2)
    context = tokens_of(gpt, 2)[:, :-1]
    before = gpt(condition, context)
    assert before.shape == (2, config.num_tokens, config.vocab_size)
    for position in range(context.shape[1]):
        changed = context.clone()
        changed[:, position] = (changed[:, position] + 1) % config.vocab_size
        after = gpt(condition, changed)
        torch.testing.assert_close(after[:, : position + 1], before[:, : position + 1])
        assert (after[:, position + 1] - before[:, position + 1]).abs().max() > 1e-3


def test_position_zero_depends_on_the_class() -> None:
    gpt = make(CLASS_CONFIG)
    logits = gpt(ClassLabels(torch.tensor([0, 1])), tokens_of(gpt, 1)[:, :-1].repeat(2, 1))
    assert (logits[0, 0] - logits[1, 0]).abs().max() > 1e-3


def test_more_padding_does_not_change_text_logits() -> None:
    short = make(TEXT_CONFIG)
    long_config = replace(TEXT_CONFIG, condition_tokens=7)
    long = make(long_config)
    state = {**short.state_dict(), "cls_embedding.uncond_embedding": torch.zeros(7, 5)}
    long.load_state_dict(state)
    few = caption(3)
    pad = torch.zeros(3, 3, 5)
    many = TextFeatures(torch.cat([pad, few.features], 1), torch.cat([pad[..., 0].bool(), few.mask], 1))
    context = tokens_of(short, 3)[:, :-1]
    torch.testing.assert_close(long(many, context), short(few, context))


def test_garbage_in_padded_features_is_invisible() -> None:
    gpt = make(TEXT_CONFIG)
    clean = caption(2)
    dirty = TextFeatures(torch.where(clean.mask[..., None], clean.features, 9.0), clean.mask)
    context = tokens_of(gpt, 2)[:, :-1]
    torch.testing.assert_close(gpt(dirty, context), gpt(clean, context))


def test_text_mask_is_causal_hides_padding_and_keeps_the_diagonal() -> None:
    mask = text_mask(torch.tensor([[False, True]]), 4)[0]
    assert mask.int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]


def test_condition_dropout_is_active_in_train_mode_only() -> None:
    config = replace(CLASS_CONFIG, token_dropout=0.0, residual_dropout=0.0, ffn_dropout=0.0)
    gpt = make(config)
    labels = ClassLabels(torch.full((400,), 2))
    context = tokens_of(gpt, 1)[:, :-1].repeat(400, 1)
    kept, null = gpt(labels, context)[0], gpt(gpt.null(labels), context)[0]
    gpt.train()
    torch.manual_seed(0)
    logits = gpt(labels, context)
    is_null = (logits - null).abs().amax(dim=(1, 2)) < 1e-4
    is_kept = (logits - kept).abs().amax(dim=(1, 2)) < 1e-4
    assert bool((is_null ^ is_kept).all())
    assert 150 < int(is_null.sum()) < 250  # p = 0.5 of 400, five standard deviations either way


def test_caption_dropout_replaces_the_whole_block() -> None:
    config = replace(TEXT_CONFIG, condition_dropout=1.0)
    gpt = make(config)
    text = caption(2)
    embedded = gpt.cls_embedding.train()(text)
    null = gpt.cls_embedding.eval()(gpt.null(text))
    torch.testing.assert_close(embedded, null)


def test_token_residual_and_ffn_dropout_each_act() -> None:
    for name in NOISE[:3]:
        rates: dict[str, Any] = dict.fromkeys(NOISE, 0.0) | {name: 0.5}
        gpt = make(replace(CLASS_CONFIG, **rates))
        labels, context = ClassLabels(torch.tensor([1])), tokens_of(gpt, 1)[:, :-1]
        still = gpt(labels, context)
        assert torch.equal(gpt(labels, context), still)
        gpt.train()
        assert not torch.allclose(gpt(labels, context), still), name


def test_recomputation_changes_no_gradient_with_dropout() -> None:
    gradients = []
    for recompute in (False, True):
        gpt = make(CLASS_CONFIG).train()
        gpt.recompute = recompute
        torch.manual_seed(3)
        tokens = tokens_of(gpt, 2)
        token_loss(gpt(ClassLabels(torch.tensor([1, 2])), tokens[:, :-1]), tokens).backward()
        gradients.append([parameter.grad for parameter in gpt.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_fresh_weights_start_at_the_uniform_loss() -> None:
    torch.manual_seed(0)
    gpt = GPT(CLASS_CONFIG).eval()
    tokens = tokens_of(gpt, 2)
    loss = token_loss(gpt(ClassLabels(torch.tensor([1, 2])), tokens[:, :-1]), tokens)
    torch.testing.assert_close(loss, torch.tensor(11.0).log())
    assert abs(float(gpt.tok_embeddings.weight.detach().std()) - 0.02) < 0.004


def test_float64_model_gives_float64_logits() -> None:
    gpt = make(CLASS_CONFIG).double()
    context = tokens_of(gpt, 1)[:, :-1]
    exact = gpt(ClassLabels(torch.tensor([1])), context)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(
        gpt.float()(ClassLabels(torch.tensor([1])), context).double(), exact, rtol=0, atol=1e-5
    )
