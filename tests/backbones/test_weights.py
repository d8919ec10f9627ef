"""Reading weight files in all their containers, and refusing what does not fit."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from alignbench.backbones import weights
from alignbench.backbones.weights import load_strict, read_state_dict
from alignbench.errors import UserError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.0, -2.0])}
OTHER = {"a.weight": torch.zeros(2, 3), "b": torch.zeros(2)}


LIGHTNING = {"pytorch-lightning_version": "2.5.0", "epoch": 1, "optimizer_states": [], "loops": {}}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "optimizer": {"state": {0: {"step": 3}}}, "steps": 5},
        lambda state: {"module": state},
        lambda state: {"state_dict": state},
        lambda state: {**LIGHTNING, "state_dict": {f"model.{key}": value for key, value in state.items()}},
        lambda state: {**LIGHTNING, "state_dict": state},
        lambda state: {"model": state, "best": np.float64(0.5), "seen": np.int64(3), "rng": np.arange(3)},
        lambda state: {"model": state, "args": {"out": Path("/x")}},
        lambda state: {"model": state, "ema": OTHER, "module": OTHER, "state_dict": OTHER},
        lambda state: {"module.a.weight": state["a.weight"], "_orig_mod.module.b": state["b"]},
        lambda state: {
            **state,
            "freqs_cis": torch.ones(3),
            "layers.0.attention.kv_cache.k_cache": torch.ones(2),
        },
    ],
    ids=[
        "bare", "model", "module", "state_dict", "lightning", "its own module", "numpy", "paths",
        "model first", "prefixes", "strays",
    ],
)  # fmt: skip
def test_every_container_gives_the_same_weights(tmp_path: Path, wrap: Callable[..., object]) -> None:
    path = tmp_path / "weights.pt"
    torch.save(wrap(STATE), path)
    assert same(read_state_dict(path), STATE)


def test_prefixes_of_fsdp_go_and_two_of_a_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({f"_fsdp_wrapped_module.{key}": value for key, value in STATE.items()}, path)
    assert same(read_state_dict(path), STATE)
    key = next(iter(STATE))
    torch.save({**STATE, f"module.{key}": STATE[key] + 1}, path)
    with pytest.raises(UserError, match="holds weights twice"):
        read_state_dict(path)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_what_was_downloaded_instead_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match="only points to the file that git-lfs keeps"):
        read_state_dict(path)
    path.write_text("\n<!DOCTYPE HTML><html><body>Sign in</body></html>")
    with pytest.raises(UserError, match="is a web page"):
        read_state_dict(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_training_checkpoint_with_its_optimizer_and_arguments(tmp_path: Path, zipped: bool) -> None:
    module = Net()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, betas=(0.9, 0.95))
    module.a(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": STATE,
        "optimizer": optimizer.state_dict(),
        "steps": 7,
        "args": argparse.Namespace(lr=1e-4, ema=False, gpt_ckpt=None, betas=[0.9, 0.95]),
        "ema": OTHER,
    }
    path = tmp_path / "0000007.pt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    assert same(read_state_dict(path), STATE)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_order_of_lookup_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "vq.pt"
    torch.save({"ema": OTHER, "model": STATE}, path)
    assert same(read_state_dict(path), STATE)
    assert same(read_state_dict(path, containers=("ema", "model", "state_dict")), OTHER)


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(STATE, path)
    assert same(read_state_dict(path), STATE)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "text": lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "empty": lambda _: b"",
    "noise": lambda _: bytes(range(256)) * 40,
}


@pytest.mark.parametrize("damage", [*DAMAGE, "missing"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(UserError) as caught:
        read_state_dict(path)
    assert str(path) in caught.value.what and caught.value.fix
    assert "\n" not in str(caught.value)


class Unsafe:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (Path("unpickled"), "x"))


@pytest.mark.parametrize(
    "content",
    [Unsafe(), {"model": Unsafe()}, [1, 2], {"epoch": 3}, {}, torch.ones(2)],
    ids=["object", "object-inside", "list", "no-weights", "empty", "tensor"],
)
def test_files_without_weights_are_refused(
    tmp_path: Path, content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=r"weights\.pt"):
        read_state_dict(path)
    assert not (tmp_path / "unpickled").exists()


def test_what_could_run_code_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"model": STATE, "when": datetime.timedelta(1)}, path)
    with pytest.raises(UserError, match=r"more than weights: loading datetime\.\w+") as caught:
        read_state_dict(path)
    assert "truncated" not in str(caught.value)
    assert caught.value.fix == "where you trust the file, save its state dict alone and use that"


def test_what_stands_beside_the_weights_runs_no_code_of_its_own(tmp_path: Path, monkeypatch: Any) -> None:
    """Not even numpy's: `_reconstruct` and `scalar` would be called with whatever the file says."""
    path = tmp_path / "weights.pt"
    torch.save({"model": STATE, "seen": [np.float32(1), np.arange(3), Path("x")]}, path)
    content = weights._read_torch(path)
    assert {type(value).__name__ for value in content["seen"]} == {"_Beside"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2, bias=False)
        self.b = nn.Parameter(torch.zeros(2))
        nn.init.constant_(self.a.weight, 7.0)


def test_strict_loading_converts_to_the_modules_dtype() -> None:
    module = Net().double()
    load_strict(module, {key: value.half() for key, value in STATE.items()}, name="x.pt")
    assert torch.equal(module.a.weight, STATE["a.weight"].double()) and torch.equal(
        module.b, STATE["b"].double()
    )


def test_names_under_a_prefix_are_said_to_be(tmp_path: Path) -> None:
    state = {f"generator.{key}": value for key, value in STATE.items()}
    for more in ({}, {"loss.scale": torch.ones(1)}):
        with pytest.raises(UserError) as caught:
            load_strict(Net(), {**state, **more}, name="x.pt")
        assert caught.value.fix == "its names begin with 'generator.': save those alone, without that"


def test_strict_loading_lists_everything_that_differs_and_loads_nothing() -> None:
    module = Net()
    state = {"b": torch.zeros(3), "extra": torch.zeros(1), **{f"more.{i}": torch.zeros(1) for i in range(9)}}
    with pytest.raises(UserError) as caught:
        load_strict(module, state, name="wrong.pt")
    what = caught.value.what
    assert "wrong.pt" in what
    assert "1 missing (a.weight)" in what
    assert "10 unexpected (extra, more.0" in what and "2 more" in what and "more.8" not in what
    assert "1 of another shape (b [3] instead of [2])" in what
    with pytest.raises(UserError):
        load_strict(module, {**STATE, "b": torch.zeros(5)}, name="wrong.pt")
    assert bool((module.a.weight == 7.0).all())
