"""The plan: geometry, estimates, and every problem at once, before anything heavy."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignbench.api import ClassLabels
from alignbench.backbones.llamagen.gpt import GPT, GPTConfig
from alignbench.cli.common import plan_lines
from alignbench.config.estimate import disk_problem, estimate, layer_values, memory_note
from alignbench.config.plan import Plan, make_plan
from alignbench.config.settings import resolve
from alignbench.errors import UserError
from alignbench.registry.lookup import Registry
from alignbench.registry.schema import PolicyShape

ROOT = Path(__file__).parents[2]


def plan_of(model: str, *assignments: str, **given: Any) -> Plan:
    """The plan of VA-π, or of another method; `evaluates` is for the plan, the rest for the configuration."""
    registry, evaluates = Registry.default(), given.pop("evaluates", True)
    config = resolve(registry, model=model, assignments=assignments, **{"method": "vapi", **given})
    return make_plan(registry, config, evaluates=evaluates)


def problems(model: str, *assignments: str, **given: Any) -> dict[str, tuple[str, str]]:
    """{where: (what, fix)}."""
    return {one.where: (one.what, one.fix) for one in plan_of(model, *assignments, **given).problems}


def test_the_default_has_no_problems() -> None:
    plan = plan_of("llamagen-tiny")
    assert plan.problems == []
    assert plan.sequences_per_image == 8


def test_the_paper_s_geometry() -> None:
    values = plan_of("llamagen-xxl").as_dict()
    assert values["parameters"] == 1_410_972_672
    assert (values["images_per_step"], values["sequences_per_step"]) == (128, 1024)
    assert values["config"]["values"]["train.steps"] == 100


def test_missing_things_are_listed_together_with_remedies(tmp_path: Path) -> None:
    """Missing files, too few images, and a protocol for other models: all before anything is trained."""
    texts = problems("llamagen-xxl")
    assert {"weights/policy", "weights/tokenizer"} <= set(texts)
    assert "c2i_XXL_384.pt" in texts["weights/policy"][0]
    assert "alignbench fetch llamagen-xxl" in texts["weights/policy"][1]
    assert texts["data imagenet"][1] == "--set data.root=PATH"
    for asset in ("inception-2015-12-05", "imagenet256-adm-reference"):
        assert f"alignbench fetch {asset}" in texts[f"assets/{asset}"][1]
    assert problems("llamagen-tiny", "protocol.samples=9")["evaluator distribution-digits"] == (
        "needs at least 10 images, 9 are planned",
        "--set protocol.samples=10 or more",
    )
    (stray,) = problems("llamagen-tiny", f"assets.inception-2015-12-05={tmp_path}").values()
    assert stray[0] == "protocol digits8 does not read it"
    others = {what for what, _ in problems("llamagen-tiny", protocol="drawbench").values()}
    assert "is for text-conditioned models, llamagen-tiny is class-conditioned" in others


def test_an_impossible_size_is_answered_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "5")
    (problem,) = problems("llamagen-tiny").values()
    assert problem == ("32 images cannot be shared by 5 devices", "--set train.images_per_step=30 or 35")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert plan_of("llamagen-tiny").problems == []
    assert plan_of("llamagen-tiny", "train.micro_batch=3").accumulation == 3


def test_the_digest_is_the_identity_of_the_run() -> None:
    base = plan_of("llamagen-tiny")
    assert plan_of("llamagen-tiny").id == base.id
    own = base.config.train.lr  # the recipe's
    assert plan_of("llamagen-tiny", f"train.lr={own}").digest == base.digest
    assert plan_of("llamagen-tiny", f"train.lr={2 * own}").digest != base.digest
    assert plan_of("llamagen-tiny", evaluates=False).digest != base.digest
    for change in ("protocol.samples=7", "protocol.batch=100"):  # images generated together, too
        other = plan_of("llamagen-tiny", change)
        assert other.digest != base.digest and other.protocol_digest != base.protocol_digest
    assert (base.protocol.batch, other.protocol.batch) == (500, 100)
    assert "protocol.batch" not in base.config.values, "older configurations keep their digest"
    fewer = plan_of("llamagen-tiny", "protocol.settings=t1,cfg2", "protocol.seeds=4,5")
    assert fewer.protocol_digest == base.protocol_digest
    assert list(fewer.protocol.settings) == ["t1", "cfg2"] and fewer.protocol.seeds == [4, 5]
    for change, said in (("settings=t2", "no setting named 't2'"), ("seeds=a", "not of the form 0,1,2")):
        with pytest.raises(UserError, match=said):
            plan_of("llamagen-tiny", f"protocol.{change}")


def test_how_devices_share_is_no_part_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any way continues the run of another; the estimate is of the one that was chosen."""
    plain = plan_of("janus-pro-7b", "train.precision=bf16", "train.images_per_step=64")
    weights = plain.model.policy.parameters / 2**30
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    for kind, shares in (("none", 1), ("auto", 1), ("full", 16), ("hybrid", 8)):
        for micro_batch, whole in ((4, 2), (2, 4)):  # bytes while collecting; of gradients while updating
            settings = (
                "train.precision=bf16",
                "train.images_per_step=64",
                f"train.micro_batch={micro_batch}",
            )
            plan = plan_of("janus-pro-7b", *settings, f"train.shard={kind}")
            assert plan.digest == plan_of("janus-pro-7b", *settings).digest
            assert plan.estimate.disk_gib == plain.estimate.disk_gib, "all shards together are the whole"
            behind = plan_of("janus-pro-7b", *settings, f"train.shard={kind}", "train.async_checkpoint=true")
            assert (behind.digest, plan.snapshot_gib) == (plan.digest, 0)
            assert behind.snapshot_gib == pytest.approx(12 * weights / shares), "weight and two moments"
            parts = plan.estimate.parts
            frozen = plain.estimate.parts["weights, gradients, optimiser"] - 16 * weights
            assert parts["weights, gradients, optimiser"] == pytest.approx(16 * weights / shares + frozen)
            assert parts["gathered for a while"] == pytest.approx(whole * weights if shares > 1 else 0)
            assert parts["autocast copy"] == pytest.approx(2 * weights if shares == 1 else 0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    with pytest.raises(UserError, match="16 processes cannot be on nodes of 5 each"):
        plan_of("janus-pro-7b", "train.shard=hybrid")


def test_a_model_without_a_backbone_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (ROOT / "registry" / "models" / "llamagen-tiny.toml").read_text()
    (tmp_path / "models").mkdir()
    text = re.sub(r"(?m)^target = .*$", "", card).replace('"llamagen"', '"someday"')
    (tmp_path / "models" / "someday.toml").write_text(text)
    monkeypatch.setenv("ALIGNBENCH_PATH", str(tmp_path))
    assert "this version has no someday backbone" in {what for what, _ in problems("someday").values()}


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
    os.truncate(path, 553_433_881)
    return path


def test_files_are_looked_for_before_anything_is_built(tmp_path: Path, trunk: Path) -> None:
    def found(*more: str) -> dict[str, tuple[str, str]]:
        return problems("llamagen-xxl", *more, dataset="synthetic", evaluates=False)

    (tmp_path / "weights.pt").write_bytes(b"x" * 10)
    own = [f"model.{role}={tmp_path}/weights.pt" for role in ("policy", "tokenizer")]
    names = [f"n{number:08}" for number in range(1000)]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    for name in names[::999]:
        (tmp_path / "train" / name).mkdir(parents=True)
    own += [f"data.root={tmp_path}"]
    plan = plan_of("llamagen-xxl", *own, f"data.class_index={tmp_path}/classes.txt", evaluates=False)
    assert plan.problems == [] and list(plan.classes) == names, "no image was looked for"
    shown = "  classes    1000 classes: 0 = n00000000, 1 = n00000001, …, 999 = n00000999"
    assert shown in plan_lines(plan)
    ((where, (what, _)),) = problems("llamagen-xxl", *own, evaluates=False).items()
    assert where == "data imagenet" and "2 class folders for a model of 1000 classes" in what
    random = "model.weights=random"
    assert found(random) == {}
    trunk.unlink()
    (missing,) = found(random).items()
    assert missing[0] == "reward lpips-vgg"
    assert missing[1][1] == "alignbench fetch lpips-vgg, or lpips-vgg(path=PATH)"
    assert missing[1][0].startswith("vgg16-397923af.pth is not in ")
    # Not computed, or computed elsewhere.
    for change in ("perceptual_weight=0", "policy_weight=0", "perceptual=lpips-vgg(placement=http://here:1)"):
        assert found(random, f"method.{change}") == {}


def test_a_reward_reads_the_file_that_the_user_names_for_its_asset(tmp_path: Path) -> None:
    """Its bytes are part of the plan; where nothing reads it, the setting is refused by name."""
    mine, spec = tmp_path / "mine.pth", "assets.lpips-vgg16-trunk"
    given = ("model.weights=random", f"{spec}={mine}")

    def made(*more: str, **kind: Any) -> Plan:
        return plan_of("llamagen-b-256", *given, *more, dataset="synthetic", **{"evaluates": False, **kind})

    (missing,) = made().problems
    assert missing.where == "reward lpips-vgg" and missing.what == f"{spec} = {mine}: no such file"
    digests = set()
    for content in (b"one", b"another"):
        mine.write_bytes(content)
        assert not made().problems and spec not in {one.where for one in made(evaluates=True).problems}
        digests.add(made().digest)
    assert len(digests) == 2
    own = f"method.perceptual=lpips-vgg(path={mine}.other)"
    for more in ("method.perceptual_weight=0", "method.perceptual=lpips-vgg(placement=http://here:1)", own):
        why = {one.where: one.what for one in made(more).problems}
        assert why[spec] == "nothing of this reads it"
        stated = {one.where: one.what for one in made(more, evaluates=True).problems}
        assert stated[spec] == "protocol imagenet256-adm does not read it"


def test_a_resumed_run_needs_room_only_for_what_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
    needed = 3 * 2**20 / 2**30
    assert disk_problem(tmp_path / "new", needed) is not None
    (tmp_path / "checkpoint").write_bytes(bytes(2 * 2**20))
    assert disk_problem(tmp_path, needed) is None


def test_methods_hold_the_sequences_that_they_learn_from() -> None:
    given = ["train.micro_batch=2", "method.group_size=4", "train.precision=fp32"]
    one, *others = (
        plan_of("llamagen-xxl", *given, *more, method=method, evaluates=False).estimate.parts["logits"]
        for method, *more in (["vapi"], ["ar-grpo"], ["pairs"], ["raft", "method.keep=3"], ["raft"])
    )
    assert others == pytest.approx([4 * one, 2 * one, 3 * one, one])


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


def test_too_small_a_device_is_named_before_it_is_tried() -> None:
    plan = plan_of("llamagen-xxl", "model.weights=random", dataset="synthetic", evaluates=False)
    found = plan.estimate
    assert plan.random_weights and memory_note(found, found.train_gib) == ""
    note = memory_note(found, 23.6)
    assert f"about {found.train_gib:.2g} GiB" in note and "has 24" in note and "train.recompute=true" in note


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["llamagen", "janus"])
def test_what_a_layer_keeps_is_what_autograd_saves(family: str, precision: str) -> None:
    """Of two networks that differ by one layer, at widths where vectors do not matter."""
    shape = Registry.default().model(f"{family}-tiny").policy
    size = {"dim": 512, "heads": 8, "ffn_hidden": 1536, "vocab_size": 16, "tokens": 64}
    wide = shape.model_copy(update=size)
    networks = [NETWORKS[family](wide.model_copy(update={"layers": layers})) for layers in (1, 2)]
    saved = [saved_bytes(network, forward, precision)[0] for network, forward in networks]
    width = 2 if precision == "bf16" else 4
    counted = (saved[1] - saved[0]) / LENGTH / width
    assert counted == pytest.approx(layer_values(wide, precision), rel=0.05)


LENGTH = 64


def saved_bytes(network: Any, run: Callable[[], Any], precision: str) -> tuple[int, int]:
    """Bytes that a forward leaves for the backward pass, but parameters: of values, of rounded matrices."""
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
    for parameter in network.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    casts = {tuple(parameter.shape) for parameter in network.parameters() if parameter.dim() > 1}
    casts |= {shape[::-1] for shape in casts}
    copies = sum(size for size, tensor in storages.values() if tuple(tensor.shape) in casts)
    return sum(size for size, _ in storages.values()) - copies, copies


def _gpt(shape: PolicyShape) -> Any:
    config = GPTConfig(
        dim=shape.dim, layers=shape.layers, heads=shape.heads, ffn_hidden=shape.ffn_hidden,
        vocab_size=shape.vocab_size, grid=(8, 8), num_classes=3,
    )  # fmt: skip
    network = GPT(config).eval()
    context = torch.zeros(1, LENGTH - 1, dtype=torch.int64)
    return network, lambda: network(ClassLabels(torch.tensor([1])), context)


def _llama(shape: PolicyShape) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=shape.dim, intermediate_size=shape.ffn_hidden, num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads, num_hidden_layers=shape.layers, vocab_size=16,
    )  # fmt: skip
    network = transformers.LlamaModel(config).eval()
    inputs = torch.randn(1, LENGTH, shape.dim, requires_grad=True)
    mask = torch.ones(1, LENGTH, dtype=torch.int64)
    return network, lambda: network(inputs_embeds=inputs, attention_mask=mask, use_cache=False)


NETWORKS: dict[str, Callable[[PolicyShape], tuple[Any, Callable[[], Any]]]] = {
    "llamagen": _gpt,
    "janus": _llama,
}
"""{family: its transformer of some shape, and a forward of `LENGTH` positions}."""
