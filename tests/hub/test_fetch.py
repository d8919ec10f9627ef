"""Finding and downloading weights: against a local server with the real hub client, and offline."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignbench.errors import EXIT_FAILED, EXIT_NOT_RUNNABLE, RunFailed, UserError
from alignbench.files import package_file
from alignbench.hub import download, weights
from alignbench.registry.lookup import Registry
from alignbench.registry.schema import ModelCard, WeightFile

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep both caches inside the test's folder, and let the hub's client talk to this machine."""
    from huggingface_hub import constants

    monkeypatch.setenv("ALIGNBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


def make_card(*files: WeightFile) -> ModelCard:
    return Registry.default().model("llamagen-b").model_copy(update={"files": list(files)})


def hub_file(**changes: Any) -> WeightFile:
    facts: dict[str, Any] = {
        "role": "policy",
        "repo": "someone/model",
        "revision": COMMIT,
        "path": "policy.pt",
    }
    return WeightFile(**facts | changes)


# --- locate ---------------------------------------------------------------------------------------


def test_cache_root_is_the_variable_or_the_home(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert weights.cache_root() == cache
    monkeypatch.delenv("ALIGNBENCH_CACHE")
    assert weights.cache_root() == Path.home() / ".cache" / "alignbench"


def test_missing_file_names_its_place_and_the_command(cache: Path) -> None:
    status = weights.locate("mine", make_card(hub_file()))["policy"]
    assert (status.path, status.ok, status.size_ok) == (None, False, False)
    assert status.expected == cache / "weights" / "mine" / "policy.pt"
    assert str(status.expected.parent) in status.reason
    assert status.fix == "alignbench fetch mine, or --set model.policy=PATH"


def test_file_without_release_is_brought(cache: Path) -> None:
    status = weights.locate("mine", make_card(hub_file(repo="")))["policy"]
    assert "no public release" in status.reason
    assert "fetch" not in status.fix and "--set model.policy=PATH" in status.fix


@pytest.mark.parametrize(("wanted", "ok"), [(len(CONTENT), True), (len(CONTENT) + 1, False), (None, True)])
def test_size_decides(cache: Path, wanted: int | None, ok: bool) -> None:
    place(cache / "weights" / "mine" / "policy.pt", CONTENT)
    status = weights.locate("mine", make_card(hub_file(size=wanted)))["policy"]
    assert status.ok is ok
    if not ok:
        assert f"{len(CONTENT)} bytes" in status.reason and str(wanted) in status.reason
        assert "delete it" in status.fix


def test_empty_file_is_not_ok(cache: Path) -> None:
    place(cache / "weights" / "mine" / "policy.pt", b"")
    status = weights.locate("mine", make_card(hub_file()))["policy"]
    assert not status.ok and "0 bytes" in status.reason


def test_given_path_wins_and_never_falls_back(cache: Path, tmp_path: Path) -> None:
    place(cache / "weights" / "mine" / "policy.pt", CONTENT)
    mine = place(tmp_path / "mine.safetensors", b"x")
    card = make_card(hub_file(size=len(CONTENT)))
    assert weights.locate("mine", card, {"policy": str(mine)})["policy"].path == mine
    assert (
        weights.locate("mine", card, {"policy": ""})["policy"].path
        == cache / "weights" / "mine" / "policy.pt"
    )

    absent = weights.locate("mine", card, {"policy": str(tmp_path / "absent.pt")})["policy"]
    assert absent.path is None and "no such file" in absent.reason and "absent.pt" in absent.reason
    folder = weights.locate("mine", card, {"policy": str(tmp_path)})["policy"]
    assert not folder.ok and "a folder" in folder.reason


def test_shards_have_their_own_keys_and_one_path_replaces_them(tmp_path: Path) -> None:
    card = make_card(hub_file(path="a.bin"), hub_file(path="b.bin"), hub_file(role="tokenizer", path="t.bin"))
    assert [(key, status.expected.name) for key, status in weights.locate("mine", card).items()] == [
        ("policy", "a.bin"),
        ("policy.2", "b.bin"),
        ("tokenizer", "t.bin"),
    ]
    mine = place(tmp_path / "whole.safetensors", b"x")
    statuses = weights.locate("mine", card, {"policy": str(mine)})
    assert set(statuses) == {"policy", "tokenizer"} and statuses["policy"].path == mine


def test_shipped_file_lies_in_the_package() -> None:
    here = WeightFile(role="policy", path="errors.py", shipped=True)
    absent = WeightFile(role="tokenizer", path="weights/absent.safetensors", shipped=True)
    statuses = weights.locate("mine", make_card(here, absent))
    assert statuses["policy"].path == package_file("errors.py")
    assert not statuses["tokenizer"].ok and "reinstall" in statuses["tokenizer"].fix
    with pytest.raises(UserError, match="reinstall"):
        weights.fetch("mine", make_card(absent))


@pytest.mark.parametrize("revision", [COMMIT, "main"])
def test_file_in_the_hugging_face_cache_is_used(tmp_path: Path, revision: str) -> None:
    repo = tmp_path / "hf" / "models--someone--model"
    found = place(repo / "snapshots" / COMMIT / "policy.pt", CONTENT)
    place(repo / "refs" / "main", COMMIT.encode())
    assert weights.locate("mine", make_card(hub_file(revision=revision)))["policy"].path == found
    other = hub_file(revision="f" * 40)
    assert weights.locate("mine", make_card(other))["policy"].path is None


def test_looking_loads_no_heavy_module(tmp_path: Path) -> None:
    program = """
import sys
from alignbench import hub
from alignbench.registry.registry import Registry
assert hub.locate("llamagen-xxl", Registry.default().model("llamagen-xxl"))["policy"].path is None
heavy = {"torch", "httpx", "httpx2", "requests", "huggingface_hub.file_download"} & set(sys.modules)
assert not heavy, heavy
"""
    run_python(program, tmp_path)


# --- fetch ----------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers like the hub: HEAD with size and version, GET with ranges."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        state: Any = self.server.state  # type: ignore[attr-defined]
        given = self.headers.get("Range")
        state.requests.append((self.command, given))
        if state.missing:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(given.removeprefix("bytes=").partition("-")[0]) if given else 0
        self.send_response(206 if given else 200)
        if given:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.send_header("ETag", f'"{state.etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(CONTENT[start:])

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A hub on this machine; `requests` lists (method, range), `etag` is the version it names."""
    import huggingface_hub

    state = SimpleNamespace(requests=[], etag=SHA256, missing=False)
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.state = state  # type: ignore[attr-defined]
    thread = threading.Thread(target=web.serve_forever, daemon=True)
    thread.start()
    root = f"http://127.0.0.1:{web.server_port}"
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_url",
        lambda repo, path, *, revision, repo_type: f"{root}/{repo}/{revision}/{path}",
    )
    yield state
    web.shutdown()
    web.server_close()


def test_download_is_checked_and_not_repeated(server: SimpleNamespace, cache: Path) -> None:
    card = make_card(hub_file(size=len(CONTENT), sha256=SHA256))
    lines: list[str] = []
    target = cache / "weights" / "mine" / "policy.pt"
    assert weights.fetch("mine", card, say=lines.append) == [
        weights.Fetched("policy", target, "downloaded", len(CONTENT), SHA256)
    ]
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["policy.pt"]
    assert "licence MIT" in lines[0]
    assert "someone/model/policy.pt" in lines[1] and "10.2 kB" in lines[1] and str(target) in lines[1]

    server.requests.clear()
    assert weights.fetch("mine", card)[0].action == "present"
    assert server.requests == []


def test_broken_transfer_is_continued(
    server: SimpleNamespace, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import file_download

    def breaks(url: str, stream: Any, **options: Any) -> None:
        stream.write(CONTENT[:4000])
        raise ConnectionResetError("connection reset by peer")

    card = make_card(hub_file(sha256=SHA256))
    target = cache / "weights" / "mine" / "policy.pt"
    with (
        monkeypatch.context() as patch,
        pytest.raises(RunFailed, match=r"4000 of 10240 bytes are kept") as caught,
    ):
        patch.setattr(file_download, "http_get", breaks)
        weights.fetch("mine", card)
    assert caught.value.exit_code == EXIT_FAILED
    assert "same command again" in caught.value.fix
    assert not target.exists()

    server.requests.clear()
    weights.fetch("mine", card)
    assert [given for method, given in server.requests if method == "GET"] == ["bytes=4000-"]
    assert target.read_bytes() == CONTENT


def test_part_of_another_version_is_not_continued(server: SimpleNamespace, cache: Path) -> None:
    place(cache / "weights" / "mine" / f"policy.pt.{'0' * 16}.partial", b"something else")
    weights.fetch("mine", make_card(hub_file()))
    assert [given for method, given in server.requests if method == "GET"] == [None]
    assert (cache / "weights" / "mine" / "policy.pt").read_bytes() == CONTENT


def test_damaged_transfer_never_gets_the_final_name(server: SimpleNamespace, cache: Path) -> None:
    partial = place(cache / "weights" / "mine" / f"policy.pt.{SHA256[:16]}.partial", b"?" * 5000)
    with pytest.raises(UserError) as caught:
        weights.fetch("mine", make_card(hub_file()))
    damaged = hashlib.sha256(b"?" * 5000 + CONTENT[5000:]).hexdigest()
    assert damaged in caught.value.what and SHA256 in caught.value.what
    assert str(partial) in caught.value.fix and "delete" in caught.value.fix
    assert not partial.with_name("policy.pt").exists()


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"size": 5}])
def test_another_file_on_the_hub_is_refused_before_the_download(
    server: SimpleNamespace, change: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="not the file its card means") as caught:
        weights.fetch("mine", make_card(hub_file(**change)))
    assert SHA256 in caught.value.what and str(next(iter(change.values()))) in caught.value.what
    assert {method for method, _ in server.requests} == {"HEAD"}


def test_wrong_digest_is_found_where_the_hub_names_none(server: SimpleNamespace, cache: Path) -> None:
    server.etag = "version-1"
    with pytest.raises(UserError) as caught:
        weights.fetch("mine", make_card(hub_file(sha256="0" * 64)))
    assert SHA256 in caught.value.what and "0" * 64 in caught.value.what and "policy.pt" in caught.value.what
    assert not (cache / "weights" / "mine" / "policy.pt").exists()


def test_first_digest_is_recorded_and_checked_ever_after(server: SimpleNamespace, cache: Path) -> None:
    server.etag = "version-1"
    card = make_card(hub_file())
    weights.fetch("mine", card)
    recorded = json.loads((cache / "weights" / "digests.json").read_text())
    assert recorded == {f"someone/model@{COMMIT}/policy.pt": SHA256}

    target = cache / "weights" / "mine" / "policy.pt"
    target.write_bytes(CONTENT[:-1] + b"?")
    for check in (
        lambda: weights.fetch("mine", card),
        lambda: weights.verify(weights.locate("mine", card)["policy"]),
    ):
        with pytest.raises(UserError, match=r"digests\.json") as caught:
            check()
        assert SHA256 in caught.value.what and weights.file_sha256(target) in caught.value.what
        assert str(target) in caught.value.fix


def test_given_path_is_hashed_and_not_compared(tmp_path: Path) -> None:
    mine = place(tmp_path / "mine.pt", CONTENT)
    card = make_card(hub_file(sha256="0" * 64))
    assert weights.verify(weights.locate("mine", card, {"policy": str(mine)})["policy"]) == SHA256


def test_wrong_size_on_disk_stops_and_is_kept(server: SimpleNamespace, cache: Path) -> None:
    target = place(cache / "weights" / "mine" / "policy.pt", b"mine")
    with pytest.raises(UserError, match="4 bytes"):
        weights.fetch("mine", make_card(hub_file(size=len(CONTENT))))
    assert target.read_bytes() == b"mine" and server.requests == []


def test_too_little_room(server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_239))
    with pytest.raises(UserError, match=r"10\.2 kB") as caught:
        weights.fetch("mine", make_card(hub_file()))
    assert "ALIGNBENCH_CACHE" in caught.value.fix
    assert {method for method, _ in server.requests} == {"HEAD"}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_240))
    assert weights.fetch("mine", make_card(hub_file()))[0].action == "downloaded"


def test_full_disk_keeps_what_arrived(server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import file_download

    def fills_the_disk(url: str, stream: Any, **options: Any) -> None:
        stream.write(CONTENT[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", fills_the_disk)
    with pytest.raises(RunFailed, match=r"no space left .* 100 of 10240 bytes are kept → free some space"):
        weights.fetch("mine", make_card(hub_file()))


def test_unwritable_cache_is_named(
    server: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path / "occupied", b"a file")
    monkeypatch.setenv("ALIGNBENCH_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(UserError, match=r"cannot create .*occupied"):
        weights.fetch("mine", make_card(hub_file()))


def test_file_the_hub_does_not_have(server: SimpleNamespace) -> None:
    server.missing = True
    with pytest.raises(UserError, match=r"the hub refuses someone/model/policy\.pt"):
        weights.fetch("mine", make_card(hub_file()))


def test_file_without_release_is_reported_not_fetched(server: SimpleNamespace, cache: Path) -> None:
    lines: list[str] = []
    card = make_card(hub_file(repo="", path="own.pt"), hub_file(role="tokenizer", path="vq.pt"))
    assert [(item.role, item.action) for item in weights.fetch("mine", card, say=lines.append)] == [
        ("policy", "bring your own"),
        ("tokenizer", "downloaded"),
    ]
    assert any("own.pt" in line and "--set model.policy=PATH" in line for line in lines)


def test_dry_run_touches_neither_network_nor_disk(server: SimpleNamespace, cache: Path) -> None:
    lines: list[str] = []
    items = weights.fetch("mine", make_card(hub_file(size=10)), dry_run=True, say=lines.append)
    assert [(item.action, item.size, item.sha256) for item in items] == [("would download", 10, None)]
    assert server.requests == [] and not cache.exists()
    assert "10 bytes" in lines[1]


def test_unreachable_hub_gets_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def closed(repo: str, path: str, *, revision: str, repo_type: str) -> str:
        return "http://127.0.0.1:9/nothing"

    monkeypatch.setattr(huggingface_hub, "hf_hub_url", closed)
    check_offline_message(
        fetch_error("mine", make_card(hub_file(), hub_file(role="tokenizer", path="vq.pt"))), cache
    )


def test_offline_switch_gets_the_same_line_from_the_real_client(tmp_path: Path, cache: Path) -> None:
    program = f"""
from alignbench import hub
from alignbench.errors import UserError
from alignbench.registry.registry import Registry
from alignbench.registry.schema import WeightFile
files = [WeightFile(role=role, repo="someone/model", revision="{COMMIT}", path=path)
         for role, path in (("policy", "policy.pt"), ("tokenizer", "vq.pt"))]
card = Registry.default().model("llamagen-b").model_copy(update={{"files": files}})
try:
    hub.fetch("mine", card)
except UserError as error:
    print(error.exit_code, error, end="")
"""
    status, _, message = run_python(program, tmp_path, HF_HUB_OFFLINE="1").partition(" ")
    assert status == str(EXIT_NOT_RUNNABLE)
    check_offline_message(message, cache)


def check_offline_message(message: str, cache: Path) -> None:
    assert "\n" not in message and "https://" not in message
    assert "cannot reach the hub for someone/model/policy.pt, someone/model/vq.pt" in message
    assert f"hf download someone/model policy.pt vq.pt --revision {COMMIT} --local-dir mine" in message
    assert message.endswith(f"copy the files to {cache / 'weights' / 'mine'}")


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "size unknown"), (12, "12 bytes"), (443_736_709, "444 MB"), (12_386_725_354, "12.4 GB")],
)
def test_sizes_read_as_on_the_hub(size: int | None, text: str) -> None:
    assert download.human_size(size) == text


# --- helpers --------------------------------------------------------------------------------------


def place(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def fetch_error(model: str, card: ModelCard) -> str:
    with pytest.raises(UserError) as caught:
        weights.fetch(model, card)
    return str(caught.value)


def run_python(program: str, folder: Path, **variables: str) -> str:
    """Run a program in a fresh interpreter and return what it prints."""
    environment = {**os.environ, "HF_HOME": str(folder / "hf-home"), **variables}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
