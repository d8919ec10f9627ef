"""The plan: geometry, estimates, and every problem at once, before anything heavy."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from alignbench.config.estimate import estimate, layer_values, memory_note
from alignbench.config.plan import Plan, make_plan
from alignbench.config.settings import resolve
from alignbench.errors import UserError
from alignbench.registry.lookup import Registry
from alignbench.registry.schema import PolicyShape

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).parents[2]


def plan_of(model: str, *assignments: str, dataset: str | None = None, evaluates: bool = True) -> Plan:
    registry = Registry.default()
    config = resolve(registry, method="vapi", model=model, assignments=assignments, dataset=dataset)
    return make_plan(registry, config, evaluates=evaluates)


def test_the_default_has_no_problems() -> None:
    plan = plan_of("llamagen-tiny")
    assert plan.problems == []
    assert plan.sequences_per_image == 8


def test_the_paper_s_geometry() -> None:
    plan = plan_of("llamagen-xxl")
    values = plan.as_dict()
    assert values["parameters"] == 1_410_972_672
    assert values["images_per_step"] == 128
    assert values["sequences_per_step"] == 1024
    assert values["config"]["values"]["train.steps"] == 100


def test_missing_things_are_listed_together_with_remedies() -> None:
    plan = plan_of("llamagen-xxl")
    texts = {problem.where: (problem.what, problem.fix) for problem in plan.problems}
    assert {"weights/policy", "weights/tokenizer", "data imagenet"} <= set(texts)
    assert "c2i_XXL_384.pt" in texts["weights/policy"][0]
    assert "alignbench fetch llamagen-xxl" in texts["weights/policy"][1]
    assert texts["data imagenet"][1] == "--set data.root=PATH"


def test_an_impossible_size_is_answered_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "5")
    (problem,) = plan_of("llamagen-tiny").problems
    assert problem.what == "32 images cannot be shared by 5 devices"
    assert problem.fix == "--set train.images_per_step=30 or 35"
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert plan_of("llamagen-tiny").problems == []
    assert plan_of("llamagen-tiny", "train.micro_batch=3").accumulation == 3


def test_the_digest_is_the_identity_of_the_run() -> None:
    base = plan_of("llamagen-tiny")
    assert plan_of("llamagen-tiny").id == base.id
    own = base.config.train.lr  # the recipe's
    assert plan_of("llamagen-tiny", f"train.lr={own}").digest == base.digest
    assert plan_of("llamagen-tiny", f"train.lr={2 * own}").digest != base.digest
    assert plan_of("llamagen-tiny", "protocol.samples=7").digest != base.digest
    assert plan_of("llamagen-tiny", evaluates=False).digest != base.digest


def test_changing_a_protocol_changes_its_digest() -> None:
    assert (
        plan_of("llamagen-tiny", "protocol.samples=7").protocol_digest
        != plan_of("llamagen-tiny").protocol_digest
    )
    fewer = plan_of("llamagen-tiny", "protocol.settings=t1,cfg2", "protocol.seeds=4,5")
    assert fewer.protocol_digest == plan_of("llamagen-tiny").protocol_digest
    assert list(fewer.protocol.settings) == ["t1", "cfg2"] and fewer.protocol.seeds == [4, 5]
    with pytest.raises(UserError, match=r"no setting named 't2'"):
        plan_of("llamagen-tiny", "protocol.settings=t2")
    with pytest.raises(UserError, match=r"not of the form 0,1,2"):
        plan_of("llamagen-tiny", "protocol.seeds=a")


def test_a_model_without_a_backbone_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (ROOT / "registry" / "models" / "llamagen-tiny.toml").read_text()
    (tmp_path / "models").mkdir()
    text = re.sub(r"(?m)^target = .*$", "", card).replace('"llamagen"', '"someday"')
    (tmp_path / "models" / "someday.toml").write_text(text)
    monkeypatch.setenv("ALIGNBENCH_PATH", str(tmp_path))
    assert "this version has no someday backbone" in {p.what for p in plan_of("someday").problems}


def test_what_evaluators_need_is_listed_with_remedies(tmp_path: Path) -> None:
    """Missing files, too few images, and a protocol for other models: all before anything is trained."""
    texts = {p.where: (p.what, p.fix) for p in plan_of("llamagen-xxl").problems}
    assert "alignbench fetch inception-2015-12-05" in texts["assets/inception-2015-12-05"][1]
    assert "alignbench fetch imagenet256-adm-reference" in texts["assets/imagenet256-adm-reference"][1]
    few = {p.where: (p.what, p.fix) for p in plan_of("llamagen-tiny", "protocol.samples=9").problems}
    assert few["evaluator distribution-digits"] == (
        "needs at least 10 images, 9 are planned",
        "--set protocol.samples=10 or more",
    )
    stray = plan_of("llamagen-tiny", f"assets.inception-2015-12-05={tmp_path}").problems
    assert [p.what for p in stray] == ["protocol digits8 does not read it"]
    config = resolve(Registry.default(), method="vapi", model="llamagen-tiny", protocol="drawbench")
    others = {p.what for p in make_plan(Registry.default(), config).problems}
    assert "is for text-conditioned models, llamagen-tiny is class-conditioned" in others


def test_a_file_other_than_the_card_s_makes_another_protocol(tmp_path: Path) -> None:
    """Numbers of another network or another reference never meet the official ones in one table."""
    digests = []
    for content in (b"one network", b"another network"):
        path = tmp_path / f"{len(content)}.pth"
        path.write_bytes(content)
        plan = plan_of("llamagen-xxl", f"assets.inception-2015-12-05={path}")
        digests.append(plan.protocol_digest)
        assert plan.assets["inception-2015-12-05"].sha256 == hashlib.sha256(content).hexdigest()
    assert len({*digests, plan_of("llamagen-xxl").protocol_digest}) == 3


@pytest.fixture
def trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file where LPIPS's VGG-16 is looked for; plans do not open it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    path = tmp_path / "torch" / "hub" / "checkpoints" / "vgg16-397923af.pth"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_files_of_rewards_are_looked_for_before_anything_is_built(trunk: Path) -> None:
    def problems(*more: str) -> list[str]:
        found = plan_of(
            "llamagen-xxl", "model.weights=random", *more, dataset="synthetic", evaluates=False
        ).problems
        return [f"{problem.where}: {problem.what}" for problem in found]

    assert problems() == []
    trunk.unlink()
    assert problems() == [f"method.perceptual: reward 'lpips-vgg' needs {trunk}, which is not there"]
    # Not computed, or computed elsewhere.
    assert problems("method.perceptual_weight=0") == problems("method.policy_weight=0") == []
    assert problems("method.perceptual=lpips-vgg(placement=http://localhost:1)") == []


def test_weights_on_disk_are_accepted(tmp_path: Path, trunk: Path) -> None:
    for name in ("policy.safetensors", "tokenizer.pt"):
        (tmp_path / name).write_bytes(b"x" * 10)
    plan = plan_of(
        "llamagen-xxl",
        f"model.policy={tmp_path}/policy.safetensors",
        f"model.tokenizer={tmp_path}/tokenizer.pt",
        f"data.root={tmp_path}",
        evaluates=False,
    )
    assert plan.problems == []


def test_random_weights_need_no_files_of_their_own(trunk: Path) -> None:
    plan = plan_of("llamagen-xxl", "model.weights=random", dataset="synthetic", evaluates=False)
    assert plan.random_weights and plan.problems == []


def test_free_running_methods_hold_every_sequence() -> None:
    registry = Registry.default()
    parts = {}
    for method in ("vapi", "ar-grpo"):
        config = resolve(
            registry,
            method=method,
            model="llamagen-xxl",
            assignments=["train.micro_batch=2", "method.group_size=4", "train.precision=fp32"],
        )
        parts[method] = make_plan(registry, config, evaluates=False).estimate.parts
    assert parts["ar-grpo"]["logits"] == pytest.approx(4 * parts["vapi"]["logits"])


def test_memory_estimate_by_hand() -> None:
    plan = plan_of("llamagen-xxl")
    parts = plan.estimate.parts
    trained, tokenizer = 1_410_972_672, 71_883_403
    assert parts["weights, gradients, optimiser"] == pytest.approx((16 * trained + 4 * tokenizer) / 2**30)
    assert parts["logits"] == pytest.approx(8 * 576 * 16384 * 12 / 2**30)
    assert plan.estimate.train_gib == pytest.approx(sum(parts.values()))
    recomputed = plan_of("llamagen-xxl", "train.recompute=true")
    assert recomputed.estimate.parts["activations"] < parts["activations"] / 10
    assert estimate(plan.config, plan.model, plan.method) == plan.estimate


def test_images_generated_together_are_part_of_the_protocol() -> None:
    plain, smaller = plan_of("llamagen-tiny"), plan_of("llamagen-tiny", "protocol.batch=100")
    assert (plain.protocol.batch, smaller.protocol.batch) == (500, 100)
    assert plain.protocol_digest != smaller.protocol_digest and plain.digest != smaller.digest
    assert "protocol.batch" not in plain.config.values, "older configurations keep their digest"


def test_too_small_a_device_is_named_before_it_is_tried() -> None:
    found = plan_of("llamagen-xxl", "model.weights=random", dataset="synthetic", evaluates=False).estimate
    assert memory_note(found, found.train_gib) == ""
    note = memory_note(found, 23.6)
    assert f"about {found.train_gib:.2g} GiB" in note and "has 24" in note and "train.recompute=true" in note


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["llamagen", "janus"])
def test_what_a_layer_keeps_is_what_autograd_saves(family: str, precision: str) -> None:
    """Of two networks that differ by one layer, at widths where vectors do not matter."""
    shape = Registry.default().model(f"{family}-tiny").policy
    size = {"dim": 512, "heads": 8, "ffn_hidden": 1536, "vocab_size": 16, "tokens": 64}
    wide = shape.model_copy(update=size)
    saved = [_saved_bytes(family, wide.model_copy(update={"layers": n}), precision) for n in (1, 2)]
    width = 2 if precision == "bf16" else 4
    counted = (saved[1] - saved[0]) / LENGTH / width
    assert counted == pytest.approx(layer_values(wide, precision), rel=0.05)


LENGTH = 64


def _saved_bytes(family: str, shape: PolicyShape, precision: str) -> int:
    """Bytes that a forward leaves for the backward pass, parameters and their casts left out."""
    import torch

    make = _llama if family == "janus" else _gpt
    network, run = make(shape)
    storages: dict[int, tuple[int, torch.Tensor]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # Held, so that no address is used twice.
        storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        run()
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    casts = {tuple(parameter.shape) for parameter in network.parameters() if parameter.dim() > 1}
    casts |= {shape[::-1] for shape in casts}
    return sum(
        size
        for place, (size, tensor) in storages.items()
        if place not in own and tuple(tensor.shape) not in casts
    )


def _gpt(shape: PolicyShape) -> Any:
    import torch

    from alignbench.api import ClassLabels
    from alignbench.backbones.llamagen.gpt import GPT, GPTConfig

    network = GPT(
        GPTConfig(
            dim=shape.dim, layers=shape.layers, heads=shape.heads, ffn_hidden=shape.ffn_hidden,
            vocab_size=shape.vocab_size, grid=(8, 8), num_classes=3,
        )
    ).eval()  # fmt: skip
    context = torch.zeros(1, LENGTH - 1, dtype=torch.int64)
    return network, lambda: network(ClassLabels(torch.tensor([1])), context)


def _llama(shape: PolicyShape) -> Any:
    import torch

    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=shape.dim, intermediate_size=shape.ffn_hidden, num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads, num_hidden_layers=shape.layers, vocab_size=16,
    )  # fmt: skip
    network = transformers.LlamaModel(config).eval()
    inputs = torch.randn(1, LENGTH, shape.dim, requires_grad=True)
    mask = torch.ones(1, LENGTH, dtype=torch.int64)
    return network, lambda: network(inputs_embeds=inputs, attention_mask=mask, use_cache=False)
