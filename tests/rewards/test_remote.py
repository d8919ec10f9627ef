"""Remote rewards over the loopback interface: exact transport; servers that fail, hang or answer rubbish."""

from __future__ import annotations

import contextlib
import io
import pickle
import socketserver
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignbench import api
from alignbench.errors import UserError
from alignbench.methods.image_rewards import as_distance
from alignbench.rewards import remote, wire
from alignbench.rewards.__main__ import main as rewards_main
from alignbench.rewards.build import BuiltReward, build
from alignbench.rewards.remote import RemoteReward, serve
from tests.helpers.reward_toys import Brightness, Moody, registry, request

CPU = torch.device("cpu")


@contextlib.contextmanager
def running(server: socketserver.TCPServer) -> Iterator[str]:
    """Run a server in a thread; gives its URL."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        host, port = server.server_address[:2]
        yield f"http://{host!s}:{port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def served(reward: Any, name: str = "toy", **options: Any) -> contextlib.AbstractContextManager[str]:
    return running(serve(reward, "127.0.0.1", 0, name=name, options=options))


class Script(socketserver.ThreadingTCPServer):
    """Reads one request a connection and answers with the next of some scripted bytes, raw."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *answers: Callable[[Any], None]) -> None:
        self.answers = list(answers)
        self.seen = 0
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        length = 0
        while (line := self.rfile.readline().strip()) != b"":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        self.rfile.read(length)
        server: Any = self.server
        server.seen += 1
        answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        with contextlib.suppress(OSError):
            answer(self.wfile)


def says(status: str, body: bytes, *, promised: int | None = None) -> Callable[[Any], None]:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {promised or len(body)}\r\nConnection: close\r\n\r\n"
    return lambda stream: stream.write(head.encode() + body)


def archive(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def bomb() -> bytes:
    """Scores with a third array that packs to next to nothing and unpacks to a thousand times that."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed, packed.open("values.npy", "w") as file:
        for _ in range(20):
            file.write(bytes(1_000_000))
    return stream.getvalue()


def good(*values: float, valid: tuple[bool, ...] = (True, True)) -> bytes:
    return archive(values=np.array(values, dtype=np.float32), valid=np.array(valid[: len(values)]))


hold = threading.Event()


def hang(stream: Any) -> None:
    hold.wait(30)


def dribble(stream: Any) -> None:
    """One byte at a time, each well within a socket's own time-out."""
    stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not hold.wait(0.02):
        stream.write(b"x")


def client(url: str, retries: int = 2, timeout: float = 10.0) -> tuple[RemoteReward, list[float]]:
    pauses: list[float] = []
    return RemoteReward(url, "toy", timeout=timeout, retries=retries, sleep=pauses.append), pauses


# --- transport ------------------------------------------------------------------------------------


@pytest.mark.parametrize("eight_bit", [True, False])
def test_requests_arrive_exactly(eight_bit: bool) -> None:
    images = request().images * 1.5 - 0.2
    if eight_bit:
        images = (images.clamp(0, 1) * 255).round() / 255
    given = request(
        5,
        images=images,
        texts=("plain", "", "ünï ✓", "a\nb", '"quoted"'),
        metadata={"place": [1, 2, 3, 4, 5], "note": ["x", None, 1.5, [1], {"y": 2}]},
        reference=request(seed=1).images,
    )
    assert wire.pack_images(images).dtype == (np.uint8 if eight_bit else np.float32)
    arrived = wire.load_request(wire.dump_request(given))
    for name in ("images", "group", "labels", "reference"):
        assert torch.equal(getattr(arrived, name), getattr(given, name)), name
    assert (arrived.texts, arrived.metadata) == (given.texts, given.metadata)
    bare = wire.load_request(wire.dump_request(api.ScoreRequest(images=images, group=given.group)))
    assert (bare.labels, bare.reference, bare.texts, bare.metadata) == (None, None, (), {})


def test_an_archive_is_asked_to_hold_nothing_but_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before NumPy 2.2 every keyword of `savez` becomes an array of the file, and an answer holds two."""
    save, given = np.savez, dict[str, Any]()
    monkeypatch.setattr(np, "savez", lambda file, **more: [given.update(more), save(file, **more)])
    scores = api.Scores(torch.ones(2), torch.tensor([True, False]))
    assert torch.equal(wire.load_scores(wire.dump_scores(scores), 2).valid, scores.valid)
    assert given.keys() == {"values", "valid"}


def test_scores_and_masks_are_those_of_the_reward_itself() -> None:
    given, reward = request(4), Moody(failed=[0, 2])
    with served(reward) as url:
        scores, own = client(url)[0].score(given), reward.score(given)
    assert torch.equal(scores.values, own.values)
    assert scores.valid.tolist() == own.valid.tolist() == [False, True, False, True]


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        raise AssertionError("unpickled")


@pytest.mark.parametrize("load", [wire.load_request, lambda data: wire.load_scores(data, 2)])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"rubbish",
        pickle.dumps({"values": [1.0]}),
        good(1.0, 2.0)[:-40],
        archive(values=np.array([{"a": 1}], dtype=object), valid=np.array([True])),
        archive(other=np.zeros(2)),
        bomb(),
    ],
)
def test_rubbish_is_malformed_and_nothing_is_unpickled(load: Callable[[bytes], Any], data: bytes) -> None:
    with pytest.raises(wire.Malformed):
        load(data)


# --- servers that misbehave -----------------------------------------------------------------------

BAD = {
    "fails": says("500 Internal Server Error", b"out of memory"),
    "is busy": says("503 Service Unavailable", b""),
    "asks to wait": says("429 Too Many Requests", b""),
    "answers without end": says("200 OK", b"x" * 70_000),
    "hangs": hang,
    "dribbles": dribble,
    "hangs up": lambda stream: None,
    "answers no HTTP": lambda stream: stream.write(b"\x00\x01\x02 hello\r\n\r\n"),
    "answers rubbish": says("200 OK", b"rubbish"),
    "cuts the answer": says("200 OK", good(1.0, 2.0)[:50], promised=500),
    "gives too few scores": says("200 OK", good(1.0)),
    "gives another dtype": says("200 OK", archive(values=np.zeros(2), valid=np.ones(2, dtype=bool))),
    "gives no mask": says("200 OK", archive(values=np.zeros(2, dtype=np.float32))),
}
SLOW = ("hangs", "dribbles")


@pytest.mark.parametrize("how", BAD)
def test_a_server_that_misbehaves_is_tried_again_and_then_masked(how: str, caplog: Any) -> None:
    hold.clear()
    server = Script(BAD[how])
    with running(server) as url:
        reward, pauses = client(url, timeout=0.3 if how in SLOW else 10.0)
        scores = reward.score(request(2))
        assert not scores.valid.any() and scores.values.isnan().all()
        assert server.seen == 3 and pauses == [0.5, 1.0]
        assert "2 images are left unscored" in caplog.text and url in caplog.text
        server.answers.append(says("200 OK", good(1.0, 2.0, valid=(True, False))))  # a later attempt
        scores = client(url, timeout=1.5 if how in SLOW else 10.0)[0].score(request(2))
        hold.set()
    assert scores.values.tolist() == [1.0, 2.0] and scores.valid.tolist() == [True, False]
    assert server.seen == 5


def test_nobody_there_is_masked_too() -> None:
    with served(Brightness(CPU)) as url:
        pass
    assert not client(url, retries=0)[0].score(request(2)).valid.any()


def test_a_refused_request_is_an_error_and_not_tried_again() -> None:
    server = Script(says("400 Bad Request", b"images must be square"))
    with running(server) as url, pytest.raises(UserError, match="refuses a request: images must be square"):
        client(url)[0].score(request(2))
    assert server.seen == 1


def test_the_server_refuses_what_is_no_request_and_survives_a_failing_reward() -> None:
    outside = request(1, images=torch.full((1, 3, 8, 8), 7.0))
    with served(object()) as url:  # which cannot score
        for data, error, reason in (
            (b"rubbish", remote.Refused, r"not an \.npz archive"),
            (wire.dump_request(outside), remote.Refused, "these span 7"),
            (wire.dump_request(request()), OSError, r"500.*no attribute 'score'"),
        ):
            with pytest.raises(error, match=reason):
                remote.exchange(url, "POST", data, timeout=5)


# --- as a placement -------------------------------------------------------------------------------


def test_a_remote_placement_keeps_transforms_and_direction_at_home(tmp_path: Path) -> None:
    cards = registry(tmp_path, "NotHere", direction="lower")
    toy = Brightness(CPU)
    with served(toy) as url:
        reward = build(f"toy(placement={url},batch=2)|scale(3)", cards, CPU, image_size=8)
        assert isinstance(reward, BuiltReward) and not reward.differentiable
        scores = reward.score(request())
    assert torch.allclose(scores.values, -3 * request().images.mean(dim=(1, 2, 3)))
    assert [len(part.images) for part in toy.asked] == [2, 2, 1]


def test_a_batch_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    cards = registry(tmp_path, "NotHere")
    name = says("200 OK", b'{"reward": "toy", "options": {}}')
    first, last = (says("200 OK", good(value, value)) for value in (1.0, 3.0))
    with running(Script(name, first, BAD["fails"], last)) as url:
        reward = build(f"toy(placement={url},batch=2,retries=0,timeout=5)", cards, CPU, image_size=8)
        scores = reward.score(request(6))
    assert scores.valid.tolist() == [True, True, False, False, True, True]
    assert scores.values[scores.valid].tolist() == [1.0, 1.0, 3.0, 3.0]


def test_a_wrong_or_absent_server_is_found_before_anything_starts(tmp_path: Path) -> None:
    cards = registry(tmp_path, "NotHere")
    for server, reason in (
        (
            serve(Brightness(CPU), "127.0.0.1", 0, name="other", options={}),
            "serves reward 'other', not 'toy'",
        ),
        (Script(BAD["answers rubbish"]), r"no reward server answers at .*python -m alignbench.rewards toy"),
    ):
        with running(server) as url, pytest.raises(UserError, match=reason):
            build(f"toy(placement={url},timeout=2)", cards, CPU, image_size=8)
    with pytest.raises(UserError, match="no reward server"):
        build(f"toy(placement={url},timeout=2)", cards, CPU, image_size=8)


def test_the_command_serves_a_reward_until_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []

    class Once(ThreadingHTTPServer):
        def serve_forever(self, poll_interval: float = 0.5) -> None:
            asking = threading.Thread(target=self.ask)
            asking.start()
            self.handle_request()
            asking.join()
            raise KeyboardInterrupt

        def ask(self) -> None:
            answers.append(remote.exchange(f"http://127.0.0.1:{self.server_port}", "GET", b"", timeout=10))

    monkeypatch.setattr(remote, "ThreadingHTTPServer", Once)
    rewards_main(["pixel-mse", "--port", "0", "--device", "cpu"])
    assert answers == [b'{"reward": "pixel-mse", "options": {}}']


@pytest.mark.parametrize("spec", ["pixel-msee", "pixel-mse|scale(2)", "pixel-mse(placement=offload)"])
def test_the_command_refuses_what_it_cannot_serve(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        rewards_main([spec])
    assert stopped.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_both_sides_must_agree_on_the_options(tmp_path: Path) -> None:
    question = '[options.question]\ndefault = "Sharp?"\ndoc = "."\n'
    cards = registry(tmp_path, "NotHere", more=f'{question}[options.path]\ndefault = ""\ndoc = "."\n')
    with served(Brightness(CPU), question="Nice?", path="/weights") as url:
        assert build(f"toy(question=Nice?,placement={url})", cards, CPU, image_size=8)
        with pytest.raises(UserError, match=r"with question = 'Nice\?', not 'Sharp\?'"):
            build(f"toy(placement={url})", cards, CPU, image_size=8)


def test_a_remote_distance_scores_and_is_no_distance(tmp_path: Path) -> None:
    cards = registry(tmp_path, "NotHere", scope="distance", direction="lower")
    with served(Brightness(CPU)) as url:
        reward = build(f"toy(placement={url})", cards, CPU, image_size=8)
        assert not isinstance(reward, api.Distance)
        assert reward.score(request(reference=request(seed=1).images)).valid.all()
    with pytest.raises(UserError, match="not remote"):
        as_distance("toy", reward)
