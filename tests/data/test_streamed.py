"""Streams of the hub, from a server on this machine that stands for it: what is asked, taken, kept and said.

Every picture has the colour (shard, row), so that a caption can be held against its picture.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignbench.config.plan import make_plan
from alignbench.config.settings import resolve
from alignbench.data.walk import numbered_names
from alignbench.errors import UserError
from alignbench.registry.lookup import Registry
from tests.helpers.captioned_images import encoded
from tests.helpers.data_sets import opened, reasons, refused

datasets = pytest.importorskip("datasets")
SHARDS, ROWS = 4, 6
ROOT = Path(__file__).parents[2]
"""Not of conftest, which forbids any server, where a process of its own asks one."""
COMMITS = ("a" * 40, "b" * 40)


def colour(shard: int, row: int) -> bytes:
    return encoded(np.full((8, 8, 3), (40 * shard, 40 * row, 7), dtype=np.uint8))


def parquet(shard: int) -> bytes:
    """Row 4 of shard 3 holds no picture, row 1 of shard 2 no caption; three rows are a row group."""
    cells = [{"bytes": colour(shard, row), "path": None} for row in range(ROWS)]
    captions: list[str | None] = [f"{shard} {row}" for row in range(ROWS)]
    if shard == 3:
        cells[4]["bytes"] = b"text"
    if shard == 2:
        captions[1] = None
    columns = {"image": cells, "caption": captions, "other": ["x"] * ROWS}
    file = io.BytesIO()
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).to_parquet(file, batch_size=3)
    return file.getvalue()


def tar(shard: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as written:
        for row in range(ROWS):
            for ending, data in (("png", colour(shard, row)), ("txt", f"{shard} {row}".encode())):
                member = tarfile.TarInfo(f"{shard}{row}.{ending}")
                member.size = len(data)
                written.addfile(member, io.BytesIO(data))
    return file.getvalue()


class Hub(http.server.BaseHTTPRequestHandler):
    """One data set, `owner/name`: files in one folder, at any commit."""

    files: dict[str, bytes]
    asked: list[str]
    commit: str
    broken: dict[str, int]
    """{file: the status that asking for it has}."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.asked.append(path)
        head, _, rest = path.partition("/owner/name")
        name = rest.rpartition("/")[2]
        if head == "/api/datasets" and (not rest or rest.startswith("/revision/")):
            self._json({"id": "owner/name", "sha": rest.rpartition("/")[2] or self.commit, "siblings": []})
        elif head == "/api/datasets" and rest.startswith("/paths-info/"):
            self._json([self._entry(file) for file in self.files if file in body.decode()])
        elif head == "/api/datasets" and rest.startswith("/tree/") and rest.count("/") == 2:
            self._json([self._entry(file) for file in self.files])
        elif name in self.broken:
            self._send(self.broken[name])
        elif rest.startswith("/resolve/") and name in self.files:
            self._file(self.files[name], rest.split("/")[2])
        else:
            self._send(404, headers={"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_POST = do_GET

    def _entry(self, name: str) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": "0" * 40}

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _file(self, data: bytes, commit: str) -> None:
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}
        if not (asked := self.headers.get("Range")):
            return self._send(200, data, headers)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        piece = data[int(first) : int(last or len(data)) + 1]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(piece) - 1}/{len(data)}"
        return self._send(206, piece, headers)

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


Answers = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[type[Hub], subprocess.Popen[str]]]:
    """The hub, and a process that opens data sets of it: its address is read when a process starts."""
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True).start()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment["HF_ENDPOINT"] = f"http://127.0.0.1:{web.server_port}"
    environment["HF_HOME"] = environment["ALIGNBENCH_CACHE"] = str(tmp_path_factory.mktemp("hf"))
    words = [sys.executable, "-m", "tests.data.test_streamed"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, **pipes) as child:
        yield Hub, child
        assert child.stdin is not None
        child.stdin.close()
    web.shutdown()
    web.server_close()


@pytest.fixture
def hub(served: tuple[type[Hub], Any]) -> type[Hub]:
    Hub.files = {f"train-{shard}.parquet": parquet(shard) for shard in range(SHARDS)}
    Hub.files |= {f"{shard:05d}.tar": tar(shard) for shard in range(SHARDS)}
    Hub.asked, Hub.commit, Hub.broken = [], COMMITS[0], {}
    return Hub


@pytest.fixture
def answers(hub: type[Hub], served: tuple[Any, subprocess.Popen[str]], tmp_path: Path) -> Answers:
    """Open data sets, each with these options, in the process that knows the hub."""

    def call(*cases: dict[str, Any]) -> list[dict[str, Any]]:
        hub.asked.clear()
        asked, answered = served[1].stdin, served[1].stdout
        assert asked is not None and answered is not None
        asked.write(json.dumps([str(tmp_path), cases]) + "\n")
        asked.flush()
        found: list[dict[str, Any]] = json.loads(answered.readline())
        return found

    return call


def serve_answers() -> None:
    """What that process does: say what each data set is, until nothing more is asked."""
    time.sleep = lambda _: None  # the package waits long before it gives a server up
    datasets.config.STREAMING_OPEN_MAX_RETRIES = datasets.config.STREAMING_READ_MAX_RETRIES = 1
    for line in sys.stdin:
        folder, cases = json.loads(line)
        found = [answer(Path(folder), case) for case in cases]
        sys.stdout.write(f"{json.dumps(found)}\n")
        sys.stdout.flush()


def answer(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    options = {"card": "text-hub", "path": "owner/name", "files": "*.parquet", "cache": "one", **case}
    try:
        dataset = opened(options.pop("card"), cache=folder / options.pop("cache"), **options)
    except UserError as error:
        return {"error": str(error), "status": error.exit_code}
    images = [] if hasattr(dataset, "prompts") else [dataset.load(at)[0] for at in range(len(dataset))]
    return {
        "captions": list(dataset.captions),
        "colours": [f"{image[0, 0, 0] // 40} {image[0, 0, 1] // 40}" for image in images],
        "digest": dataset.digest,
        "left out": reasons(dataset),
    }


def data_files(hub: type[Hub]) -> set[str]:
    return {path.rpartition("/")[2] for path in hub.asked if path.endswith((".parquet", ".tar"))}


def test_a_limit_acts_before_anything_else_is_downloaded(hub: type[Hub], answers: Answers) -> None:
    seven, four, elsewhere = answers({"limit": 7}, {"limit": 4}, {"limit": 7, "cache": "two"})
    assert seven["colours"] == seven["captions"], "each caption belongs to its picture"
    whole, part = (int(seven["captions"][at].split()[0]) for at in (0, -1))
    expected = [(whole, row) for row in range(ROWS)] + [(part, 0)]
    lost = [f"{shard} {row}" for shard, row in expected if (shard, row) in ((3, 4), (2, 1))]
    assert seven["captions"] == [f"{shard} {row}" for shard, row in expected if f"{shard} {row}" not in lost]
    # The package reads the columns' types from the first file.
    assert data_files(hub) == {"train-0.parquet", f"train-{whole}.parquet", f"train-{part}.parquet"}
    assert four["captions"] == [caption for caption in seven["captions"] if int(caption[2:]) < 4][:-1]
    assert elsewhere["digest"] == seven["digest"] != four["digest"]
    everything, another = answers({"limit": 99}, {"limit": 99, "subset_seed": 1})
    assert f"{COMMITS[0]}/train-{whole}.parquet" not in " ".join(hub.asked), "kept from before"
    assert everything["left out"] == {
        "shard 3 row 4": "not a PNG, JPEG, WebP or BMP image", "shard 2 row 1": "no caption",
    }  # fmt: skip
    assert len(everything["captions"]) == SHARDS * ROWS - 2
    assert everything["captions"] != another["captions"]
    assert sorted(everything["captions"]) == sorted(another["captions"])


def test_what_is_kept_is_not_asked_for_again(hub: type[Hub], answers: Answers) -> None:
    (before,) = answers({"limit": 7})
    hub.commit = COMMITS[1]
    hub.files |= {f"train-{shard}.parquet": b"other" for shard in range(SHARDS)}
    (after,) = answers({"limit": 7})
    assert (
        "captions" in after and after == before and not [path for path in hub.asked if "/owner/name" in path]
    )


def test_a_server_that_dies_is_one_line_and_a_run_goes_on_after_it(hub: type[Hub], answers: Answers) -> None:
    (undisturbed,) = answers({"limit": 20, "cache": "undisturbed"})
    first, second = list(dict.fromkeys(caption[0] for caption in undisturbed["captions"]))[:2]
    hub.broken[f"train-{second}.parquet"] = 503
    (broken,) = answers({"limit": 20})
    assert broken["status"] == 1 and len(broken["error"].splitlines()) == 1
    assert f"the stream broke off at row 0 of shard {second}: Server error '503" in broken["error"]
    assert "run the same command again" in broken["error"]
    hub.broken.clear()
    hub.commit = COMMITS[1]
    (resumed,) = answers({"limit": 20})
    assert resumed == undisturbed
    assert f"train-{first}.parquet" not in data_files(hub)
    assert not [path for path in hub.asked if COMMITS[1] in path], "of the commit that it began with"


def test_shards_by_name_and_captions_alone(hub: type[Hub], answers: Answers) -> None:
    tars, absent, words = answers(
        {"files": "{00001..00002}.tar", "image_column": "png", "caption_column": "txt", "limit": 99},
        {"files": "{00002..00004}.tar", "image_column": "png", "caption_column": "txt", "limit": 1},
        {"card": "prompts-hub", "limit": 7, "cache": "words"},
    )
    assert tars["colours"] == tars["captions"]
    assert sorted(tars["captions"]) == [f"{shard} {row}" for shard in (1, 2) for row in range(ROWS)]
    assert "00003.tar" not in data_files(hub)
    assert absent["status"] == 2 and "00004.tar" in absent["error"]
    assert len(words["captions"]) + len(words["left out"]) == 7


# --- without a hub --------------------------------------------------------------------------------


def test_a_folder_of_data_files_is_read_as_far_as_needed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for shard in (0, 1):
        (source / f"train-{shard}.parquet").write_bytes(parquet(shard))
    dataset = opened("text-hub", path=str(source), limit=4, cache=tmp_path / "cache")
    shard = dataset.captions[0][0]
    assert list(dataset.captions) == [f"{shard} {row}" for row in range(4)]
    (source / f"train-{shard}.parquet").write_bytes(parquet(2))
    changed = opened("text-hub", path=str(source), limit=4, cache=tmp_path / "cache")
    assert list(changed.captions) == ["2 0", "2 2", "2 3"], "a file that changed is noticed"
    message = refused(opened, "text-hub", path=str(source), limit=4, image_column="img", cache=tmp_path / "c")
    assert "--set data.image_column=image" in message and not list((tmp_path / "c").glob("*"))


def test_tar_shards_by_name(tmp_path: Path) -> None:
    for shard in range(3):
        (tmp_path / f"{shard:05d}.tar").write_bytes(tar(shard))
    (tmp_path / "00001.tar").write_bytes(b"never read")
    dataset = opened("text-images", "all", root=str(tmp_path), files="0000[02].tar", cache=tmp_path / "cache")
    assert {caption[0] for caption in dataset.captions} == {"0", "2"} and not dataset.skipped
    message = refused(opened, "text-images", "all", root=str(tmp_path), files="{00000..00073}.tar")
    assert "71 of 74 files are not in" in message and "00003.tar" in message
    assert numbered_names("{8..11}.tar") == ["8.tar", "9.tar", "10.tar", "11.tar"]


def test_a_plan_says_which_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry.default()
    config = resolve(registry, method="vapi", model="janus-pro-1b")

    def lacking() -> list[str]:
        problems = make_plan(registry, config, evaluates=False).problems
        return [str(problem) for problem in problems if problem.where == "data text-hub"]

    assert not lacking()
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert lacking() == ["data text-hub: needs datasets → pip install 'alignbench[data]'"]


if __name__ == "__main__":
    serve_answers()
