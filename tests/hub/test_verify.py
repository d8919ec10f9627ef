"""Which bytes files from outside consist of, and which are refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from alignbench.errors import UserError
from alignbench.files import read_json
from alignbench.hub.locate import locate_asset
from alignbench.hub.verify import AssetFile, verify, verify_asset
from alignbench.registry.protocol import AssetCard
from tests.hub.examples import (
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


def test_a_missing_asset_is_named_with_the_command() -> None:
    with pytest.raises(UserError, match=r"asset 'net': net\.pt is not in .* → alignbench fetch net"):
        verify_asset(net(url="http://somewhere/net.pt"))


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
