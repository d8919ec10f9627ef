"""Keys, shapes and parameter counts of the released models, on the meta device; building and saving."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from alignbench.api import Backbone, ClassLabels, Sampling
from alignbench.backbones.base import unwrap
from alignbench.backbones.llamagen.gpt import GPT, GPTConfig, ffn_hidden
from alignbench.backbones.llamagen.model import LlamaGen, build, gpt_config, vq_config
from alignbench.backbones.llamagen.vq import VQConfig, VQModel
from alignbench.backbones.text.captions import clean_caption, left_pad
from alignbench.errors import UserError
from alignbench.registry.lookup import Registry

LISTED = json.loads((Path(__file__).parents[1] / "golden" / "llamagen_state_dict_keys.json").read_text())
CARD = Registry.default().model("llamagen-tiny")
VQ_MULTIPLIERS = {"VQ-16": (1, 1, 2, 2, 4), "VQ-8": (1, 2, 2, 4)}
RELEASED = {
    # layers, width, heads, parameters class-conditional, parameters text-conditional (arXiv:2406.06525)
    "GPT-B": (12, 768, 12, 110_888_448, 112_282_368),
    "GPT-L": (24, 1024, 16, 342_910_976, 345_031_680),
    "GPT-XL": (36, 1280, 20, 774_699_520, 777_678_080),
    "GPT-XXL": (48, 1536, 24, 1_410_972_672, 1_414_940_160),
    "GPT-XXXL": (48, 2560, 40, 3_893_027_840, 3_902_261_760),
    "GPT-1B": (22, 2048, 32, 1_199_616_000, 1_205_954_560),
    "GPT-3B": (24, 3200, 32, 3_096_659_200, 3_110_249_600),
    "GPT-7B": (32, 4096, 32, 6_614_589_440, 6_635_655_168),
}


def released_gpt(name: str, *, text: bool) -> GPT:
    layers, dim, heads, _, _ = RELEASED[name]
    config = GPTConfig(
        dim=dim, layers=layers, heads=heads, ffn_hidden=ffn_hidden(dim), vocab_size=16384, grid=(16, 16),
        condition="text" if text else "class", condition_tokens=120 if text else 1,
    )  # fmt: skip
    with torch.device("meta"):
        return GPT(config)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", list(LISTED))
def test_keys_and_shapes_of_listed_models(name: str) -> None:
    kind = name.split()[0]
    if kind in VQ_MULTIPLIERS:
        with torch.device("meta"):
            model: nn.Module = VQModel(VQConfig(base_channels=128, multipliers=VQ_MULTIPLIERS[kind]))
    else:
        model = released_gpt(kind, text="t2i" in name)
    listed = LISTED[name]
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == listed["tensors"] and len(shapes) == listed["num_keys"]
    assert list(shapes) == list(listed["tensors"]), "the order of the released files too"
    assert parameters(model) == listed["num_parameters"]
    assert [name for name, _ in model.named_buffers()] == listed["buffers"]


@pytest.mark.parametrize("name", list(RELEASED))
def test_parameter_counts_of_released_transformers(name: str) -> None:
    layers, _, _, with_class, with_text = RELEASED[name]
    for text, count in ((False, with_class), (True, with_text)):
        model = released_gpt(name, text=text)
        assert parameters(model) == count
        assert len(model.state_dict()) == 7 * layers + (6 if text else 4)
        del model


def test_random_models_are_seeded_informative_and_frozen_where_they_should_be() -> None:
    before = torch.random.get_rng_state()
    one, twin, other = build(CARD, None), build(CARD, None), build(CARD, None, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator was used"
    assert isinstance(one, Backbone)
    state, same, different = (model.export()["policy"] for model in (one, twin, other))
    assert all(torch.equal(state[key], same[key]) for key in state)
    assert not torch.equal(state["output.weight"], different["output.weight"])
    assert 0.015 < float(state["output.weight"].std()) < 0.025
    assert all(parameter.requires_grad for parameter in one.policy.parameters())
    assert not any(parameter.requires_grad for parameter in one.tokenizer.parameters())


@pytest.mark.parametrize("name", ["llamagen-tiny", "shapes-tiny"])
def test_export_and_load_round_trip_is_exact(tmp_path: Path, name: str) -> None:
    card = Registry.default().model(name)
    model = build(card, None, seed=3)
    files = model.save(tmp_path)
    loaded = build(card, files)
    for role, state in model.export().items():
        again = loaded.export()[role]
        assert list(state) == list(again)
        assert all(torch.equal(state[key], again[key]) for key in state)


def test_usage_window_follows_the_file(tmp_path: Path) -> None:
    config = vq_config(CARD)
    model = LlamaGen(VQModel(replace(config, usage_window=9)), GPT(gpt_config(CARD)))
    loaded = build(CARD, model.save(tmp_path))
    assert loaded.tokenizer.quantize.codebook_used.shape == (9,)


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    files = build(CARD, None).save(tmp_path)
    larger = CARD.model_copy(update={"policy": CARD.policy.model_copy(update={"dim": 72})})
    with pytest.raises(UserError, match=r"policy\.safetensors.*of another shape"):
        build(larger, files)
    with pytest.raises(UserError, match="no weights file for tokenizer"):
        build(CARD, {"policy": files["policy"]})


def test_resolution_can_differ_from_the_card(tmp_path: Path) -> None:
    files = build(CARD, None).save(tmp_path)
    model = build(CARD, files, image_size=12)
    assert (model.grid, model.num_tokens, model.image_size) == ((6, 6), 36, 12)
    labels = ClassLabels(torch.tensor([0, 1]))
    rollout = model.generate(labels, torch.rand(2, 36, dtype=torch.float64), Sampling())
    assert model.tokenizer.decode(rollout.tokens, model.grid).shape == (2, 3, 12, 12)
    with pytest.raises(UserError, match="multiple of 2"):
        build(CARD, None, image_size=9)


class Wrapper(nn.Module):
    """Like DistributedDataParallel: keeps the model as `.module`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: object) -> torch.Tensor:
        out: torch.Tensor = self.module(*inputs)
        return out


def test_logits_go_through_a_wrapper_and_the_rest_goes_around_it() -> None:
    model = build(CARD, None)
    labels, context = ClassLabels(torch.tensor([1])), torch.zeros(1, 15, dtype=torch.int64)
    plain, keys = model.logits(labels, context), list(model.export()["policy"])
    model.policy = Wrapper(Wrapper(unwrap(model.policy)))
    calls: list[int] = []
    model.policy.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(model.logits(labels, context), plain) and calls == [1]
    model.generate(labels, torch.rand(1, 16, dtype=torch.float64), Sampling())
    assert calls == [1] and list(model.export()["policy"]) == keys


def test_reference_is_a_frozen_copy() -> None:
    model = build(CARD, None)
    reference = model.reference()
    labels, context = ClassLabels(torch.tensor([1])), torch.zeros(1, 15, dtype=torch.int64)
    before = model.logits(labels, context)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.1)
    assert torch.equal(reference.logits(labels, context), before)
    assert not torch.allclose(model.logits(labels, context), before)
    assert not any(parameter.requires_grad for parameter in reference.policy.parameters())
    assert reference.tokenizer is model.tokenizer


def test_half_precision_policy_keeps_the_tokenizer_in_float32() -> None:
    model = build(CARD, None, dtype=torch.bfloat16)
    assert unwrap(model.policy).output.weight.dtype == torch.bfloat16
    assert model.tokenizer.codebook().dtype == torch.float32
    logits = model.logits(ClassLabels(torch.tensor([1])), torch.zeros(1, 15, dtype=torch.int64))
    assert logits.dtype == torch.float32


def test_left_padding_keeps_the_order_and_drops_garbage() -> None:
    features = torch.arange(1.0, 9.0).reshape(2, 4, 1)
    features[0, 2:] = torch.inf
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    padded = left_pad(features, mask)
    assert padded.features[..., 0].tolist() == [[0, 0, 1, 2], [5, 6, 7, 8]]
    assert padded.mask.tolist() == [[False, False, True, True], [True] * 4]


def test_captions_that_look_like_files_raise_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert clean_caption("/home/cat/pictures") == "home cat pictures"
    assert not recwarn.list
