"""A server on this machine that stands for the hub and for the other addresses on cards."""

from __future__ import annotations

import contextlib
import http.server
import shutil
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from alignbench.files import file_sha256

COMMIT = "0123456789abcdef0123456789abcdef01234567"
digest_of = cache(file_sha256)


class Handler(http.server.BaseHTTPRequestHandler):
    """`/OWNER/NAME/resolve/REVISION/FILE` is `hub/OWNER/NAME/FILE`, `/web/HOST/PATH` is `web/HOST/PATH`."""

    root: Path

    def do_GET(self) -> None:
        path = self._file()
        if not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        size = path.stat().st_size
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.send_header("ETag", f'"{digest_of(path)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            with path.open("rb") as file, contextlib.suppress(ConnectionError):
                file.seek(start)
                shutil.copyfileobj(file, self.wfile)

    do_HEAD = do_GET

    def _file(self) -> Path:
        parts = self.path.strip("/").split("/")
        if ".." in parts or len(parts) < 4:
            return self.root / "absent"
        if parts[0] == "web":
            return self.root.joinpath(*parts)
        owner, name, _, _, *rest = parts
        return self.root.joinpath("hub", owner, name, *rest)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(root: Path, port: int = 0) -> Iterator[str]:
    """Serve a folder while the block runs, on a free port unless one is named; gives the address."""
    handler = type("Files", (Handler,), {"root": root})
    web = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{web.server_port}"
    finally:
        web.shutdown()
        web.server_close()
