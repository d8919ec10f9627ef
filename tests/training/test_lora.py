"""LoRA: what trains, what stays, and that reference, drawing, export and peft's file mean one network."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignbench import testing
from alignbench.api import Backbone, ClassLabels, Condition, Sampling
from alignbench.backbones import generate
from alignbench.backbones.base import unwrap
from alignbench.progress import Progress
from alignbench.record import read
from alignbench.registry.lookup import Registry
from alignbench.testing import CPU, Case, Subject, take_step
from alignbench.training import setup
from alignbench.training.adapter import WEIGHTS_FILE, Adapter
from alignbench.training.parallel import Parallel
from tests.backbones.test_cuda_graphs import Plain
from tests.helpers import method_checks

pytest.importorskip("peft")
REGISTRY = Registry.default()
MODELS = ("llamagen-tiny", "shapes-tiny", "janus-tiny")
METHODS = [name for name in REGISTRY.names("methods") if REGISTRY.method(name).updates == "policy"]
SOON = [*((name, MODELS[0]) for name in METHODS), ("vapi", MODELS[1]), ("ar-grpo", MODELS[2])]
EVERY = [
    (method, model) if (method, model) in SOON else pytest.param(method, model, marks=pytest.mark.slow)
    for method in METHODS
    for model in MODELS
]
LORA = ("train.adapter=lora", "train.lora_rank=4", "train.lora_alpha=8")
SCALE = 2.0


def case_of(method: str, model: str, *settings: str) -> Case:
    more = ["model.weights=random"] if model == "janus-tiny" else []
    if more and "perceptual" in REGISTRY.method(method).options:
        more += ["method.perceptual=none", "method.perceptual_weight=0"]
    return Case(REGISTRY, method, model, (*LORA, *more, *settings))


def adapted(model: str, folder: Path, *settings: str) -> tuple[Backbone, Adapter, Backbone]:
    """A model with updates of a size that matters, and the untouched one."""
    plan = case_of("ntp", model, *settings).job(folder).plan
    backbone, untouched = (setup.build_model(plan, CPU) for _ in range(2))
    _, adapter = setup.prepare_trained(plan, backbone)
    assert adapter is not None
    numbers = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in adapter.layers.values():
            second = layer.lora_B["default"].weight
            second.copy_(torch.randn(second.shape, generator=numbers) * 0.1)
    return backbone, adapter, untouched


def inputs(backbone: Backbone, rows: int = 3) -> tuple[Condition, Tensor, Tensor]:
    """Conditions, tokens [N, T] and uniforms [N, T]."""
    numbers = torch.Generator().manual_seed(0)
    size = (rows, backbone.num_tokens)
    if hasattr(unwrap(backbone.policy), "config") and unwrap(backbone.policy).config.condition == "class":
        condition: Condition = ClassLabels(torch.arange(rows))
    else:
        condition = backbone.text_condition(["a red circle", "two blue squares", "a green triangle"][:rows])
    tokens = torch.randint(0, backbone.tokenizer.num_codes, size, generator=numbers)
    return condition, tokens, torch.rand(size, generator=numbers, dtype=torch.float64)


def logits_of(backbone: Backbone) -> Tensor:
    condition, tokens, _ = inputs(backbone)
    with torch.no_grad():
        return backbone.logits(condition, tokens[:, :-1])


# --- training -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("few_scenes")
@pytest.mark.parametrize(("method", "model"), EVERY)
def test_every_policy_method_trains_updates_alone(method: str, model: str, tmp_path: Path) -> None:
    """Five steps: the export is the base plus scale · B · A, in float64, and nothing else moved."""
    small = ["train.steps=5", "train.images_per_step=4", "train.micro_batch=2", "train.lr=1e-3"]
    small += [f"method.{name}=2" for name in [REGISTRY.method(method).group_option] if name]
    small += ["method.keep=1"] if method == "raft" else []
    job, quiet, parallel = (
        case_of(method, model, *small).job(tmp_path),
        Progress(quiet=True),
        Parallel("fp32"),
    )
    with setup.prepared(job, setup.open_training_data(job, quiet), parallel, quiet) as ready:
        ready.driver.train()
    parallel.close()
    assert ready.adapter is not None and job.plan.lora is not None
    (file,) = (tmp_path / "checkpoints").glob("step-000005/module.safetensors")
    updates, kept = ready.adapter.weights.state_dict(), load_file(file)
    assert kept.keys() == updates.keys() and all(torch.equal(kept[name], updates[name]) for name in kept)
    assert ready.trainable == sum(map(Tensor.numel, kept.values())) == job.plan.lora.trainable
    ready.adapter.merge()
    base, merged = (one.export()["policy"] for one in (setup.build_model(job.plan, CPU), ready.backbone))
    require_merged(merged, base, updates)
    assert all(value.any() for value in updates.values()), "an update did not train"


def require_merged(merged: Mapping[str, Tensor], base: Mapping[str, Tensor], updates: Any) -> None:
    """Require the official names, base + scale · B · A where there is an update, and the base elsewhere."""
    assert merged.keys() == base.keys() and {value.dtype for value in merged.values()} == {torch.float32}
    found = 0
    for name, before in base.items():
        pair = [updates.get(f"{name.removesuffix('weight')}lora_{part}.weight") for part in "BA"]
        if pair[0] is None:
            assert torch.equal(merged[name], before.float()), name
            continue
        found += 1
        expected = before.double() + SCALE * (pair[0].double() @ pair[1].double())
        assert torch.equal(merged[name], expected.float()), name
    assert 2 * found == len(updates)


@pytest.mark.usefixtures("few_scenes")
@pytest.mark.parametrize("model", MODELS)
def test_the_base_keeps_its_bits_and_gets_no_gradient(model: str, tmp_path: Path) -> None:
    testing.gradients_reach_only_what_trains(case_of("ntp", model), tmp_path)
    subject = Subject.build(case_of("ntp", model), tmp_path)
    policy = unwrap(subject.backbone.policy)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_A." in name or ".lora_B." in name for name in trained)
    frozen = {name: value.clone() for name, value in policy.state_dict().items() if name not in trained}
    take_step(subject, [subject.batch()])
    torch.optim.AdamW(subject.module.parameters(), lr=0.1).step()
    assert all(torch.equal(value, policy.state_dict()[name]) for name, value in frozen.items())


@pytest.mark.parametrize("method", ["vapi", pytest.param("ar-grpo", marks=pytest.mark.slow)])
def test_a_run_keeps_its_promises(method: str, tmp_path: Path) -> None:
    """Resumed to the bit, with a divergence from the base; the files of a run are those of its record."""
    case = case_of(method, "llamagen-tiny", *(["method.prior=kl"] if method == "vapi" else []))
    testing.a_resumed_run_is_the_same(case, tmp_path)
    testing.numbers_come_from_addresses(case, tmp_path / "numbers")
    method_checks.two_ranks_give_what_one_gives(case, tmp_path / "ranks")
    out, plan = tmp_path / "whole", case.job(tmp_path).plan
    assert plan.lora is not None and read(out).model.trainable_parameters == plan.lora.trainable
    updates = load_file(out / "export" / "adapter" / WEIGHTS_FILE)
    assert all(name.startswith("base_model.model.layers.") for name in updates)
    bare = {name.removeprefix("base_model.model."): value for name, value in updates.items()}
    base = setup.build_model(plan, CPU).export()["policy"]
    require_merged(load_file(out / "export" / "policy.safetensors"), base, bare)


def test_updates_begin_at_nothing_and_at_an_address(tmp_path: Path) -> None:
    """A is uniform within 1/√inputs as peft draws it, B is 0; global seeds change no bit."""
    found = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        subject = Subject.build(case_of("ntp", "llamagen-tiny", "train.lora_rank=64"), tmp_path)
        assert torch.equal(state, torch.get_rng_state()), "torch's global generator was used"
        found.append(subject.module.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    first = found[0]["layers.0.attention.wqkv.lora_A.weight"] * 64**0.5  # of 64 inputs
    assert first.abs().max() <= 1 and float(first.var()) == pytest.approx(1 / 3, rel=0.05)
    assert not found[0]["layers.0.attention.wqkv.lora_B.weight"].any()
    assert not torch.equal(first, found[0]["layers.1.attention.wqkv.lora_A.weight"] * 64**0.5)
    assert torch.equal(logits_of(subject.backbone), logits_of(setup.build_model(subject.job.plan, CPU)))


# --- one network, several ways to compute with it -------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_the_reference_is_the_base_to_the_bit_and_no_copy(model: str, tmp_path: Path) -> None:
    backbone, adapter, untouched = adapted(model, tmp_path)
    reference, guided = backbone.reference(), Sampling(cfg_scale=2.0, top_k=20)
    condition, tokens, uniforms = inputs(backbone)
    before = logits_of(backbone)
    assert reference.policy is backbone.policy
    assert torch.equal(logits_of(reference), logits_of(untouched))
    drawn, expected = (one.generate(condition, uniforms, guided) for one in (reference, untouched))
    assert torch.equal(drawn.tokens, expected.tokens) and torch.equal(drawn.logprobs, expected.logprobs)
    with torch.no_grad():
        pair: Any = (reference, untouched)
        scored, wanted = (one.sampled_logits(condition, tokens, guided) for one in pair)
    assert torch.equal(scored, wanted)
    assert torch.equal(logits_of(backbone), before) and not torch.equal(before, logits_of(untouched))
    assert all(parameter.requires_grad for parameter in adapter.weights.parameters())


@pytest.mark.parametrize("fixed", [False, True], ids=["growing cache", "fixed shapes"])
@pytest.mark.parametrize("model", MODELS)
def test_tokens_are_drawn_from_the_adapted_policy(
    model: str, fixed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their log-probabilities are those of teacher forcing, also in the form that CUDA graphs replay."""
    backbone, _, untouched = adapted(model, tmp_path)
    if fixed:
        graphed: Callable[..., Plain] = lambda policy, given, cache, steps: Plain(  # noqa: E731
            policy, policy.fix(given, cache)
        )
        monkeypatch.setattr(generate, "graphed", graphed)
    condition, _, uniforms = inputs(backbone)
    drawn = backbone.generate(condition, uniforms, Sampling())

    def score(one: Backbone) -> Tensor:
        with torch.no_grad():
            logits = one.logits(condition, drawn.tokens[:, :-1])
        return logits.log_softmax(-1).gather(-1, drawn.tokens[..., None])[..., 0]

    torch.testing.assert_close(drawn.logprobs, score(backbone), rtol=0, atol=1e-4)
    assert float((drawn.logprobs - score(untouched)).abs().max()) > 1e-2


@pytest.mark.parametrize("model", MODELS)
def test_merged_weights_and_peft_s_file_give_what_the_adapter_gave(model: str, tmp_path: Path) -> None:
    from peft import PeftModel

    backbone, adapter, untouched = adapted(model, tmp_path)
    condition, _, uniforms = inputs(backbone)
    logits, drawn = logits_of(backbone), backbone.generate(condition, uniforms, Sampling(cfg_scale=1.5))
    adapter.write_settings(tmp_path / "adapter")
    save_file(adapter.export(), tmp_path / "adapter" / WEIGHTS_FILE)
    adapter.merge()
    policy = unwrap(untouched.policy)
    loaded = PeftModel.from_pretrained(copy.deepcopy(policy), str(tmp_path / "adapter"))
    with torch.no_grad():
        again = loaded(condition, inputs(backbone)[1][:, :-1])
    assert torch.equal(again, logits), "peft computes the same network"
    policy.load_state_dict(backbone.export()["policy"])
    allowed = 1e-5 * max(1.0, float(logits.abs().max()))
    torch.testing.assert_close(logits_of(untouched), logits, rtol=0, atol=allowed)
    redrawn = untouched.generate(condition, uniforms, Sampling(cfg_scale=1.5))
    assert torch.equal(redrawn.tokens, drawn.tokens), "samples to be scored"


def test_peft_s_settings_are_the_same_bytes_whatever_order_python_hashes_in(tmp_path: Path) -> None:
    _, adapter, _ = adapted("llamagen-tiny", tmp_path)
    adapter.write_settings(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["w1", "w2", "w3", "wo", "wqkv"]
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (4, 8.0, "LORA")


# --- a base in bf16 -------------------------------------------------------------------------------

HALF = ("train.precision=bf16", "train.lora_base=bf16")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_a_base_in_bf16_changes_no_bit_of_an_update(model: str, recompute: bool, tmp_path: Path) -> None:
    """Autocast rounds the same matrices at every forward; what it leaves alone is not rounded here either."""
    found = []
    for base in ("fp32", "bf16"):
        backbone, adapter, _ = adapted(model, tmp_path, HALF[0], f"train.lora_base={base}")
        backbone.recompute(recompute)
        condition, tokens, _ = inputs(backbone)
        with torch.autocast("cpu", torch.bfloat16):
            logits = backbone.logits(condition, tokens[:, :-1])
        logits.log_softmax(-1).gather(-1, tokens[..., None]).mean().backward()
        gradients = {name: value.grad for name, value in adapter.weights.named_parameters()}
        found.append({"logits": logits.detach(), **gradients})
        widths = {value.dtype for name, value in unwrap(backbone.policy).named_parameters()}
        assert widths == ({torch.float32, torch.bfloat16} if base == "bf16" else {torch.float32})
    for name, value in found[0].items():
        other = found[1][name]
        assert value is not None and other is not None and torch.equal(value, other), name


@pytest.mark.parametrize("model", MODELS)
def test_a_base_in_bf16_draws_and_is_exported(model: str, tmp_path: Path) -> None:
    """Drawing is in bf16 then; the export is the rounded base plus the update, in float32."""
    backbone, adapter, untouched = adapted(model, tmp_path, *HALF)
    condition, _, uniforms = inputs(backbone)
    drawn = backbone.generate(condition, uniforms, Sampling())
    with torch.no_grad():
        logits = backbone.logits(condition, drawn.tokens[:, :-1])
    scored = logits.log_softmax(-1).gather(-1, drawn.tokens[..., None])[..., 0]
    torch.testing.assert_close(drawn.logprobs, scored, rtol=0, atol=0.1)
    base = dict(untouched.export()["policy"])
    updates = dict(adapter.weights.state_dict())
    for name in [name.rpartition(".lora_")[0] for name in updates]:
        base[f"{name}.weight"] = base[f"{name}.weight"].bfloat16()
    adapter.merge()
    require_merged(backbone.export()["policy"], base, updates)
    untouched.policy.load_state_dict(backbone.export()["policy"])
    assert torch.equal(logits_of(untouched), logits_of(backbone)), "what was cast is cast no more"
