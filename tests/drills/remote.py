"""A reward server that fails from some request on, for a while or until it is mended."""

from __future__ import annotations

import contextlib
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignbench.registry.lookup import Registry
from alignbench.registry.reward_spec import resolve
from alignbench.rewards.build import build_raw
from alignbench.rewards.remote import serve
from tests.drills.drill import TINY, Drill, Lost, check_failed, check_words, in_process, outcome
from tests.rewards.test_remote import archive

REWARD = "class-logprob-digits"
STATUS = (204, 302, 400, 404, 408, 425, 429, 500, 502, 503)
BODIES = {
    "json": b'{"values": [1, 2, 3, 4]}',
    "nested": b"[" * 100_000,
    "empty": b"",
    "much": b"x" * 3_000_000,
    "nan": archive(values=np.full(4, np.nan, np.float32), valid=np.ones(4, bool)),
    "infinite": archive(values=np.full(4, np.inf, np.float32), valid=np.ones(4, bool)),
    "few": archive(values=np.ones(3, np.float32), valid=np.ones(3, bool)),
    "many": archive(values=np.ones(5, np.float32), valid=np.ones(5, bool)),
    "double": archive(values=np.ones(4), valid=np.ones(4, bool)),
    "masked": archive(values=np.ones(4, np.float32), valid=np.zeros(4, bool)),
}
WAYS = (*map(str, STATUS), *BODIES, "dies", "hangs-up", "half", "head", "no-http", "long-header", "hangs")


class Remote(Drill):
    """The project's server with a fault before it; four requests a step."""

    def __init__(self, root: Path, seed: int) -> None:
        self.fault, self.after, self.times, self.seen = "", 0, 0, 0
        self.port = 0
        self.start()
        spec = f"{REWARD}(placement=http://127.0.0.1:{self.port},batch=4,retries=1,timeout=2)@1"
        self.arguments = [*TINY, "--set", f"method.rewards={spec}", "--set", "train.failed_rewards=0"]
        super().__init__(root, seed)

    def start(self) -> None:
        """Serve, at the same address as before."""
        resolved = resolve(REWARD, Registry.default())
        reward = build_raw(resolved, torch.device("cpu"))
        server = serve(reward, "127.0.0.1", self.port, name=REWARD, options=resolved.options)
        sound: Any = server.RequestHandlerClass
        drill = self

        class Faulty(sound):  # type: ignore[misc]
            def do_POST(self) -> None:
                drill.seen += 1
                if drill.fault and drill.after < drill.seen <= drill.after + drill.times:
                    self.rfile.read(int(self.headers["Content-Length"]))
                    drill.misbehave(self)
                else:
                    super().do_POST()

            def do_GET(self) -> None:
                if drill.fault and drill.seen > drill.after:
                    drill.misbehave(self)
                else:
                    super().do_GET()

        server.RequestHandlerClass = Faulty
        self.server, self.port = server, server.server_address[1]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self, server: ThreadingHTTPServer) -> None:
        server.shutdown()
        server.server_close()

    def misbehave(self, handler: Any) -> None:
        """Do what the trial asks for, in place of an answer."""
        how, raw = self.fault, handler.wfile.write
        handler.close_connection = True
        with contextlib.suppress(OSError):
            if how.isdecimal():
                handler._answer(int(how), b"a reason\nof two lines \x1b[31m")
            elif how in BODIES:
                handler._answer(200, BODIES[how])
            elif how == "dies":
                threading.Thread(target=self.stop, args=[self.server]).start()
            elif how == "half":
                raw(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nPK")
            elif how == "head":
                raw(b"HTTP/1.1 200 OK\r\nConte")
            elif how == "no-http":
                raw(b"\x00\x01 hello\r\n\r\n")
            elif how == "long-header":
                raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n")
            elif how == "hangs":
                threading.Event().wait(3)

    def remote(self) -> None:
        """One fault, once or for ever; then the server is sound again."""
        self.fault = self.draw.choice(WAYS)
        self.after, self.times, self.seen = self.draw.randrange(16), self.draw.choice([1, 1000]), 0
        what = f"{self.fault} at request {self.after + 1}, {self.times} times"
        with self.trial() as folder:
            out = folder / "run"
            try:
                code, errors = in_process(*self.arguments, "--out", str(out))
                if code:
                    check_words(errors, REWARD)
                    check_failed(out)
                elif outcome(out) != self.wanted:
                    raise Lost("it ends with other results")
                if code not in (0, 1):
                    raise Lost(f"exit status {code}")
            except Lost as error:
                raise Lost(f"{what}: {error}") from error
            finally:
                died, self.fault = self.fault == "dies", ""
                if died and self.seen > self.after:
                    self.start()
            self.finish(out)
