"""Where files from outside are looked for, and what is said where they are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignbench.files import cache_root, package_file
from alignbench.hub.locate import FOLDER, assets_of, locate_asset
from alignbench.registry.lookup import Registry
from tests.hub.examples import (
    COMMIT,
    CONTENT,
    asset_card,
    folder_card,
    net,
    policy,
    put,
    weight_file,
    weights,
)


def test_cache_root_is_the_variable_or_the_home(
    monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path
) -> None:
    assert cache_root() == cache
    monkeypatch.delenv("ALIGNBENCH_CACHE")
    assert cache_root() == tmp_path / "home" / ".cache" / "alignbench"


def test_a_missing_file_names_its_place_and_the_command(cache: Path) -> None:
    for status, path in (
        (policy(), cache / "weights" / "mine" / "policy.pt"),
        (net(url="http://somewhere/net.pt"), cache / "assets" / "net" / "net.pt"),
    ):
        assert (status.path, status.ok, status.expected) == (None, False, path)
        assert status.reason == f"{path.name} is not in {path.parent}"
        assert status.fix == f"alignbench fetch {status.owner}, or --set {status.option}=PATH"
    assert policy().as_dict() == {
        "role": "policy",
        "path": None,
        "expected": str(cache / "weights" / "mine" / "policy.pt"),
        "ok": False,
        "reason": policy().reason,
        "fix": "alignbench fetch mine, or --set model.policy=PATH",
        "sha256": None,
    }


def test_a_file_without_public_source_is_brought() -> None:
    own, asset = policy(repo=""), net()
    assert own.reason.endswith("and no public release exists")
    assert own.fix == "--set model.policy=PATH, or put your own file there"
    assert asset.fix == f"no public source is known: --set assets.net=PATH, or put it at {asset.expected}"


def test_size_decides(cache: Path) -> None:
    path = put(cache / "weights" / "mine" / "policy.pt", CONTENT)
    for right in (len(CONTENT), None):
        assert (policy(size=right).path, policy(size=right).ok) == (path, True)
    wrong = policy(size=5)
    assert (wrong.path, wrong.ok) == (path, False)
    assert wrong.reason == f"{path} has {len(CONTENT)} bytes and should have 5"
    assert wrong.fix == "delete it, then: alignbench fetch mine"
    put(path, b"")
    assert policy().reason.endswith("has 0 bytes and should not be empty")
    assert policy(repo="").fix == "replace it"


def test_places_are_looked_through_in_order(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = asset_card(
        repo="someone/net",
        revision=COMMIT,
        places=["$TORCH_HOME/hub/checkpoints/other-name.pt", "~/.cache/clip/net.pt"],
    )
    for path in (
        tmp_path / "hf" / "models--someone--net" / "snapshots" / COMMIT / "net.pt",
        tmp_path / "home" / ".cache" / "clip" / "net.pt",
        tmp_path / "torch" / "hub" / "checkpoints" / "other-name.pt",
        cache / "assets" / "net" / "net.pt",
    ):
        put(path, b"1")
        assert locate_asset("net", card).path == path
    monkeypatch.delenv("TORCH_HOME")
    path = put(tmp_path / "home" / ".cache" / "torch" / "hub" / "x.pt", b"1")
    assert net(file="x.pt", places=["$TORCH_HOME/hub/x.pt"]).path == path


def test_revisions_and_data_sets_in_the_hugging_face_cache(tmp_path: Path) -> None:
    for kind in ("models", "datasets"):
        repo = tmp_path / "hf" / f"{kind}--someone--model"
        path = put(repo / "snapshots" / COMMIT / "policy.pt", CONTENT)
        put(repo / "refs" / "main", COMMIT.encode())
    assert net(file="policy.pt", repo="someone/model", kind="dataset").path == path
    for revision in (COMMIT, "main"):
        found = policy(revision=revision).path
        assert found == tmp_path / "hf" / "models--someone--model" / "snapshots" / COMMIT / "policy.pt"
    assert policy(revision="f" * 40).path is None


def test_a_folder_counts_once_it_is_complete(tmp_path: Path, cache: Path) -> None:
    card, own = folder_card(), cache / "assets" / "net"
    assert "no public source is known" in locate_asset("net", folder_card(files=[])).fix, "which files?"
    assert locate_asset("net", card).reason == f"{own} lacks a.json and w.st or w.bin"
    put(own / "a.json", b"{}")
    snapshot = tmp_path / "hf" / "models--someone--net" / "snapshots" / COMMIT
    for name in ("a.json", "w.bin"):
        put(snapshot / name, b"1")
    assert locate_asset("net", card).path == snapshot
    put(own / "w.st", b"1")
    assert locate_asset("net", card).path == own


def test_shipped_files_lie_in_the_package(cache: Path) -> None:
    here = weight_file(path="errors.py", repo="", shipped=True)
    absent = weight_file(role="tokenizer", path="weights/absent.safetensors", repo="", shipped=True)
    statuses = weights(here, absent)
    assert statuses["policy"].ok and statuses["policy"].path == package_file("errors.py")
    assert statuses["tokenizer"].fix == "the installation is incomplete: reinstall alignbench"
    cut = net(file="errors.py", shipped=True, size=5)
    assert cut.path == package_file("errors.py") and cut.fix == "reinstall alignbench"


def test_an_override_wins_and_never_falls_back(cache: Path, tmp_path: Path) -> None:
    own = put(cache / "weights" / "mine" / "policy.pt", CONTENT)
    mine, folder, void = put(tmp_path / "mine.pt", b"x"), tmp_path / "form", tmp_path / "void"
    put(folder / "a.json", b"{}")
    void.mkdir()
    file = weight_file(size=len(CONTENT), sha256="0" * 64)
    status = weights(file, policy=str(mine))["policy"]
    assert (status.path, status.ok, status.sha256) == (mine, True, None)
    assert weights(file, policy="")["policy"].path == own
    assert locate_asset("net", asset_card(size=9), str(mine)).path == mine
    assert locate_asset("net", asset_card(), str(folder)).ok
    for card, path, wrong in (
        (None, tmp_path / "absent.pt", "no such file"),
        (None, folder, "a folder, not a file"),
        (None, put(tmp_path / "zero.pt", b""), "the file is empty"),
        (folder_card(), folder, "the folder lacks w.st or w.bin"),
        (folder_card(), mine, "a file, not a folder"),
        (asset_card(what="prompts"), folder, "a folder, not a file"),
        (asset_card(), void, "the folder lacks any file"),
    ):
        status = locate_asset("net", card, str(path)) if card else weights(file, policy=str(path))["policy"]
        wanted = "the path of net.pt" if card else "the path of a weight file"
        if card and card.file == FOLDER:
            wanted = "a folder that holds a.json, w.st or w.bin"
        assert not status.ok and status.reason == f"{status.option} = {path}: {wrong}"
        assert status.fix == f"--set {status.option}=PATH with {wanted}"


def test_shards_have_their_own_keys_and_one_path_replaces_them(tmp_path: Path) -> None:
    files = [weight_file(path=name) for name in ("a.bin", "b.bin", "c.bin")]
    files.append(weight_file(role="tokenizer", path="t.bin"))
    assert {key: status.expected.name for key, status in weights(*files).items()} == {
        "policy": "a.bin",
        "policy.2": "b.bin",
        "policy.3": "c.bin",
        "tokenizer": "t.bin",
    }
    mine = put(tmp_path / "whole.safetensors", b"x")
    statuses = weights(*files, policy=str(mine))
    assert set(statuses) == {"policy", "tokenizer"} and statuses["policy"].path == mine


def test_assets_of_a_protocol_are_all_it_reads() -> None:
    registry = Registry.default()
    assert assets_of(registry, registry.protocol("drawbench")) == [
        "clip-vit-l-14-openai",
        "clip-vit-b-32-openai",
        "hpsv2.1",
        "drawbench-prompts",
    ]
    assert "imagenet256-adm-reference" in assets_of(registry, registry.protocol("imagenet256-adm"))
    assert assets_of(registry, registry.protocol("digits8")) == []


def test_looking_loads_no_heavy_module(tmp_path: Path) -> None:
    program = """
import sys
from alignbench.hub import fetch
from alignbench.hub.locate import locate_weights
from alignbench.registry.lookup import Registry
assert locate_weights("llamagen-xxl", Registry.default().model("llamagen-xxl"))["policy"].path is None
heavy = {"torch", "httpx", "httpx2", "requests", "huggingface_hub.file_download"} & set(sys.modules)
assert not heavy, heavy
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf-home")}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
