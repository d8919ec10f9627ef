"""Rewards in another process or on another machine, over HTTP.

    python -m alignbench.rewards hpsv2.1 --port 8731        # where the reward's packages and weights are
    --set method.rewards='hpsv2.1(placement=http://that-machine:8731)|scale(5)@1'

The server gives raw scores; transforms and direction stay with the client. There is no authentication: bind
it to an address that only trusted machines reach.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from alignbench import api
from alignbench.errors import UserError
from alignbench.files import parse_json
from alignbench.rewards import requests, wire

MAX_BYTES = 2**31
"""Largest request or answer that is read."""
BUSY = (408, 425, 429)
"""Answers that ask to come again later."""
FIRST_PAUSE = 0.5
"""Seconds before the first retry; doubled before each further one."""
CONTENT_TYPE = "application/octet-stream"

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@runtime_checkable
class GivesFeatures(Protocol):
    """A reward of scope `set`: a server computes its features alone. Others have no `credit`."""

    def features(self, images: Tensor) -> Tensor: ...
    def credit(self, features: Tensor, sums: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Tensor: ...


class Refused(Exception):
    """The server says that the request itself is wrong: trying again cannot help."""


class RemoteReward:
    """The client: an `api.Reward` whose scores come from a server.

    A request that fails, takes longer than `timeout` seconds, or is answered with rubbish is tried again;
    when all attempts are spent its images are masked, and a warning says why. Scores carry no gradient.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        timeout: float,
        retries: int,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url, self.name, self.timeout, self.retries, self._sleep = url, name, timeout, retries, sleep

    def score(self, request: api.ScoreRequest) -> api.Scores:
        """Score one batch.

        Raises:
            UserError: the server refuses the request, saying why.
        """
        count, device = len(request.images), request.images.device
        limit = wire.answer_bytes(count)
        scores = self._ask(request, lambda answer: wire.load_scores(answer, count), limit)
        if scores is not None:
            return api.Scores(scores.values.to(device), scores.valid.to(device))
        nothing = torch.full((count,), torch.nan, device=device)
        return api.Scores(nothing, torch.zeros_like(nothing, dtype=torch.bool))

    def features(self, images: Tensor) -> Tensor | None:
        """[N, 3, H, W], 0 … 1 → [N, D] of a reward of scope `set`; None: no attempt got them."""
        count = len(images)
        request = api.ScoreRequest(images=images, group=torch.arange(count))
        limit = wire.feature_bytes(count)
        return self._ask(request, lambda answer: wire.load_features(answer, count), limit)

    def _ask(self, request: api.ScoreRequest, load: Callable[[bytes], Answer], limit: int) -> Answer | None:
        """Send a request until an answer can be read, or say that none could.

        Raises:
            UserError: the server refuses the request, saying why.
        """
        body, problem = wire.dump_request(request), ""
        for attempt in range(self.retries + 1):
            if attempt:
                self._sleep(FIRST_PAUSE * 2 ** (attempt - 1))
            try:
                return load(exchange(self.url, "POST", body, timeout=self.timeout, limit=limit))
            except Refused as error:
                raise UserError(f"reward {self.name!r} at {self.url} refuses a request: {error}") from error
            except (OSError, http.client.HTTPException, wire.Malformed) as error:
                problem = f"{type(error).__name__}: {error}"
        _log.warning(
            "reward %s at %s failed %d times, the last one with %s; %d images are left unscored",
            self.name, self.url, self.retries + 1, problem, len(request.images),
        )  # fmt: skip
        return None


def connect(
    url: str, name: str, options: Mapping[str, object], *, timeout: float, retries: int
) -> RemoteReward:
    """Return a client after asking the server what it serves.

    It must agree with the options of the card; empty texts (paths) are its own business.

    Raises:
        UserError: nobody answers there, or with another reward or other options.
    """
    fix = f"start it there: python -m alignbench.rewards {name} --host ADDRESS --port PORT"
    try:
        answer = parse_json(exchange(url, "GET", b"", timeout=timeout))
        served, settings = answer["reward"], dict(answer["options"])
    except (Refused, OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"reward {name!r}: no reward server answers at {url} ({type(error).__name__}: {error})", fix=fix
        ) from error
    if served != name:
        raise UserError(f"the server at {url} serves reward {served!r}, not {name!r}", fix=fix)
    for key, wanted in options.items():
        if wanted != "" and settings.get(key) != wanted:
            raise UserError(
                f"the server at {url} serves {name} with {key} = {settings.get(key)!r}, not {wanted!r}",
                fix="give both sides the same options",
            )
    return RemoteReward(url, name, timeout=timeout, retries=retries)


def exchange(url: str, verb: str, body: bytes, *, timeout: float, limit: int = 1 << 20) -> bytes:
    """One request, one answer of at most `limit` bytes, within `timeout` seconds for everything together.

    Raises:
        Refused: status 4xx, but for those that ask to come again.
        OSError, http.client.HTTPException: anything else that is not status 200 in time.
    """
    deadline = time.monotonic() + timeout
    address = urllib.parse.urlsplit(url)
    make = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = make(address.hostname or "", address.port, timeout=timeout)
    connection.connect()
    # A socket's own time-out starts anew with every byte; this cuts off a server that dribbles.
    cut = threading.Timer(timeout, _shut, [connection.sock])
    cut.daemon = True
    cut.start()
    try:
        connection.request(verb, address.path or "/", body, {"Content-Type": CONTENT_TYPE})
        answer = connection.getresponse()
        data = answer.read(limit + 1)
    finally:
        cut.cancel()
        connection.close()
    if len(data) > limit:
        raise OSError(f"the answer is longer than {limit} bytes")
    if time.monotonic() > deadline:
        raise TimeoutError(f"no whole answer within {timeout:g} s")
    if 400 <= answer.status < 500 and answer.status not in BUSY:
        raise Refused(data[:500].decode(errors="replace"))
    if answer.status != 200:
        raise OSError(f"status {answer.status}: {data[:200].decode(errors='replace')}")
    return data


def _shut(open_socket: socket.socket) -> None:
    with contextlib.suppress(OSError):
        open_socket.shutdown(socket.SHUT_RDWR)


# --- server ---------------------------------------------------------------------------------------


def serve(
    reward: api.Reward | GivesFeatures, host: str, port: int, *, name: str, options: Mapping[str, object]
) -> ThreadingHTTPServer:
    """Return a server for a reward, bound but not started: call `serve_forever`, later `shutdown`.

    GET tells name and options of the reward; POST takes a request of `wire` and gives scores. Requests are
    scored one after another. Port 0 takes a free one, see `server_address`.
    """
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = 60  # seconds that a client may say nothing

        def do_GET(self) -> None:
            self._answer(200, json.dumps({"reward": name, "options": dict(options)}).encode())

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > MAX_BYTES:
                self._answer(400, b"no Content-Length, or too much")
                return
            try:
                request = wire.load_request(self.rfile.read(int(length)))
                requests.check(name, request)
            except ValueError as error:
                self._answer(400, str(error).encode())
                return
            try:
                with lock, torch.no_grad():
                    if isinstance(reward, GivesFeatures):
                        found = wire.dump_features(reward.features(request.images))
                    else:
                        found = wire.dump_scores(reward.score(request))
            except Exception as error:
                _log.exception("scoring failed")
                self._answer(500, f"{type(error).__name__}: {error}".encode())
            else:
                self._answer(200, found)

        def _answer(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            _log.info(format, *args)

    return ThreadingHTTPServer((host, port), Handler)
