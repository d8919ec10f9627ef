"""Where files from outside are looked for, what is said where they are not, and which bytes are refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from alignbench.errors import UserError
from alignbench.files import cache_root, package_file, read_json
from alignbench.hub import verify as verification
from alignbench.hub.locate import FOLDER, assets_of, locate_asset
from alignbench.hub.verify import AssetFile, check_digest, verify, verify_asset
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import AssetCard
from tests.hub.conftest import (
    COMMIT,
    CONTENT,
    SHA256,
    asset_card,
    folder_card,
    net,
    policy,
    put,
    weight_file,
    weights,
)


def test_cache_root_is_the_variable_or_the_home(monkeypatch: Any, cache: Path, tmp_path: Path) -> None:
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
        **{"role": "policy", "path": None, "ok": False, "reason": policy().reason, "sha256": None},
        "expected": str(cache / "weights" / "mine" / "policy.pt"),
        "fix": "alignbench fetch mine, or --set model.policy=PATH",
    }
    with pytest.raises(UserError, match=r"asset 'net': net\.pt is not in .* → alignbench fetch net"):
        verify_asset(net(url="http://somewhere/net.pt"))


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


def test_places_are_looked_through_in_order(tmp_path: Path, cache: Path, monkeypatch: Any) -> None:
    places = ["$TORCH_HOME/hub/checkpoints/other-name.pt", "~/.cache/clip/net.pt"]
    card = asset_card(repo="someone/net", revision=COMMIT, places=places)
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
    dataset, model = (
        put(tmp_path / "hf" / f"{kind}--someone--model" / "snapshots" / COMMIT / "policy.pt", CONTENT)
        for kind in ("datasets", "models")
    )
    for path in (dataset, model):
        put(path.parents[2] / "refs" / "main", COMMIT.encode())
    assert net(file="policy.pt", repo="someone/model", kind="dataset").path == dataset
    assert policy(revision=COMMIT).path == policy(revision="main").path == model
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
    names = {key: status.expected.name for key, status in weights(*files).items()}
    assert names == {"policy": "a.bin", "policy.2": "b.bin", "policy.3": "c.bin", "tokenizer": "t.bin"}
    mine = put(tmp_path / "whole.safetensors", b"x")
    statuses = weights(*files, policy=str(mine))
    assert set(statuses) == {"policy", "tokenizer"} and statuses["policy"].path == mine


def test_assets_of_a_protocol_are_all_it_reads() -> None:
    def names(protocol: str) -> list[str]:
        return assets_of(Registry.default(), Registry.default().protocol(protocol))

    scores = ["clip-vit-l-14-openai", "clip-vit-b-32-openai", "hpsv2.1"]
    assert names("drawbench") == [*scores, "drawbench-prompts"]
    assert "imagenet256-adm-reference" in names("imagenet256-adm") and names("digits8") == []


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


# --- which bytes they are -------------------------------------------------------------------------


def test_a_wrong_file_is_an_error_unless_the_user_meant_it(cache: Path) -> None:
    path = put(cache / "assets" / "net" / "net.pt", CONTENT)
    assert verify_asset(net(sha256=SHA256)) == AssetFile("net", path, SHA256)
    with pytest.raises(UserError) as caught:
        verify_asset(net(sha256="0" * 64))
    assert caught.value.what == f"{path} has SHA-256 {SHA256}, its card says {'0' * 64}"
    assert f"--set assets.net={path} to use it all the same, in rows apart" in caught.value.fix
    assert verify_asset(locate_asset("net", asset_card(sha256="0" * 64), str(path))).sha256 == SHA256
    mine = weights(weight_file(sha256="0" * 64), policy=str(path))["policy"]
    assert verify(mine) == SHA256


def test_an_index_covers_the_files_it_lists(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    status = weights(weight_file(), policy=str(put(path, b"[]")))["policy"]
    with pytest.raises(UserError, match=r"is not an index of weight files → name a weight file"):
        verify(status)
    put(path, json.dumps({"weight_map": {"x": "a.bin", "y": "b.bin", "z": "a.bin"}}).encode())
    put(tmp_path / "a.bin", b"a")
    with pytest.raises(UserError, match=r"lists .*b\.bin: no such file"):
        verify(status)
    put(tmp_path / "b.bin", b"b")
    digest = verify(status)
    assert digest == verify(status) and digest != hashlib.sha256(path.read_bytes()).hexdigest()
    put(tmp_path / "b.bin", b"c")
    assert verify(status) != digest
    listed = put(policy(path=path.name).expected, b"{}")
    assert verify(policy(path=path.name)) == hashlib.sha256(listed.read_bytes()).hexdigest(), "of a card"


def test_an_asset_is_read_once_while_it_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, record = put(cache / "assets" / "net" / "net.pt", CONTENT), cache / "assets" / "digests.json"
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr("alignbench.files.file_sha256", counted)
    for _ in range(3):
        assert verify(net()) == SHA256
    assert len(read) == 1
    path.write_bytes(b"other")
    assert verify(net()) == hashlib.sha256(b"other").hexdigest()
    other = hashlib.sha256(b"other").hexdigest()
    for broken in ("{broken", "[1]", record.read_text().replace(other, SHA256)):
        record.write_text(broken)
        assert verify(net()) == other
        assert read_json(record)[str(path)][-1] == other
    assert len(read) == 5
    monkeypatch.setenv("ALIGNBENCH_CACHE", str(path))
    assert verify(locate_asset("net", asset_card(), str(path))) and len(read) == 6, "an unwritable cache"


READER = """
import pathlib, sys, time
from alignbench import files
from tests.hub.conftest import net, policy
from alignbench.hub.verify import verify

log, mine = pathlib.Path(sys.argv[1]), sys.argv[2]
read = files.file_sha256

def slowly(path):
    with (log / "read").open("a") as file:
        file.write(path.name + " ")
    time.sleep(0.2)
    return read(path)

files.file_sha256 = slowly
(log / f"here-{mine}").touch()
while len(list(log.glob("here-*"))) < 2:
    time.sleep(0.01)
print(verify(net()), verify(policy(repo="")))
"""


def test_of_two_processes_that_start_together_one_reads_the_files(cache: Path, tmp_path: Path) -> None:
    put(cache / "assets" / "net" / "net.pt", CONTENT)
    put(cache / "weights" / "mine" / "policy.pt", CONTENT)
    commands = [[sys.executable, "-c", READER, str(tmp_path), name] for name in "ab"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    assert [process.communicate(timeout=60)[0].split() for process in started] == 2 * [[SHA256, SHA256]]
    assert sorted((tmp_path / "read").read_text().split()) == ["net.pt", "policy.pt"]


def test_the_digest_of_a_folder_is_that_of_what_counts(tmp_path: Path) -> None:
    folder, listed, single = tmp_path / "form", folder_card(), asset_card()

    def digest(card: AssetCard) -> str:
        return verify(locate_asset("net", card, str(folder)))

    for name in ("a.json", "w.bin", "README.md"):
        put(folder / name, name.encode())
    before = digest(listed), digest(single)
    put(folder / "README.md", b"changed")
    assert digest(listed) == before[0] and digest(single) != before[1]
    put(folder / "w.bin", b"changed")
    changed = digest(listed)
    assert changed != before[0]
    (folder / "w.bin").rename(folder / "w.st")
    assert digest(listed) not in (changed, before[0])


def test_the_digest_at_first_use_holds_for_ever(cache: Path) -> None:
    path, record = put(cache / "weights" / "mine" / "policy.pt", CONTENT), cache / "weights" / "digests.json"
    assert verify(policy()) == SHA256
    assert read_json(record) == {f"someone/model@{policy().card.revision}/policy.pt": SHA256}
    path.write_bytes(CONTENT[:-1] + b"?")
    changed = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError) as caught:
        verify(policy())
    assert caught.value.what == f"{path} has SHA-256 {changed}, {record} says {SHA256}"
    assert caught.value.fix.startswith("delete it, then: alignbench fetch mine")
    record.write_text("{broken")
    with pytest.raises(UserError, match=r"digests\.json is damaged.* → delete it"):
        verify(policy())
    record.unlink()
    assert verify(policy(repo="")) == changed
    assert not record.exists(), "the user's own files are not recorded"


def test_digests_at_first_use_are_recorded_in_turn(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of several processes reads the record before another one wrote it, unless it waits."""
    read = verification._first_use

    def slowly() -> dict[str, str]:
        known = read()
        time.sleep(0.02)
        return known

    monkeypatch.setattr(verification, "_first_use", slowly)
    files = [policy(path=f"{number}.pt") for number in range(6)]
    with ThreadPoolExecutor(len(files)) as pool:
        list(pool.map(lambda file: check_digest(file, file.expected, SHA256), files))
    assert len(read()) == len(files)
