"""Downloading: against a local server with the real hub client, and offline."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignbench.errors import EXIT_FAILED, EXIT_NOT_RUNNABLE, RunFailed, UserError
from alignbench.hub import download
from alignbench.hub.fetch import Fetched, fetch_files
from alignbench.hub.locate import FOLDER, FileStatus, locate_asset
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import AssetCard
from tests.hub.examples import (
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

REGISTRY = Registry.default()


def methods(server: SimpleNamespace) -> set[str]:
    return {request.method for request in server.requests}


def ranges(server: SimpleNamespace) -> list[str | None]:
    return [request.range for request in server.requests if request.method == "GET"]


def breaks_after(count: int, error: OSError) -> Callable[..., None]:
    """Stand in for the transfer: write so many bytes and raise."""

    def transfer(url: str, stream: Any, **options: Any) -> None:
        stream.write(CONTENT[:count])
        raise error

    return transfer


@pytest.mark.parametrize("kind", ["hub", "address", "moved address"])
def test_a_download_is_checked_and_not_repeated(server: SimpleNamespace, kind: str) -> None:
    server.etag = SHA256 if kind == "hub" else "version-1"
    url = f"{server.root}/{'moved/' if 'moved' in kind else ''}net.pt"
    known = {"size": len(CONTENT), "sha256": SHA256}

    def wanted() -> FileStatus:
        return policy(**known) if kind == "hub" else net(url=url, **known)

    lines: list[str] = []
    file = wanted()
    assert fetch_files([file], say=lines.append) == [Fetched(file.name, file.expected, "downloaded", SHA256)]
    assert file.expected.read_bytes() == CONTENT
    assert list(file.expected.parent.iterdir()) == [file.expected], "nothing is left beside it"
    address = f"someone/model/policy.pt @ {COMMIT[:12]}" if kind == "hub" else url
    assert f": licence MIT, 10.2 kB, {address} → {file.expected}" in lines[0]
    if kind != "hub":
        assert {request.token for request in server.requests} == {None}, "the hub's token is nobody else's"
    server.requests.clear()
    assert fetch_files([wanted()], say=lines.append)[0].action == "present"
    assert f"here: {file.expected}" in lines[-2] and not server.requests


@pytest.mark.parametrize("kind", ["hub", "address"])
def test_a_broken_transfer_is_continued(
    server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from huggingface_hub import file_download

    file = policy(sha256=SHA256) if kind == "hub" else net(url=f"{server.root}/net.pt")
    with (
        monkeypatch.context() as patch,
        pytest.raises(RunFailed, match="4000 of 10240 bytes are kept") as got,
    ):
        patch.setattr(file_download, "http_get", breaks_after(4000, ConnectionResetError("reset by peer")))
        fetch_files([file])
    assert got.value.exit_code == EXIT_FAILED and "same command again" in got.value.fix
    assert not file.expected.exists()
    server.requests.clear()
    assert fetch_files([file])[0].sha256 == SHA256
    assert ranges(server) == ["bytes=4000-"]


def test_a_full_disk_keeps_what_arrived(server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import file_download

    monkeypatch.setattr(file_download, "http_get", breaks_after(100, OSError(28, "No space left on device")))
    with pytest.raises(RunFailed, match=r"no space left .* 100 of 10240 bytes are kept → free some space"):
        fetch_files([policy()])


@pytest.mark.parametrize("kind", ["hub", "address"])
def test_part_of_another_version_is_not_continued(server: SimpleNamespace, kind: str) -> None:
    file = policy() if kind == "hub" else net(url=f"{server.root}/net.pt", sha256=SHA256)
    put(file.expected.with_name(f"{file.expected.name}.{'0' * 16}.partial"), b"something else")
    fetch_files([file])
    assert ranges(server) == [None] and file.expected.read_bytes() == CONTENT


def test_a_damaged_transfer_never_gets_the_final_name(server: SimpleNamespace) -> None:
    file = policy()
    partial = put(file.expected.with_name(f"policy.pt.{SHA256[:16]}.partial"), b"?" * 5000)
    damaged = hashlib.sha256(b"?" * 5000 + CONTENT[5000:]).hexdigest()
    with pytest.raises(UserError) as caught:
        fetch_files([file])
    assert caught.value.what == f"{partial} has SHA-256 {damaged}, the hub says {SHA256}"
    assert f"delete {partial} and fetch it again" in caught.value.fix
    assert not file.expected.exists()


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"size": 5}])
def test_another_file_is_refused_before_the_download(server: SimpleNamespace, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="not the file its card means") as caught:
        fetch_files([policy(**change)])
    assert SHA256 in caught.value.what and str(next(iter(change.values()))) in caught.value.what
    with pytest.raises(UserError, match=r"/net.pt is not the file its card means") as caught:
        fetch_files([net(url=f"{server.root}/net.pt", size=5)])
    assert "--set assets.net=PATH with a copy you trust" in caught.value.fix
    assert methods(server) == {"HEAD"}


@pytest.mark.parametrize("kind", ["hub", "address"])
def test_a_wrong_digest_is_found_where_the_server_names_none(server: SimpleNamespace, kind: str) -> None:
    server.etag = "version-1"
    wrong = {"sha256": "0" * 64}
    file = policy(**wrong) if kind == "hub" else net(url=f"{server.root}/net.pt", **wrong)
    with pytest.raises(UserError, match=f"has SHA-256 {SHA256}, its card says {'0' * 64}") as caught:
        fetch_files([file])
    assert caught.value.what.startswith(str(file.expected))
    assert not file.expected.exists()


def test_the_first_digest_is_recorded_and_checked_ever_after(server: SimpleNamespace, cache: Path) -> None:
    server.etag = "version-1"
    fetch_files([policy()])
    assert json.loads((cache / "weights" / "digests.json").read_text()) == {
        f"someone/model@{COMMIT}/policy.pt": SHA256
    }
    policy().expected.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(UserError, match=r"digests\.json"):
        fetch_files([policy()])
    policy().expected.unlink()
    server.etag = "1" * 64
    with pytest.raises(UserError, match=f"wanted are any with {SHA256}"):
        fetch_files([policy()])


def test_a_wrong_file_on_disk_stops_everything_and_is_kept(server: SimpleNamespace, cache: Path) -> None:
    mine = put(cache / "weights" / "mine" / "policy.pt", b"mine")
    with pytest.raises(UserError, match="4 bytes"):
        fetch_files([net(url=f"{server.root}/net.pt"), policy(size=len(CONTENT))])
    assert mine.read_bytes() == b"mine" and not server.requests
    with pytest.raises(UserError, match="reinstall"):
        fetch_files([policy(path="weights/absent.safetensors", repo="", shipped=True)])


def test_too_little_room(server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_239))
    with pytest.raises(UserError, match=r"10\.2 kB") as caught:
        fetch_files([policy()])
    assert "ALIGNBENCH_CACHE" in caught.value.fix and methods(server) == {"HEAD"}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_240))
    assert fetch_files([policy()])[0].action == "downloaded"


def test_an_unwritable_cache_is_named(
    server: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNBENCH_CACHE", str(put(tmp_path / "occupied", b"a file")))
    with pytest.raises(UserError, match=r"cannot create .*occupied"):
        fetch_files([policy()])


def test_a_file_that_is_not_there(server: SimpleNamespace) -> None:
    server.missing = True
    with pytest.raises(UserError, match=r"the hub refuses someone/model/policy\.pt"):
        fetch_files([policy()])
    with pytest.raises(UserError, match=r"cannot get .*404"):
        fetch_files([net(url=f"{server.root}/net.pt")])


def test_a_file_behind_a_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def refuse(url: str) -> None:
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    with pytest.raises(UserError, match=r"asks you to accept its licence first → .*then: hf auth login"):
        fetch_files([policy()])


def test_a_server_that_does_not_say_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import utils

    nothing = SimpleNamespace(size=None, etag="1", headers={}, raise_for_status=lambda: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: nothing)
    monkeypatch.setattr(utils, "get_session", lambda: SimpleNamespace(request=lambda *_, **__: nothing))
    for file in (policy(), net(url="http://somewhere/net.pt")):
        with pytest.raises(UserError, match=r"not say .* → try again later"):
            fetch_files([file])


def test_data_sets_and_folders_of_the_hub(server: SimpleNamespace, cache: Path) -> None:
    prompts = asset_card(what="prompts", file="a b.csv", repo="someone/list", revision=COMMIT, kind="dataset")
    assert fetch_files([locate_asset("list", prompts)])[0].path == cache / "assets" / "list" / "a b.csv"
    assert all(request.path.startswith("/datasets/someone/list/") for request in server.requests)
    server.requests.clear()
    put(cache / "assets" / "net" / "a.json", b"{}")
    (done,) = fetch_files([locate_asset("net", folder_card())])
    assert (done.path, done.action) == (cache / "assets" / "net", "downloaded")
    assert sorted(path.name for path in done.path.iterdir()) == ["a.json", "w.st"]
    names = {request.path.rpartition("/")[2] for request in server.requests}
    assert names == {"w.st"}, "the first of two forms"


def test_files_without_a_public_source_are_reported(server: SimpleNamespace) -> None:
    lines: list[str] = []
    files = weights(weight_file(repo="", path="own.pt"), weight_file(role="tokenizer", path="vq.pt"))
    done = fetch_files([*files.values(), net(licence="")], say=lines.append)
    assert [(item.name, item.action) for item in done] == [
        ("policy", "bring your own"),
        ("tokenizer", "downloaded"),
        ("net", "bring your own"),
    ]
    assert "licence not stated, size unknown, no public source" in lines[2]
    for option, name in (("model.policy", "own.pt"), ("assets.net", "net.pt")):
        assert any(name in line and f"--set {option}=PATH" in line for line in lines)


def test_dry_run_touches_neither_network_nor_disk(server: SimpleNamespace, cache: Path) -> None:
    lines: list[str] = []
    done = fetch_files([policy(size=10), net(url=f"{server.root}/net.pt")], dry_run=True, say=lines.append)
    assert [(item.action, item.sha256) for item in done] == [("would download", None)] * 2
    assert not server.requests and not cache.exists()
    assert "10 bytes" in lines[0]


def test_an_unreachable_hub_gets_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_, **__: "http://127.0.0.1:9/nothing")
    with pytest.raises(UserError) as caught:
        fetch_files(list(weights(weight_file(), weight_file(role="tokenizer", path="vq.pt")).values()))
    check_offline_message(str(caught.value), cache)


def test_the_offline_switch_gets_the_same_line_from_the_real_client(tmp_path: Path, cache: Path) -> None:
    program = """
from alignbench.errors import UserError
from alignbench.hub.fetch import fetch_files
from tests.hub.examples import weight_file, weights
try:
    fetch_files(list(weights(weight_file(), weight_file(role="tokenizer", path="vq.pt")).values()))
except UserError as error:
    print(error.exit_code, error, end="")
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf-home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    status, _, message = done.stdout.partition(" ")
    assert status == str(EXIT_NOT_RUNNABLE) and "(HF_HUB_OFFLINE is set)" in message
    check_offline_message(message, cache)


def check_offline_message(message: str, cache: Path) -> None:
    assert "\n" not in message and "https://" not in message
    assert "cannot reach the hub for someone/model/policy.pt, someone/model/vq.pt" in message
    assert f"hf download someone/model policy.pt vq.pt --revision {COMMIT} --local-dir mine" in message
    assert message.endswith(f"copy the files to {cache / 'weights' / 'mine'}")


def test_an_unreachable_address_gets_one_line(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    from huggingface_hub import constants

    file = net(url="http://127.0.0.1:9/net.pt")
    with pytest.raises(UserError, match=r"cannot get http://127\.0\.0\.1:9/net\.pt \(") as caught:
        fetch_files([file])
    assert "\n" not in str(caught.value)
    assert (
        f"curl -fL -o net.pt http://127.0.0.1:9/net.pt; then copy it to {file.expected}" in caught.value.fix
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        fetch_files([file])


def test_sizes_read_as_on_the_hub() -> None:
    sizes = [None, 12, 443_736_709, 12_386_725_354]
    assert [download.human_size(size) for size in sizes] == ["size unknown", "12 bytes", "444 MB", "12.4 GB"]


def test_docs_list_every_asset_as_its_card_says() -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluators" / "assets.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [table_row(name, REGISTRY.asset(name)) for name in REGISTRY.names("assets")]


def table_row(name: str, card: AssetCard) -> str:
    source = f"hub, `{card.repo}`" if card.repo else "shipped" if card.shipped else "bring your own"
    if card.url:
        source = f"<{card.url}>"
    first = [names.split("|")[0] for names in card.files]
    file = f"`{card.file}`" if card.file != FOLDER else f"folder: {', '.join(first)}"
    size = download.human_size(card.size) if card.size else "–"
    cells = (f"`{name}`", card.what, file, size, "yes" if card.sha256 else "no", card.licence, source)
    return f"| {' | '.join(cells)} |"
