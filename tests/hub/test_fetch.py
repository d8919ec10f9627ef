"""Downloading: against a local server with the real hub client, and offline."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from alignbench.errors import EXIT_FAILED, EXIT_NOT_RUNNABLE, RunFailed, UserError
from alignbench.files import digest_of, lock_of, read_json
from alignbench.hub.fetch import Fetched, fetch_files
from alignbench.hub.locate import FOLDER, FileStatus, locate_asset
from alignbench.hub.transfer import ask, human_size
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import AssetCard
from alignbench.registry.schema import WeightFile
from tests.hub.conftest import COMMIT, CONTENT, SHA256, folder_card, net, policy, put, weight_file, weights

Make = Callable[..., FileStatus]


@pytest.fixture(params=["hub", "address"])
def make(request: pytest.FixtureRequest, server: SimpleNamespace) -> Make:
    """A weight file of the hub, or an asset at a plain address."""
    return policy if request.param == "hub" else functools.partial(net, url=f"{server.root}/net.pt")


def ranges(server: SimpleNamespace) -> list[str | None]:
    return [request.range for request in server.requests if request.method == "GET"]


def refused(*files: FileStatus) -> UserError:
    with pytest.raises(UserError) as caught:
        fetch_files(files)
    assert caught.value.exit_code == EXIT_NOT_RUNNABLE and "\n" not in str(caught.value)
    return caught.value


# --- what is brought ------------------------------------------------------------------------------


def test_a_download_is_checked_and_not_repeated(server: SimpleNamespace, make: Make) -> None:
    file, lines = make(size=len(CONTENT), sha256=SHA256), list[str]()
    assert fetch_files([file], say=lines.append) == [Fetched(file.name, file.expected, "downloaded", SHA256)]
    assert file.expected.read_bytes() == CONTENT
    assert list(file.expected.parent.iterdir()) == [file.expected], "nothing is left beside it"
    address = file.card.url or f"someone/model/policy.pt @ {COMMIT[:12]}"
    assert f": licence MIT, 10.2 kB\n  from {address}\n  to   {file.expected}" in lines[0]
    server.requests.clear()
    assert fetch_files([make(sha256=SHA256)], say=lines.append)[0].action == "present"
    assert f"here: {file.expected}" in lines[-2] and not server.requests


def test_a_plain_address_may_lead_elsewhere_and_gets_no_token(server: SimpleNamespace) -> None:
    assert fetch_files([net(url=f"{server.root}/moved/net.pt")])[0].sha256 == SHA256
    assert {request.path for request in server.requests} == {"/moved/net.pt", "/net.pt"}
    assert {request.token for request in server.requests} == {None}


def test_data_sets_and_folders_of_the_hub(server: SimpleNamespace, cache: Path) -> None:
    prompts = net(what="prompts", file="a b.csv", repo="someone/list", revision=COMMIT, kind="dataset")
    assert fetch_files([prompts])[0].path == cache / "assets" / "net" / "a b.csv"
    assert all(request.path.startswith("/datasets/someone/list/") for request in server.requests)
    server.requests.clear()
    put(cache / "assets" / "net" / "a.json", b"{}")
    (done,) = fetch_files([locate_asset("net", folder_card())])
    assert (done.path, done.action) == (cache / "assets" / "net", "downloaded")
    assert sorted(path.name for path in done.path.iterdir()) == ["a b.csv", "a.json", "w.st"]
    names = {request.path.rpartition("/")[2] for request in server.requests}
    assert names == {"w.st"}, "the first of two forms"


INDEX = "w.st.index.json"


def index_of(*names: str) -> bytes:
    return json.dumps({"weight_map": {str(place): name for place, name in enumerate(names)}}).encode()


def sharded(**changes: Any) -> FileStatus:
    return locate_asset("net", folder_card(files=["a.json", f"w.st|{INDEX}|w.bin"], **changes))


def test_shards_come_with_the_index_that_lists_them(server: SimpleNamespace, cache: Path) -> None:
    """The first form that the hub has is taken; a folder is whole once all that its index lists is there."""
    folder, parts = cache / "assets" / "net", ("w-1.st", "sub/w-2.st")
    server.files = {"a.json": b"{}", INDEX: index_of(*parts, parts[0]), "w.bin": b"old", "w-1.st": b"one"}
    what = refused(sharded()).what
    assert what.startswith(f"the hub refuses someone/net/sub/w-2.st @ {COMMIT}") and "404" in what
    assert not ranges(server)[2:], "nothing large moves before all that is listed was found"
    assert sharded().reason == f"{folder} lacks sub/w-2.st and w-1.st"
    server.files["sub/w-2.st"] = b"two"
    put(folder / f"w-1.st.{hashlib.sha256(b'one').hexdigest()[:16]}.partial", b"on")
    server.requests.clear()
    (done,) = fetch_files([sharded()])
    assert done.action == "downloaded" and sharded().path == folder == done.path
    assert ranges(server) == [None, "bytes=2-"], "continued, and nothing came twice"
    names = {"a.json": b"{}", INDEX: server.files[INDEX], "w-1.st": b"one", "sub/w-2.st": b"two"}
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == names
    assert done.sha256 == digest_of({name: hashlib.sha256(names[name]).hexdigest() for name in sorted(names)})


@pytest.mark.parametrize(
    "content", [b"[]", index_of(), index_of("../w.st"), index_of("/w.st"), b"[" * 10**5, index_of("a\x00")]
)
def test_an_index_leads_nowhere_else(server: SimpleNamespace, cache: Path, content: bytes) -> None:
    server.files = {"a.json": b"{}", INDEX: content, "w.st": b""}
    for _ in range(2):  # as it comes, and as it lies there
        assert f"{INDEX} is not an index of weight files" in refused(sharded()).what
        assert sharded().reason.endswith(f"net lacks a whole {INDEX}")
    assert sorted(path.name for path in (cache / "assets").rglob("*") if path.is_file()) == ["a.json", INDEX]


def test_files_without_a_public_source_are_reported(server: SimpleNamespace) -> None:
    files = weights(weight_file(repo="", path="own.pt"), weight_file(role="tokenizer", path="vq.pt"))
    lines = list[str]()
    done = fetch_files([*files.values(), net(licence="")], say=lines.append)
    assert [item.name for item in done] == ["policy", "tokenizer", "net"]
    assert [item.action for item in done] == ["bring your own", "downloaded", "bring your own"]
    assert "licence not stated, size unknown\n  from no public source" in lines[2]
    for option, name in (("model.policy", "own.pt"), ("assets.net", "net.pt")):
        assert any(name in line and f"--set {option}=PATH" in line for line in lines)


def test_dry_run_touches_neither_network_nor_disk(server: SimpleNamespace, cache: Path, make: Make) -> None:
    file, lines = make(size=10), list[str]()
    (done,) = fetch_files([file], dry_run=True, say=lines.append)
    assert done == Fetched(file.name, file.expected, "would download", None)
    assert not server.requests and not cache.exists() and "10 bytes" in lines[0]


# --- what is kept, and what is refused ------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "fix"),
    [
        (ConnectionResetError("reset by peer"), "ConnectionResetError: reset by peer", "run the same"),
        (OSError(28, "No space left on device"), "no space left on the disk", "free some space and "),
        (OSError(122, "Disk quota exceeded"), "no space left on the disk", "free some space and "),
    ],
)
def test_a_broken_transfer_is_continued(
    server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, error: OSError, message: str, fix: str
) -> None:
    def breaks(url: str, stream: Any, **options: Any) -> None:
        stream.write(CONTENT[:4000])
        raise error

    file = policy(sha256=SHA256)
    with monkeypatch.context() as patch, pytest.raises(RunFailed) as caught:
        patch.setattr("huggingface_hub.file_download.http_get", breaks)
        fetch_files([file])
    assert caught.value.what == f"policy.pt: {message}; 4000 of 10240 bytes are kept"
    assert caught.value.fix.startswith(fix)
    assert caught.value.exit_code == EXIT_FAILED and not file.expected.exists()
    assert fetch_files([file])[0].sha256 == SHA256
    assert ranges(server) == ["bytes=4000-"]


def test_a_part_is_continued_if_it_is_of_this_version(server: SimpleNamespace, make: Make) -> None:
    file = make()
    put(file.expected.with_name(f"{file.expected.name}.{'0' * 16}.partial"), b"something else")
    (transfer,) = ask([file])
    put(transfer.partial, CONTENT[:100])
    fetch_files([file])
    assert ranges(server) == ["bytes=100-"] and file.expected.read_bytes() == CONTENT


def test_two_downloads_of_one_file_do_not_mix(server: SimpleNamespace, make: Make) -> None:
    """Both would append to the same part, and a file of double length would get the final name."""
    file = make()
    with lock_of(file.expected).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another process is downloading it" in refused(file).what
    fetch_files([file])
    assert file.expected.read_bytes() == CONTENT


def test_no_card_may_lead_out_of_its_folder() -> None:
    for path in ("../x", "a/../../x", "/etc/x", "~/x", "a\\..\\x"):
        with pytest.raises(ValidationError, match="leads out of its folder"):
            AssetCard(title="t", what="network", file=path)
        with pytest.raises(ValidationError, match="leads out of its folder"):
            WeightFile(role="policy", path=path)


def test_a_damaged_transfer_never_gets_the_final_name(server: SimpleNamespace) -> None:
    file = policy()
    partial = put(file.expected.with_name(f"policy.pt.{SHA256[:16]}.partial"), b"?" * 5000)
    damaged = hashlib.sha256(b"?" * 5000 + CONTENT[5000:]).hexdigest()
    error = refused(file)
    assert error.what == f"{partial} has SHA-256 {damaged}, the hub says {SHA256}"
    assert f"delete {partial} and fetch it again" in error.fix and not file.expected.exists()


@pytest.mark.parametrize("arrived", [0, 5000])
def test_a_file_that_lies_in_git_is_held_against_its_name_there(
    server: SimpleNamespace, arrived: int
) -> None:
    """Its size alone would let other bytes pass."""
    server.etag = "c24b5240932db6bddd91a9aecd36e95ffb2e8f0e"  # `git hash-object` of a file with CONTENT
    file = net(repo="someone/net", revision=COMMIT)
    partial = put(file.expected.with_name(f"net.pt.{server.etag[:16]}.partial"), b"?" * arrived)
    if arrived:
        error = refused(file)
        assert error.what.startswith(f"{partial} is git blob ") and error.what.endswith(f"says {server.etag}")
        assert error.fix == f"delete {partial} and fetch it again" and not file.expected.exists()
        partial.unlink()
    assert fetch_files([file])[0].sha256 == SHA256 and file.expected.read_bytes() == CONTENT


def test_a_wrong_digest_is_found_where_the_server_names_none(server: SimpleNamespace, make: Make) -> None:
    server.etag = "version-1"
    file = make(sha256="0" * 64)
    assert f"has SHA-256 {SHA256}, its card says {'0' * 64}" in refused(file).what
    assert not file.expected.exists()


def test_another_file_is_refused_before_the_download(server: SimpleNamespace, make: Make) -> None:
    error = refused(make(size=5))
    assert "not the file its card means: it has 10240 bytes" in error.what and "wanted are 5" in error.what
    assert error.fix.endswith("=PATH with a copy you trust, or update the card")
    assert f"with SHA-256 {SHA256}, wanted are any with {'0' * 64}" in refused(policy(sha256="0" * 64)).what
    assert {request.method for request in server.requests} == {"HEAD"}


def test_the_first_digest_is_recorded_and_compared_with_the_offer(server: Any, cache: Path) -> None:
    server.etag = "version-1"
    fetch_files([policy()])
    record = read_json(cache / "weights" / "digests.json")
    assert record == {f"someone/model@{COMMIT}/policy.pt": SHA256}
    policy().expected.unlink()
    server.etag = "1" * 64
    assert f"wanted are any with {SHA256}" in refused(policy()).what


def test_a_wrong_file_on_disk_stops_everything_and_is_kept(server: SimpleNamespace, make: Make) -> None:
    mine = put(make().expected, b"mine")
    error = refused(net(file="other.pt", url=f"{server.root}/net.pt"), make(size=9))
    assert "4 bytes" in error.what and mine.read_bytes() == b"mine" and not server.requests
    assert "reinstall" in refused(policy(path="weights/absent.safetensors", repo="", shipped=True)).fix


def test_too_little_room(server: Any, tmp_path: Path, monkeypatch: Any, cache: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_239))
    error = refused(policy())
    assert "10.2 kB" in error.what and "ALIGNBENCH_CACHE" in error.fix and not ranges(server)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_240))
    assert fetch_files([policy()])[0].action == "downloaded"
    monkeypatch.setenv("ALIGNBENCH_CACHE", str(put(tmp_path / "occupied", b"a file")))
    assert f"cannot create {tmp_path / 'occupied'}" in refused(policy()).what


# --- no network, no such file ---------------------------------------------------------------------


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_one_line_says_how_to_get_the_files(
    monkeypatch: pytest.MonkeyPatch, cache: Path, offline: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda *_, **__: "http://127.0.0.1:9/nothing")
    files = weights(weight_file(), weight_file(role="tokenizer", path="vq.pt"))
    file = net(url="http://127.0.0.1:9/net.pt")
    hub, plain = refused(*files.values()), refused(file)
    assert hub.what.startswith("cannot reach the hub for someone/model/policy.pt, someone/model/vq.pt (")
    assert f"hf download someone/model policy.pt vq.pt --revision {COMMIT} --local-dir mine" in hub.fix
    assert hub.fix.endswith(f"copy the files to {cache / 'weights' / 'mine'}")
    assert plain.what.startswith("cannot get http://127.0.0.1:9/net.pt (")
    assert "curl -fL -o net.pt http://127.0.0.1:9/net.pt; then copy it to" in plain.fix
    assert plain.fix.endswith(str(file.expected))
    assert f"hf download someone/net --revision {COMMIT} --local-dir net" in refused(sharded()).fix
    for error in (hub, plain):
        assert ("(HF_HUB_OFFLINE is set)" in error.what) is offline


def test_a_file_that_is_not_there(server: SimpleNamespace) -> None:
    server.missing = True
    assert "the hub refuses someone/model/policy.pt" in refused(policy()).what
    missing = refused(locate_asset("net", folder_card(files=["w.st|w.bin"])))
    assert "the hub refuses someone/net/w.st or w.bin" in missing.what
    assert "404" in refused(net(url=f"{server.root}/net.pt")).what


def test_a_file_behind_a_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError

    def refuse(url: str) -> None:
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    assert refused(policy()).what == "someone/model asks you to accept its licence first"


def test_a_server_that_does_not_say_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = SimpleNamespace(size=None, etag="1", headers={}, raise_for_status=lambda: None)
    session = SimpleNamespace(request=lambda *_, **__: silent)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url: silent)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: session)
    for file in (policy(), net(url="http://somewhere/net.pt")):
        assert "not say" in refused(file).what and refused(file).fix == "try again later"


# --- sizes and documentation ----------------------------------------------------------------------


def test_sizes_read_as_on_the_hub() -> None:
    sizes = [None, 12, 443_736_709, 12_386_725_354]
    assert [human_size(size) for size in sizes] == ["size unknown", "12 bytes", "444 MB", "12.4 GB"]


def test_docs_list_every_asset_as_its_card_says() -> None:
    registry = Registry.default()
    text = (Path(__file__).parents[2] / "docs" / "evaluators" / "assets.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [table_row(name, registry.asset(name)) for name in registry.names("assets")]


def table_row(name: str, card: AssetCard) -> str:
    source = f"hub, `{card.repo}`" if card.repo else "shipped" if card.shipped else "bring your own"
    if card.url:
        source = f"<{card.url}>"
    first = [names.split("|")[0] for names in card.files]
    file = f"`{card.file}`" if card.file != FOLDER else f"folder: {', '.join(first)}"
    size = human_size(card.size) if card.size else "–"
    cells = (f"`{name}`", card.what, file, size, "yes" if card.sha256 else "no", card.licence, source)
    return f"| {' | '.join(cells)} |"
