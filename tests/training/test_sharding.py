"""Shards change where numbers lie and no result: against one process that has everything, in float32.

The slow tests are samples with two processes; the heavy ones are all methods, kinds and numbers of processes:
`python -m pytest tests/training/test_sharding.py -m heavy`.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from alignbench.api import ClassLabels, Sampling
from alignbench.backbones.llamagen.model import build as build_backbone
from alignbench.registry.lookup import Registry
from alignbench.training import checkpoint
from alignbench.training.parallel import Parallel
from alignbench.training.sharding import Shards, like, whole
from tests.conftest import ROOT
from tests.training.sharded import SAVED, Sharded, load, train

TOLERANCE = 1e-5
TINY, JANUS = "llamagen-tiny", "janus-tiny"
CARD = Registry.default().model(TINY)


def case(model: str, method: str, *more: str) -> Sharded:
    random = ("model.weights=random",) if model == JANUS else ()  # of Janus nothing is shipped
    options = Registry.default().method(method).options
    wanted = {"rewards": "redness", "perceptual_weight": 0, "group_size": 2} if model == JANUS else {}
    rewards = [f"method.{name}={value}" for name, value in wanted.items() if name in options]
    return Sharded(model, method, "none", (*more, *random, *rewards))


EVERY = [case(model, name) for model in (TINY, JANUS) for name in Registry.default().names("methods")]
OTHERWISE = [
    case(TINY, "vapi", "method.prior=kl", "train.recompute=true"),
    case(TINY, "ntp", "method.dropout=true", "train.micro_batch=1"),
]
"""A reference and recomputation; a forward an image."""


def start(root: Path, ranks: int, cases: Iterable[Sharded], *, nodes: int = 1) -> None:
    """Train cases in as many processes, one after the other."""
    texts = [str(one) for one in cases]
    if ranks == 1:
        devices = Parallel("fp32")
        for text in texts:
            train(Sharded.read(text), devices, root)
        devices.close()
        return
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.training.sharded", str(root), *texts],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "NODES": str(nodes)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


def check_same(one: Path, other: Path, *, tolerance: float = TOLERANCE) -> float:
    """Compare what two cases left: tokens, loss, norm, export; return the largest difference of weights."""
    first, second = load(one), load(other)
    assert first["images"] == second["images"]
    assert first["drawn"] and first["drawn"].keys() == second["drawn"].keys()
    for place, tokens in first["drawn"].items():
        assert torch.equal(tokens, second["drawn"][place]), f"{other}: other tokens at {place}"
    for mine, theirs in zip(first["log"], second["log"], strict=True):
        for name in ("loss", "grad_norm"):
            assert abs(mine[name] - theirs[name]) <= tolerance * max(1.0, abs(mine[name])), (other, name)
    assert first["export"].keys() == second["export"].keys()
    errors = [float((value - second["export"][name]).abs().max()) for name, value in first["export"].items()]
    assert max(errors) <= tolerance, other
    return max(errors)


def equal(root: Path, cases: list[Sharded], ranks: int, kinds: Iterable[str]) -> None:
    """Train in `ranks` processes and compare with one; the kinds are all of one start."""
    cut = [replace(one, kind=kind) for one in cases for kind in kinds]
    start(root, ranks, cut, nodes=2)
    for one in cut:
        worst = check_same(replace(one, kind="none").folder(root, 1), one.folder(root, ranks))
        print(f"{ranks} processes, {one.name}: weights differ by {worst:.1e}")  # noqa: T201


@pytest.fixture
def alone() -> Iterator[DeviceMesh]:
    """A process group of this process."""
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_what_is_cut_is_whole_in_the_block_and_cut_behind_it(alone: DeviceMesh) -> None:
    """Generation goes past the forward of the policy, which would gather its parts; also after an error."""
    backbone = build_backbone(CARD, None)
    condition, numbers = ClassLabels(torch.arange(3)), torch.rand(3, backbone.num_tokens)
    before, weights = backbone.generate(condition, numbers, Sampling()).tokens, backbone.export()["policy"]
    weights = {name: value.clone() for name, value in weights.items()}
    policy = backbone.policy
    shards = Shards(policy, alone, None)

    def cut() -> set[bool]:
        return {isinstance(parameter, DTensor) for parameter in policy.parameters()}

    assert cut() == {True}
    with pytest.raises(ZeroDivisionError), shards.gathered():
        assert cut() == {False}
        assert torch.equal(backbone.generate(condition, numbers, Sampling()).tokens, before)
        backbone.logits(condition, before[:, :-1])  # a forward cuts nothing here
        assert cut() == {False}
        1 / 0  # noqa: B018
    assert cut() == {True}
    backbone.logits(condition, before[:, :-1]).sum().backward()
    assert cut() == {True} and all(isinstance(one.grad, DTensor) for one in policy.parameters())
    exported = backbone.export()["policy"]
    assert all(torch.equal(whole(exported[name]), value) for name, value in weights.items())
    assert all(torch.equal(whole(like(value, exported[name])), value) for name, value in weights.items())


def test_half_precision_is_gathered_and_summed_in_full(alone: DeviceMesh) -> None:
    backbone = build_backbone(CARD, None)
    policy = backbone.policy
    shards = Shards(policy, alone, torch.bfloat16)
    condition, tokens = (
        ClassLabels(torch.arange(2)),
        torch.zeros(2, backbone.num_tokens - 1, dtype=torch.long),
    )
    with shards.gathered():
        assert {parameter.dtype for parameter in policy.parameters()} == {torch.bfloat16}
        backbone.generate(condition, torch.rand(2, backbone.num_tokens), Sampling(cfg_scale=2.0))
    for last in (False, True):
        shards.exchange_gradients(last)
        logits = backbone.logits(condition, tokens)
        assert logits.dtype == torch.float32
        logits.square().mean().backward()
        assert all((one.grad is None) != last for one in policy.parameters()), "one exchange a step"
    gradients = [one.grad for one in policy.parameters()]
    assert {gradient.dtype for gradient in gradients if gradient is not None} == {torch.float32}
    norm = (
        torch.stack([whole(one).double().square().sum() for one in gradients if one is not None]).sum().sqrt()
    )
    assert float(shards.clip(float("inf"))) == pytest.approx(float(norm), rel=1e-5)


def test_auto_cuts_where_a_device_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Parallel("fp32")
    try:
        assert devices.shard_kind("full", 1.0) == "none", "nobody to share with"
        monkeypatch.setattr(devices, "world_size", 2)
        monkeypatch.setattr(devices, "sum", dict)
        assert devices.shard_kind("hybrid", 1.0) == "hybrid"
        assert devices.shard_kind("auto", 1e9) == "none", "processes on a CPU share its memory"
        monkeypatch.setattr(Parallel, "memory_gib", 80.0)
        assert [devices.shard_kind("auto", size) for size in (79.0, 81.0)] == ["none", "full"]
        monkeypatch.setattr(devices, "sum", lambda numbers: {name: 1.0 for name in numbers})
        assert devices.shard_kind("auto", 1.0) == "full", "another rank's is too small"
    finally:
        monkeypatch.undo()
        devices.close()


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_two_processes_with_shards_give_what_one_gives(tmp_path: Path) -> None:
    start(tmp_path, 1, cases := [*EVERY, *OTHERWISE])
    equal(tmp_path, cases, 2, ["full"])


@pytest.mark.heavy
@pytest.mark.usefixtures("small")
def test_every_method_gives_the_same_in_every_way(tmp_path: Path) -> None:
    start(tmp_path, 1, EVERY)
    for one in EVERY:  # one process has nobody to share with
        alone = replace(one, kind="full")
        start(tmp_path, 1, [alone])
        assert check_same(one.folder(tmp_path, 1), alone.folder(tmp_path, 1), tolerance=0.0) == 0.0
    for ranks in (2, 4):
        equal(tmp_path, EVERY, ranks, ["none", "full", "hybrid"])


@pytest.mark.heavy
def test_two_agents_are_two_nodes(tmp_path: Path) -> None:
    """On loopback, two processes each; parameters are cut within a node and the same on both."""
    one = case(TINY, "ar-grpo")
    start(tmp_path, 1, [one])
    cut = replace(one, kind="hybrid")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    launcher = "-m torch.distributed.run --nnodes 2 --nproc-per-node 2 --rdzv-backend c10d"
    command = [sys.executable, *launcher.split(), "--rdzv-endpoint", place, "--local-addr", "localhost"]
    command += ["-m", "tests.training.sharded", str(tmp_path), str(cut)]
    agents = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    said = [agent.communicate(timeout=600)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    worst = check_same(one.folder(tmp_path, 1), cut.folder(tmp_path, 4))
    print(f"two agents: weights differ by {worst:.1e}")  # noqa: T201


# --- checkpoints ----------------------------------------------------------------------------------

SAVING = case(TINY, "ar-grpo", "method.rewards=loo-fd")
"""A method that remembers something from step to step."""


def resume_everywhere(root: Path, ways: list[tuple[int, str]]) -> int:
    """Save in every way, go on from each in every way; return how many pairs were compared."""
    sources = {(ranks, kind): replace(SAVING, kind=kind) for ranks, kind in ways}
    folders = {(ranks, kind): one.folder(root, ranks) for (ranks, kind), one in sources.items()}
    counts = sorted({ranks for ranks, _ in ways})

    def each(made: Callable[[int], list[Sharded]]) -> None:
        for ranks in counts:
            start(root, ranks, made(ranks))

    each(lambda ranks: [one for (count, _), one in sources.items() if count == ranks])
    begun = {
        (source, way): replace(sources[way], begin=str(folders[source].relative_to(root)))
        for source, way in itertools.product(ways, ways)
    }
    each(lambda ranks: [one for (_, (count, _)), one in begun.items() if count == ranks])
    for (source, way), one in begun.items():
        worst = after_resuming(folders[way], one.folder(root, way[0]), exact=source == way)
        print(f"{source} → {way}: weights differ by {worst:.1e}")  # noqa: T201
    return len(begun)


def after_resuming(whole: Path, begun: Path, *, exact: bool) -> float:
    """Compare an unbroken case with one that went on from a checkpoint; return the largest difference."""
    first, second = load(whole), load(begun)
    assert {step for step, _ in second["drawn"]} == {SAVED, SAVED + 1}, "it did not go on from the checkpoint"
    errors = [float((value - second["export"][name]).abs().max()) for name, value in first["export"].items()]
    assert max(errors) <= (0.0 if exact else TOLERANCE), begun
    if exact:
        assert first["log"] == second["log"]
    return max(errors)


@pytest.mark.slow
def test_a_checkpoint_of_either_form_is_read_in_shards_or_not(tmp_path: Path) -> None:
    assert resume_everywhere(tmp_path, [(1, "none"), (2, "none"), (2, "full")]) == 9
    saved = (
        SAVING.folder(tmp_path, 1) / "checkpoints",
        replace(SAVING, kind="full").folder(tmp_path, 2) / "checkpoints",
    )
    sizes = []
    for root in saved:
        (newest := checkpoint.complete(root)[-1])
        sizes.append(sum(path.stat().st_size for path in newest.iterdir()))
    assert abs(sizes[0] / sizes[1] - 1) < 0.15, "both forms hold the same numbers"


@pytest.mark.heavy
def test_all_36_ways_to_save_and_go_on(tmp_path: Path) -> None:
    ways = [(ranks, kind) for ranks in (1, 2, 4) for kind in ("none", "full")]
    assert resume_everywhere(tmp_path, ways) == 36
