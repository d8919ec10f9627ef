"""LoRA in the plan: what trains, what it needs, what it refuses; counted again on the networks themselves."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from alignbench.cli.common import plan_lines
from alignbench.config.adapter import LoraShape
from alignbench.config.estimate import layer_values
from alignbench.errors import UserError
from alignbench.registry.lookup import Registry, import_target
from alignbench.testing import Case
from alignbench.training import setup
from alignbench.training.adapter import attach
from tests.config.test_plan import LENGTH, NETWORKS, ROOT, plan_of, problems, saved_bytes

LORA = "train.adapter=lora"
REGISTRY = Registry.default()
MODELS = [name for name in REGISTRY.names("models") if REGISTRY.model(name).target]
GIB = 2**30


def test_plans_without_an_adapter_do_not_know_of_it() -> None:
    plan = plan_of("llamagen-tiny")
    assert not [key for key in plan.config.values if "lora" in key or "adapter" in key]
    assert plan.lora is None and "lora" not in plan.as_dict()


def test_all_that_changes_results_is_in_the_digest() -> None:
    changes = ("lora_rank=8", "lora_alpha=16", "lora_targets=wqkv", "precision=bf16")
    plans = [plan_of("llamagen-tiny"), plan_of("llamagen-tiny", LORA)]
    plans += [plan_of("llamagen-tiny", LORA, f"train.{change}") for change in changes]
    plans.append(plan_of("llamagen-tiny", LORA, "train.precision=bf16", "train.lora_base=bf16"))
    assert len({plan.digest for plan in plans}) == len(plans) and not any(plan.problems for plan in plans)


def test_what_cannot_be_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(model: str, *settings: str, method: str = "vapi") -> tuple[str, str]:
        found = problems(model, *settings, method=method)
        return next(value for where, value in found.items() if where.startswith(("train.", "model.trains")))

    what, fix = said("llamagen-tiny", LORA, method="tokenizer-decoder")
    assert what == "tokenizer-decoder trains the tokenizer's decoder, an adapter is for policies"
    assert fix == "leave it out"
    what, fix = said("llamagen-tiny", "train.lora_rank=8")
    assert (what, fix) == ("changes nothing without an adapter", "--set train.adapter=lora")
    what, fix = said("llamagen-tiny", LORA, "train.lora_targets=wqkv,wv")
    assert "has no layer 'wv' to adapt" in what and fix == "name some of wqkv, wo, w1, w3, w2"
    assert "without dropout" in said("llamagen-tiny", LORA, "train.lora_dropout=0.1")[0]
    assert said("llamagen-tiny", LORA, "train.lora_base=bf16")[1] == "--set train.precision=bf16"
    alone = ("model.weights=random", "model.trains=head")
    assert "the adapter alone trains" in said("janus-tiny", LORA, *alone)[0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else object())
    assert said("llamagen-tiny", LORA) == ("needs peft", "pip install 'alignbench[lora]'")


def test_a_card_that_names_no_layers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a plug-in's backbone; and one that names layers which the network has not, when it is built."""
    card = (ROOT / "registry" / "models" / "llamagen-tiny.toml").read_text()
    (tmp_path / "models").mkdir()
    for name, targets in (("silent", ""), ("wrong", "lora_targets = { wqkv = [64, 64] }")):
        text = re.sub(r"(?m)^lora_targets = .*$", targets, card)
        (tmp_path / "models" / f"{name}.toml").write_text(text)
    monkeypatch.setenv("ALIGNBENCH_PATH", str(tmp_path))
    what, fix = problems("silent", LORA)["train.adapter"]
    assert what == "the card of silent does not say which layers LoRA may adapt" and "docs/adapters.md" in fix
    plan = plan_of("wrong", LORA, method="ntp")
    assert plan.problems == []
    with pytest.raises(UserError, match="has not 2 linear layers 'wqkv' of 64 inputs and 64 outputs"):
        setup.prepare_trained(plan, setup.build_model(plan, torch.device("cpu")))


@pytest.mark.parametrize("model", MODELS)
def test_cards_name_the_layers_that_their_networks_have(model: str) -> None:
    """Counted on empty networks of full size; peft puts in as many numbers as the plan says."""
    plan = plan_of(model, LORA, "train.lora_rank=3")
    card, lora = plan.model, plan.lora
    assert lora is not None
    policy = import_target(str(card.target))(card, None, device="meta").policy
    linear = {n: m for n, m in policy.named_modules() if isinstance(m, torch.nn.Linear)}
    found = {n: m for n, m in linear.items() if n.rpartition(".")[2] in lora.targets}
    sizes = [(m.in_features, m.out_features) for m in found.values()]
    assert sorted(sizes) == sorted([*lora.targets.values()] * card.policy.layers)
    assert lora.trainable == 3 * sum(map(sum, sizes)) and lora.held_numbers == sum(i * o for i, o in sizes)
    assert {n for n in linear if ".layers." in f".{n}"} == set(found), "every matrix of every layer"


def test_janus_pro_7b_fits_one_card_of_80_gb_with_an_adapter() -> None:
    """By hand: 6.59 G parameters, 6.07 G of them in linear layers, 37 M in updates of rank 16."""
    settings = (LORA, "train.precision=bf16", "train.recompute=true", "train.micro_batch=8")
    full = plan_of("janus-pro-7b", *settings[1:], evaluates=False)
    plans = {base: plan_of("janus-pro-7b", *settings, f"train.lora_base={base}") for base in ("fp32", "bf16")}
    matrices = 30 * (4 * 4096**2 + 3 * 4096 * 11008)
    updates = 30 * 16 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    everything, head = 6_591_791_104 + 71_883_403, 4096 * 16384
    for base, plan in plans.items():
        parts = plan.estimate.parts
        assert plan.lora is not None and plan.lora.trainable == updates == 37_478_400
        narrow = matrices if base == "bf16" else 0
        assert parts["frozen weights"] == pytest.approx((4 * everything - 2 * narrow) / GIB)
        assert parts["adapter, gradients, optimiser"] == pytest.approx(16 * updates / GIB)
        copies = head + updates + (0 if base == "bf16" else matrices // 30)
        assert parts["autocast copy"] == pytest.approx(2 * copies / GIB)
        assert parts["activations"] == full.estimate.parts["activations"]
        assert plan.estimate.train_gib < 80e9 / GIB < full.estimate.train_gib
        disk = 3 * 12 * updates + 4 * everything
        assert plan.estimate.disk_gib == pytest.approx(disk / GIB, abs=0.1)
    said = " ".join(" ".join(plan_lines(plans["bf16"])).split())
    assert "37,478,400 of 6,629,269,504 parameters train · frozen layers in bf16" in said
    assert "frozen weights 14, adapter, gradients, optimiser 0.56" in said


@pytest.mark.parametrize("family", ["llamagen", "janus"])
def test_a_layer_with_updates_keeps_at_most_what_is_counted(family: str) -> None:
    """And at least four fifths; the rounded copies of its matrices come on top, and not of a bf16 base."""
    dim, hidden = 512, 1536
    size = {"dim": dim, "heads": 8, "ffn_hidden": hidden, "vocab_size": 16, "tokens": LENGTH}
    shape = REGISTRY.model(f"{family}-tiny").policy.model_copy(update=size)
    names = list(REGISTRY.model(f"{family}-tiny").lora_targets)
    for precision, base in (("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16")):
        kept, copies = [], []
        for layers in (1, 2):
            network, forward = NETWORKS[family](shape.model_copy(update={"layers": layers}))
            modules = dict(network.layers[0].named_modules())
            targets = {n.rpartition(".")[2]: m for n, m in modules.items() if n.rpartition(".")[2] in names}
            sizes = {name: (module.in_features, module.out_features) for name, module in targets.items()}
            lora = LoraShape(rank=4, alpha=8, targets=sizes, base=base, held=sizes, layers=layers)
            attach(network, lora, 0)
            found = saved_bytes(network, forward, precision)
            kept.append(found[0])
            copies.append(found[1])
        width = 2 if precision == "bf16" else 4
        counted = (kept[1] - kept[0]) / LENGTH / width
        assert 0.8 < counted / layer_values(shape, precision) < 1
        matrices = 4 * dim * dim + 3 * dim * hidden
        expected = 2 if (precision, base) == ("bf16", "fp32") else 0
        assert (copies[1] - copies[0]) / matrices == pytest.approx(expected, abs=0.05)


def test_the_command_line_completes_its_settings(tmp_path: Path) -> None:
    plan = Case(REGISTRY, "ntp", assignments=("adapter=lora", "lora_targets=wo, w2")).job(tmp_path).plan
    assert plan.lora is not None and list(plan.lora.targets) == ["wo", "w2"]
