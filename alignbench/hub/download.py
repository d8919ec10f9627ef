"""Move one file from the Hugging Face hub or a plain address to the disk: ask what it is, make sure it fits,
continue where a broken transfer stopped. Which file is wanted and whether it is the right one is the business
of `alignbench.hub.weights` and `alignbench.hub.fetch_assets`.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from alignbench.errors import RunFailed, UserError
from alignbench.files import make_folder


class RemoteFile(Protocol):
    """A file on the hub, or of a plain address, where only `path` counts."""

    @property
    def repo(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def path(self) -> str: ...


File = TypeVar("File", bound=RemoteFile)


def human_size(size: int | None) -> str:
    """Return decimal units as the hub prints them, e.g. `5.64 GB`."""
    if size is None:
        return "size unknown"
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"


@dataclass(frozen=True)
class Transfer(Generic[File]):
    """One file about to come over the network."""

    file: File
    target: Path
    url: str
    size: int
    """Bytes, as the server says."""
    etag: str
    """The server's name for this version of the file; for large files on the hub its SHA-256."""
    on_hub: bool = True
    """False: a plain address, which is no business of the user's hub token."""

    @property
    def sha256(self) -> str | None:
        return self.etag if re.fullmatch("[0-9a-f]{64}", self.etag) else None

    @property
    def partial(self) -> Path:
        """Where the part that arrived waits; another version of the file gets another name."""
        return self.target.with_name(f"{self.target.name}.{self.etag[:16]}.partial")

    @property
    def remaining(self) -> int:
        return self.size - (self.partial.stat().st_size if self.partial.is_file() else 0)


def ask(model: str, absent: Sequence[tuple[File, Path]], *, kind: str = "model") -> list[Transfer[File]]:
    """Ask the hub for size and version of each (file, target).

    Args:
        model: what the files are for, for messages.
        absent: what is wanted, and where it goes.
        kind: of the repositories, `model` or `dataset`.

    Raises:
        UserError: no network, no such file, or a file behind a licence.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    transfers = []
    for file, target in absent:
        url = hf_hub_url(file.repo, file.path, revision=file.revision, repo_type=kind)
        try:
            metadata = get_hf_file_metadata(url)
        except Exception as error:  # the hub's client has changed its HTTP library, hence its errors, before
            raise _refusal(model, absent, file, error, kind) from error
        if metadata.size is None or not metadata.etag:
            raise UserError(
                f"the hub does not say the size of {file.repo}/{file.path}", fix="try again later"
            )
        transfers.append(Transfer(file, target, url, metadata.size, metadata.etag))
    return transfers


def ask_url(url: str, file: File, target: Path) -> Transfer[File]:
    """Ask the server of a plain address for size and version of its file.

    Raises:
        UserError: no network, no such file, or a server that does not say how large it is.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

    headers = {**build_hf_headers(token=False), "Accept-Encoding": "identity"}
    try:
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        answer: Any = get_session().request(
            "HEAD", url, headers=headers, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
        answer.raise_for_status()
    except Exception as error:  # as above
        offline = isinstance(error, OfflineModeIsEnabled)
        raise UserError(
            f"cannot get {url} ({'HF_HUB_OFFLINE is set' if offline else _first_line(error)})",
            fix=f"on a machine with a network: curl -fL -o {target.name} {url}; then copy it to {target}",
        ) from error
    size = answer.headers.get("Content-Length")
    if size is None:
        raise UserError(f"{url}: the server does not say how large the file is", fix="try again later")
    version = "|".join(answer.headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-Length"))
    # Hashed to be part of a file name; SHA-1 because 64 digits would be taken for the digest of the file.
    name = hashlib.sha1(version.encode(), usedforsecurity=False).hexdigest()
    return Transfer(file, target, url, int(size), name, on_hub=False)


def check_room(transfers: Sequence[Transfer[File]]) -> None:
    """Raise UserError unless everything that is still to come fits on the disk."""
    folder = transfers[0].target.parent
    make_folder(folder)
    needed, free = sum(transfer.remaining for transfer in transfers), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} has {human_size(free)} free, the files need {human_size(needed)}",
            fix="free some space, or set ALIGNBENCH_CACHE to a folder on another disk",
        )


def run(transfer: Transfer[File]) -> None:
    """Append to the partial file until it is whole.

    Raises:
        RunFailed: the disk filled up or the connection broke; what arrived is kept.
    """
    from huggingface_hub import file_download
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    make_folder(transfer.partial.parent)
    headers = {**build_hf_headers(token=None if transfer.on_hub else False), "Accept-Encoding": "identity"}
    try:
        # Not hf_hub_download: since huggingface_hub 2 it throws away what had arrived when it is interrupted.
        with transfer.partial.open("ab") as stream:
            file_download.http_get(
                transfer.url,
                stream,
                resume_size=stream.tell(),
                headers=headers,
                expected_size=transfer.size,
                displayed_filename=transfer.target.name,
            )
    except Exception as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        raise RunFailed(
            f"{transfer.file.path}: {'no space left on the disk' if full else _first_line(error)}; "
            f"{transfer.size - transfer.remaining} of {transfer.size} bytes are kept",
            fix=f"{'free some space and ' if full else ''}run the same command again to continue",
        ) from error


def _refusal(
    model: str, absent: Sequence[tuple[File, Path]], file: File, error: Exception, kind: str
) -> UserError:
    """Word a failed request: what the hub said, or how to get the files without a network here."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, GatedRepoError):
        return UserError(
            f"{file.repo} asks you to accept its licence first",
            fix=f"accept it on https://huggingface.co/{file.repo}, then: hf auth login",
        )
    if isinstance(error, HfHubHTTPError):
        return UserError(f"the hub refuses {file.repo}/{file.path} @ {file.revision}: {_first_line(error)}")
    wanted: dict[tuple[str, str], list[str]] = {}
    for other, _ in absent:
        wanted.setdefault((other.repo, other.revision), []).append(other.path)
    kind_flag = "" if kind == "model" else f" --repo-type {kind}"
    commands = [
        f"hf download {repo} {' '.join(paths)} --revision {revision}{kind_flag} --local-dir {model}"
        for (repo, revision), paths in wanted.items()
    ]
    offline = isinstance(error, OfflineModeIsEnabled)
    reason = "HF_HUB_OFFLINE is set" if offline else _first_line(error)
    names = ", ".join(f"{other.repo}/{other.path}" for other, _ in absent)
    return UserError(
        f"cannot reach the hub for {names} ({reason})",
        fix=f"on a machine with a network: {'; '.join(commands)}; "
        f"then copy the files to {absent[0][1].parent}",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
