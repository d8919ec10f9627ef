"""Caches inside the test's folder, a hub on this machine, and the cards and files that these tests share."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignbench.hub.locate import FileStatus, locate_asset, locate_weights
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import AssetCard
from alignbench.registry.schema import WeightFile

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def asset_card(**changes: Any) -> AssetCard:
    values = {"title": "Net", "licence": "MIT", "what": "network", "file": "net.pt"}
    return AssetCard.model_validate(values | changes)


def folder_card(**changes: Any) -> AssetCard:
    """A repository of two files, the second in one of two forms."""
    values = {"file": ".", "repo": "someone/net", "revision": COMMIT, "files": ["a.json", "w.st|w.bin"]}
    return asset_card(**values | changes)


def weight_file(**changes: Any) -> WeightFile:
    values = {"role": "policy", "repo": "someone/model", "revision": COMMIT, "path": "policy.pt"}
    return WeightFile.model_validate(values | changes)


def weights(*files: WeightFile, **overrides: str) -> dict[str, FileStatus]:
    """Locate weight files of a model named `mine`."""
    card = Registry.default().model("llamagen-b").model_copy(update={"files": list(files)})
    return locate_weights("mine", card, overrides)


def policy(**changes: Any) -> FileStatus:
    """Locate a weight file."""
    return weights(weight_file(**changes))["policy"]


def net(**changes: Any) -> FileStatus:
    """Locate an asset named `net`."""
    return locate_asset("net", asset_card(**changes))


def put(path: Path, content: bytes) -> Path:
    """Write a file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every cache inside the test's folder, and let the hub's client talk to this machine."""
    from huggingface_hub import constants

    monkeypatch.setenv("ALIGNBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers like the hub: HEAD with size and version, GET with ranges; /moved sends elsewhere."""

    def do_GET(self) -> None:
        state: Any = self.server.state  # type: ignore[attr-defined]
        part, token = self.headers.get("Range"), self.headers.get("Authorization")
        state.requests.append(SimpleNamespace(method=self.command, path=self.path, range=part, token=token))
        content, etag, found = CONTENT, state.etag, not state.missing
        if state.files is not None:
            content = state.files.get(self.path.partition(f"{COMMIT}/")[2], b"")
            etag, found = hashlib.sha256(content).hexdigest(), bool(content)
        start = int(part.removeprefix("bytes=").partition("-")[0]) if part else 0
        headers = {"Content-Length": str(len(content) - start), "X-Repo-Commit": COMMIT}
        headers |= {"ETag": f'"{etag}"'}
        if part:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        status = 206 if part else 200
        if not found:
            status, headers = 404, {"X-Error-Code": "EntryNotFound", "Content-Length": "0"}
        elif self.path.startswith("/moved"):
            status = 302
            headers = {"Location": f"http://localhost:{state.port}/net.pt", "Content-Length": "0"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET" and status < 300:
            self.wfile.write(content[start:])

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A web server on this machine, which the hub's client takes for the hub: `requests` is what was asked,
    `etag` the version it names; with `files`, {name: content} are all that is in its repositories."""
    import huggingface_hub

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    state = SimpleNamespace(requests=[], etag=SHA256, missing=False, files=None)
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.state = state  # type: ignore[attr-defined]
    state.port, state.root = web.server_port, f"http://127.0.0.1:{web.server_port}"
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_url",
        lambda repo, path, *, revision, repo_type: f"{state.root}/{repo_type}s/{repo}/{revision}/{path}",
    )
    yield state
    web.shutdown()
    web.server_close()
