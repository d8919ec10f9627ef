"""Files that evaluators read: finding them, knowing which bytes they are, bringing them."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignbench.cli import doctor, weights
from alignbench.errors import RunFailed, UserError
from alignbench.files import package_file
from alignbench.hub import assets, digests, download, fetch_assets
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import AssetCard
from tests.hub.test_fetch import COMMIT, CONTENT, SHA256, Handler, place

REGISTRY = Registry.default()


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


def make_card(**changes: Any) -> AssetCard:
    facts: dict[str, Any] = {"title": "Net", "licence": "MIT", "what": "network", "file": "net.pt"}
    return AssetCard(**facts | changes)


def hub_folder(**changes: Any) -> AssetCard:
    facts = {"file": ".", "repo": "someone/net", "revision": COMMIT, "files": ["a.json", "w.st|w.bin"]}
    return make_card(**facts | changes)


# --- locate ---------------------------------------------------------------------------------------


def test_missing_asset_names_its_place_and_the_command(cache: Path) -> None:
    status = assets.locate("net", make_card(url="http://somewhere/net.pt"))
    assert (status.ok, status.path) == (False, None)
    assert status.expected == cache / "assets" / "net" / "net.pt"
    assert status.reason == f"net.pt is not in {status.expected.parent}"
    assert status.fix == "alignbench fetch net, or --set assets.net=PATH"
    own = assets.locate("net", make_card())
    assert (
        "no public source" in own.fix and "alignbench fetch" not in own.fix and str(own.expected) in own.fix
    )
    with pytest.raises(UserError, match=r"asset 'net': net\.pt is not in .* → alignbench fetch net"):
        assets.verify("net", make_card(url="http://somewhere/net.pt"), status)


def test_places_are_looked_through_in_order(tmp_path: Path, cache: Path) -> None:
    card = make_card(
        repo="someone/net",
        revision=COMMIT,
        places=["$TORCH_HOME/hub/checkpoints/other-name.pt", "~/.cache/clip/net.pt"],
    )
    hub = place(tmp_path / "hf" / "models--someone--net" / "snapshots" / COMMIT / "net.pt", b"1")
    assert assets.locate("net", card).path == hub
    home = place(tmp_path / "home" / ".cache" / "clip" / "net.pt", b"2")
    assert assets.locate("net", card).path == home
    torch = place(tmp_path / "torch" / "hub" / "checkpoints" / "other-name.pt", b"3")
    assert assets.locate("net", card).path == torch
    own = place(cache / "assets" / "net" / "net.pt", b"4")
    assert assets.locate("net", card).path == own
    given = place(tmp_path / "mine.pt", b"5")
    status = assets.locate("net", card, str(given))
    assert (status.path, status.ok, status.given) == (given, True, True)
    absent = assets.locate("net", card, str(tmp_path / "absent.pt"))
    assert not absent.ok and "no such file" in absent.reason and "absent.pt" in absent.reason


def test_torch_home_has_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_HOME")
    found = place(tmp_path / "home" / ".cache" / "torch" / "hub" / "x.pt", b"1")
    assert assets.locate("net", make_card(places=["$TORCH_HOME/hub/x.pt"])).path == found


def test_data_sets_and_branches_of_the_hub(tmp_path: Path) -> None:
    repo = tmp_path / "hf" / "datasets--someone--list"
    found = place(repo / "snapshots" / COMMIT / "a b.csv", b"Prompts\nx\n")
    place(repo / "refs" / "main", COMMIT.encode())
    card = make_card(what="prompts", file="a b.csv", repo="someone/list", kind="dataset")
    assert assets.locate("list", card).path == found
    assert assets.locate("list", card.model_copy(update={"kind": "model"})).path is None


def test_shipped_asset_lies_in_the_package() -> None:
    here = assets.locate("x", make_card(file="errors.py", shipped=True))
    assert here.ok and here.path == package_file("errors.py")
    absent = assets.locate("x", make_card(file="weights/absent.pt", shipped=True))
    assert not absent.ok and "reinstall" in absent.fix


@pytest.mark.parametrize(("size", "ok"), [(len(CONTENT), True), (len(CONTENT) + 1, False), (None, True)])
def test_size_decides(cache: Path, size: int | None, ok: bool) -> None:
    place(cache / "assets" / "net" / "net.pt", CONTENT)
    status = assets.locate("net", make_card(size=size, url="http://somewhere/net.pt"))
    assert status.ok is ok
    if not ok:
        assert f"{len(CONTENT)} bytes" in status.reason and str(size) in status.reason
        assert "delete it, then: alignbench fetch net" in status.fix


def test_folder_counts_once_it_is_complete(tmp_path: Path, cache: Path) -> None:
    card = hub_folder()
    own = cache / "assets" / "net"
    assert assets.locate("net", card).reason == f"{own} lacks a.json and w.st or w.bin"
    place(own / "a.json", b"{}")
    snapshot = tmp_path / "hf" / "models--someone--net" / "snapshots" / COMMIT
    for name in ("a.json", "w.bin"):
        place(snapshot / name, b"1")
    assert assets.locate("net", card).path == snapshot
    place(own / "w.st", b"1")
    assert assets.locate("net", card).path == own


def test_what_may_be_given_instead(tmp_path: Path) -> None:
    file, folder = place(tmp_path / "net.pt", b"1"), tmp_path / "form"
    place(folder / "a.json", b"{}")
    assert assets.locate("net", make_card(), str(folder)).ok
    assert "lacks w.st or w.bin" in assets.locate("net", hub_folder(), str(folder)).reason
    assert "a file, not a folder" in assets.locate("net", hub_folder(), str(file)).reason
    assert "a folder, not a file" in assets.locate("p", make_card(what="prompts"), str(folder)).reason
    (tmp_path / "void").mkdir()
    assert "lacks any file" in assets.locate("net", make_card(), str(tmp_path / "void")).reason
    place(tmp_path / "zero.pt", b"")
    assert "empty" in assets.locate("net", make_card(), str(tmp_path / "zero.pt")).reason


def test_assets_of_a_protocol_are_all_it_reads() -> None:
    registry = Registry.default()
    protocol = registry.protocol("drawbench")
    assert assets.assets_of(registry, protocol) == [
        "clip-vit-l-14-openai",
        "clip-vit-b-32-openai",
        "hpsv2.1",
        "drawbench-prompts",
    ]
    adm = registry.protocol("imagenet256-adm")
    assert "imagenet256-adm-reference" in assets.assets_of(registry, adm)
    assert assets.assets_of(registry, registry.protocol("digits8")) == []


# --- verify ---------------------------------------------------------------------------------------


def test_wrong_file_is_an_error_unless_the_user_meant_it(tmp_path: Path, cache: Path) -> None:
    path = place(cache / "assets" / "net" / "net.pt", CONTENT)
    right, wrong = make_card(sha256=SHA256), make_card(sha256="0" * 64)
    file = assets.verify("net", right, assets.locate("net", right))
    assert file == assets.AssetFile("net", path, SHA256) and assets.is_official(right, file)
    with pytest.raises(UserError) as caught:
        assets.verify("net", wrong, assets.locate("net", wrong))
    assert SHA256 in caught.value.what and "0" * 64 in caught.value.what and str(path) in caught.value.what
    given = assets.verify("net", wrong, assets.locate("net", wrong, str(path)))
    assert given.sha256 == SHA256 and not assets.is_official(wrong, given)
    unknown = make_card()
    assert not assets.is_official(unknown, assets.verify("net", unknown, assets.locate("net", unknown)))


def test_digest_is_computed_once_while_the_file_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, card = place(cache / "assets" / "net" / "net.pt", CONTENT), make_card()
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(digests, "file_sha256", counted)
    for _ in range(3):
        assert assets.verify("net", card, assets.locate("net", card)).sha256 == SHA256
    assert len(read) == 1
    path.write_bytes(b"other")
    assert (
        assets.verify("net", card, assets.locate("net", card)).sha256 == hashlib.sha256(b"other").hexdigest()
    )
    assert len(read) == 2
    (cache / "assets" / "digests.json").write_text("{broken")
    assets.verify("net", card, assets.locate("net", card))
    assert len(read) == 3 and json.loads((cache / "assets" / "digests.json").read_text())


def test_unwritable_cache_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNBENCH_CACHE", str(place(tmp_path / "occupied", b"a file")))
    mine = place(tmp_path / "net.pt", CONTENT)
    assert assets.verify("net", make_card(), assets.locate("net", make_card(), str(mine))).sha256 == SHA256


def test_digest_of_a_folder_is_that_of_what_counts(tmp_path: Path) -> None:
    def digest(card: AssetCard) -> str:
        return assets.verify("net", card, assets.locate("net", card, str(folder))).sha256

    folder = tmp_path / "form"
    for name in ("a.json", "w.bin", "README.md"):
        place(folder / name, name.encode())
    listed, single = hub_folder(), make_card()
    before = digest(listed), digest(single)
    place(folder / "README.md", b"changed")
    assert digest(listed) == before[0] and digest(single) != before[1]
    place(folder / "w.bin", b"changed")
    changed = digest(listed)
    assert changed != before[0]
    (folder / "w.bin").rename(folder / "w.st")
    assert digest(listed) not in (changed, before[0])


# --- fetch ----------------------------------------------------------------------------------------


class Recorder(Handler):
    """Writes down paths and headers too; /moved sends elsewhere."""

    def answer(self, *, body: bool) -> None:
        state: Any = self.server.state  # type: ignore[attr-defined]
        state.seen.append((self.command, self.path, self.headers.get("Authorization")))
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{state.port}/net.pt")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        super().answer(body=body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A web server on this machine, which the hub's client takes for the hub."""
    import huggingface_hub

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    state = SimpleNamespace(requests=[], seen=[], etag=SHA256, missing=False)
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    web.state = state  # type: ignore[attr-defined]
    state.port, state.root = web.server_port, f"http://127.0.0.1:{web.server_port}"
    threading.Thread(target=web.serve_forever, daemon=True).start()
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_url",
        lambda repo, path, *, revision, repo_type: f"{state.root}/{repo_type}s/{repo}/{revision}/{path}",
    )
    yield state
    web.shutdown()
    web.server_close()


@pytest.mark.parametrize("address", ["net.pt", "moved/net.pt"])
def test_plain_address(server: SimpleNamespace, cache: Path, address: str) -> None:
    server.etag = "version-1"
    card = make_card(url=f"{server.root}/{address}", size=len(CONTENT), sha256=SHA256)
    lines: list[str] = []
    (done,) = fetch_assets.fetch({"net": card}, say=lines.append)
    target = cache / "assets" / "net" / "net.pt"
    assert (done.action, done.path, done.sha256) == ("downloaded", target, SHA256)
    assert target.read_bytes() == CONTENT and [path.name for path in target.parent.iterdir()] == ["net.pt"]
    assert "licence MIT" in lines[0] and "10.2 kB" in lines[0] and str(target) in lines[0]
    assert {token for _, _, token in server.seen} == {None}, "the hub's token is nobody else's business"
    server.seen.clear()
    assert fetch_assets.fetch({"net": card})[0].action == "present"
    assert server.seen == []


def test_broken_transfer_is_continued(
    server: SimpleNamespace, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import file_download

    def breaks(url: str, stream: Any, **options: Any) -> None:
        stream.write(CONTENT[:4000])
        raise ConnectionResetError("connection reset by peer")

    card = make_card(url=f"{server.root}/net.pt")
    with monkeypatch.context() as patch, pytest.raises(RunFailed, match="4000 of 10240 bytes are kept"):
        patch.setattr(file_download, "http_get", breaks)
        fetch_assets.fetch({"net": card})
    assert not (cache / "assets" / "net" / "net.pt").exists()
    server.requests.clear()
    assert fetch_assets.fetch({"net": card})[0].sha256 == SHA256
    assert [given for method, given in server.requests if method == "GET"] == ["bytes=4000-"]


def test_another_version_starts_afresh(server: SimpleNamespace, cache: Path) -> None:
    card = make_card(url=f"{server.root}/net.pt", sha256=SHA256)
    place(cache / "assets" / "net" / f"net.pt.{'0' * 16}.partial", b"something else")
    fetch_assets.fetch({"net": card})
    assert [given for method, given in server.requests if method == "GET"] == [None]


def test_wrong_content_never_gets_the_final_name(server: SimpleNamespace, cache: Path) -> None:
    card = make_card(url=f"{server.root}/net.pt", sha256="0" * 64)
    with pytest.raises(UserError, match="0" * 64) as caught:
        fetch_assets.fetch({"net": card})
    assert SHA256 in caught.value.what and not (cache / "assets" / "net" / "net.pt").exists()
    server.seen.clear()
    with pytest.raises(UserError, match="not the file that asset 'net' means"):
        fetch_assets.fetch({"net": make_card(url=f"{server.root}/net.pt", size=5)})
    assert {method for method, _, _ in server.seen} == {"HEAD"}


def test_data_set_of_the_hub(server: SimpleNamespace, cache: Path) -> None:
    card = make_card(what="prompts", file="a b.csv", repo="someone/list", revision=COMMIT, kind="dataset")
    assert fetch_assets.fetch({"list": card})[0].path == cache / "assets" / "list" / "a b.csv"
    assert all(path.startswith("/datasets/someone/list/") for _, path, _ in server.seen)


def test_folder_of_the_hub_gets_the_first_of_alternatives(server: SimpleNamespace, cache: Path) -> None:
    place(cache / "assets" / "net" / "a.json", b"{}")
    (done,) = fetch_assets.fetch({"net": hub_folder()})
    assert done.path == cache / "assets" / "net" and done.action == "downloaded"
    assert sorted(path.name for path in done.path.iterdir()) == ["a.json", "w.st"]
    assert {path.rpartition("/")[2] for _, path, _ in server.seen} == {"w.st"}


def test_dry_run_lists_everything_and_touches_nothing(server: SimpleNamespace, cache: Path) -> None:
    cards = {"net": make_card(url=f"{server.root}/net.pt", size=10), "own": make_card(licence="")}
    lines: list[str] = []
    done = fetch_assets.fetch(cards, dry_run=True, say=lines.append)
    assert [item.action for item in done] == ["would download", "bring your own"]
    assert server.seen == [] and not cache.exists()
    assert "10 bytes" in lines[0] and "licence not stated" in lines[1] and "--set assets.own=PATH" in lines[2]


def test_no_network_gets_one_line(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    from huggingface_hub import constants

    card = make_card(url="http://127.0.0.1:9/net.pt")
    with pytest.raises(UserError, match=r"cannot get http://127\.0\.0\.1:9/net\.pt \(") as caught:
        fetch_assets.fetch({"net": card})
    assert "curl -fL -o net.pt http://127.0.0.1:9/net.pt" in caught.value.fix
    assert str(cache / "assets" / "net" / "net.pt") in caught.value.fix
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        fetch_assets.fetch({"net": card})


def test_absent_file_and_wrong_file_on_disk(server: SimpleNamespace, cache: Path) -> None:
    server.missing = True
    with pytest.raises(UserError, match=r"cannot get .*404"):
        fetch_assets.fetch({"net": make_card(url=f"{server.root}/net.pt")})
    mine = place(cache / "assets" / "net" / "net.pt", b"mine")
    with pytest.raises(UserError, match="4 bytes"):
        fetch_assets.fetch({"net": make_card(url=f"{server.root}/net.pt", size=9)})
    assert mine.read_bytes() == b"mine"


# --- documentation --------------------------------------------------------------------------------


def table_row(name: str, card: AssetCard) -> str:
    """The line of docs/evaluators/assets.md about an asset: nothing that its card does not say."""
    source = f"hub, `{card.repo}`" if card.repo else "shipped" if card.shipped else "bring your own"
    if card.url:
        source = f"<{card.url}>"
    known = "yes" if card.sha256 else "no"
    first = [names.split("|")[0] for names in card.files]
    file = f"`{card.file}`" if card.file != assets.FOLDER else f"folder: {', '.join(first)}"
    size = download.human_size(card.size) if card.size else "–"
    return f"| {' | '.join((f'`{name}`', card.what, file, size, known, card.licence, source))} |"


@pytest.mark.parametrize("name", REGISTRY.names("assets"))
def test_docs_list_every_asset(name: str) -> None:
    lines = (Path(__file__).parents[2] / "docs" / "evaluators" / "assets.md").read_text("utf-8").splitlines()
    row = table_row(name, REGISTRY.asset(name))
    assert row in lines, f"the line should be:\n{row}"


def test_docs_list_no_other_asset() -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluators" / "assets.md").read_text("utf-8")
    listed = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert listed == REGISTRY.names("assets")


# --- commands -------------------------------------------------------------------------------------


def test_fetching_a_protocol_lists_all_it_reads(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    weights.fetch("drawbench", dry_run=True)
    said = capsys.readouterr()
    names = assets.assets_of(REGISTRY, REGISTRY.protocol("drawbench"))
    assert [line.split("  ")[0] for line in said.out.splitlines()] == names
    assert said.out.count("(would download)") == len(names)
    for name in names:
        assert f"{name}: licence {REGISTRY.asset(name).licence}" in said.err
    assert not cache.exists()


def test_fetch_takes_models_evaluators_and_assets(capsys: pytest.CaptureFixture[str]) -> None:
    weights.fetch("hpsv2.1", dry_run=True)  # an evaluator and its asset have this name
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["hpsv2.1"]
    weights.fetch("clip-score-l14", dry_run=True)
    assert capsys.readouterr().out.startswith("clip-vit-l-14-openai")
    weights.fetch("llamagen-b", dry_run=True)
    assert capsys.readouterr().out.startswith("policy")
    weights.fetch("digits8")
    assert "needs no files" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"named 'drawbnch'\. Did you mean drawbench"):
        weights.fetch("drawbnch")


def test_doctor_names_the_command_for_each_missing_file(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(cache / "assets" / "hpsv2.1" / "HPS_v2.1_compressed.pt", b"1")
    facts = doctor.gather("vapi")["evaluators"]
    assert facts["distribution-digits"] == {"runs": "yes", "missing": []}
    assert facts["hpsv2.1"]["runs"] == "yes"
    (missing,) = facts["clip-score-l14"]["missing"]
    assert facts["clip-score-l14"]["runs"] == "no" and "ViT-L-14.pt is not in" in missing["what"]
    assert missing["fix"].startswith("alignbench fetch clip-vit-l-14-openai")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    absent = doctor.gather("vapi")["evaluators"]["hpsv2.1"]
    assert absent["missing"] == [
        {"what": "module open_clip is not installed", "fix": "pip install 'alignbench[rewards]'"}
    ]
