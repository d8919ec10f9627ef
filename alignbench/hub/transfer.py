"""One file on its way over the network: asked for, brought in parts, or refused with the way out."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignbench.errors import FULL, RunFailed, UserError
from alignbench.files import alone, lock_of, make_folder
from alignbench.hub.locate import FOLDER, FileStatus
from alignbench.registry.protocol import AssetCard


@dataclass(frozen=True)
class Transfer:
    """One file about to come over the network."""

    file: FileStatus
    address: str
    size: int
    """Bytes, as the server says."""
    etag: str
    """The server's name for this version of the file; for large files on the hub its SHA-256."""

    @property
    def sha256(self) -> str | None:
        """What the hub says that it is."""
        return self.etag if re.fullmatch("[0-9a-f]{64}", self.etag) else None

    @property
    def git_blob(self) -> str | None:
        """What the hub says that it is of a file that lies in git itself: the name of its blob there."""
        return self.etag if not self.file.card.url and re.fullmatch("[0-9a-f]{40}", self.etag) else None

    @property
    def partial(self) -> Path:
        """Where the part that arrived waits; another version of the file gets another name."""
        return self.file.expected.with_name(f"{self.file.expected.name}.{self.etag[:16]}.partial")

    @property
    def remaining(self) -> int:
        return self.size - (self.partial.stat().st_size if self.partial.is_file() else 0)


def ask(files: Sequence[FileStatus]) -> list[Transfer]:
    """Ask for size and version of the files of a model or asset, of alternatives of the first that is there.

    Raises:
        UserError: no answer, or no size.
    """
    return [_ask_url(file) if file.card.url else _ask_hub(file, files) for file in files]


def narrowed(file: FileStatus, name: str) -> FileStatus:
    """Return one file of a repository."""
    card = file.card.model_copy(update={"file": name, "files": [], "size": None, "sha256": None})
    return replace(file, card=card, expected=file.expected / name)


def _forms(card: AssetCard) -> list[str]:
    """Names under which a part of a repository may be there, the best first."""
    return card.files[0].split("|") if card.file == FOLDER else [card.file]


def _ask_hub(file: FileStatus, together: Sequence[FileStatus]) -> Transfer:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    card, forms = file.card, _forms(file.card)
    for name in forms:
        address = hf_hub_url(card.repo, name, revision=card.revision, repo_type=card.kind)
        try:
            metadata = get_hf_file_metadata(address)
        except Exception as error:  # the hub's client has changed its HTTP library, hence its errors, before
            if isinstance(error, EntryNotFoundError) and name != forms[-1]:
                continue
            raise _refusal(file, together, error) from error
        break
    if metadata.size is None or not metadata.etag:
        raise UserError(f"the hub does not say the size of {card.repo}/{name}", fix="try again later")
    found = narrowed(file, name) if card.file == FOLDER else file
    return Transfer(found, address, metadata.size, metadata.etag)


def _ask_url(file: FileStatus) -> Transfer:
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    url = file.card.url
    try:
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled
        answer: Any = get_session().request(
            "HEAD", url, headers=_headers(file), timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
        answer.raise_for_status()
    except Exception as error:  # as above
        raise UserError(
            f"cannot get {url} ({_cause(error)})",
            fix=f"on a machine with a network: curl -fL -o {file.expected.name} {url}; "
            f"then copy it to {file.expected}",
        ) from error
    size = answer.headers.get("Content-Length")
    if size is None:
        raise UserError(f"{url}: the server does not say how large the file is", fix="try again later")
    version = "|".join(answer.headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-Length"))
    # Hashed to be part of a file name; SHA-1 because 64 digits would be taken for the digest of the file.
    return Transfer(file, url, int(size), hashlib.sha1(version.encode(), usedforsecurity=False).hexdigest())


def _headers(file: FileStatus) -> dict[str, str]:
    """Those of the hub's client; a plain address gets no token of the hub."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    return {**build_hf_headers(token=False if file.card.url else None), "Accept-Encoding": "identity"}


@contextlib.contextmanager
def alone_with(transfer: Transfer) -> Iterator[None]:
    """Be the only process that brings a file; raises UserError: another one is at it."""
    what = f"{transfer.file.card.file}: another process is downloading it"
    with (
        lock_of(transfer.file.expected).open("w") as lock,
        alone(lock, UserError(what, fix="wait for it to end")),
    ):
        yield


def bring(transfer: Transfer) -> None:
    """Append to the partial file until it is whole; raises RunFailed: no room, no connection."""
    from huggingface_hub import file_download

    make_folder(transfer.partial.parent)
    try:
        # Not hf_hub_download: since huggingface_hub 2 it throws away what had arrived when it is interrupted.
        with transfer.partial.open("ab") as stream:
            file_download.http_get(
                transfer.address,
                stream,
                resume_size=stream.tell(),
                headers=_headers(transfer.file),
                expected_size=transfer.size,
                displayed_filename=transfer.file.expected.name,
            )
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in FULL
        raise RunFailed(
            f"{transfer.file.card.file}: {'no space left on the disk' if full else _cause(error)}; "
            f"{transfer.size - transfer.remaining} of {transfer.size} bytes are kept",
            fix=f"{'free some space and ' if full else ''}run the same command again to continue",
        ) from error


def check_blob(transfer: Transfer) -> None:
    """Compare a file that arrived with its name in git, if it has one; raises UserError if it differs."""
    if transfer.git_blob is None:
        return
    content = transfer.partial.read_bytes()  # a few MB: the hub keeps no large files in git
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if blob != transfer.git_blob:
        raise UserError(
            f"{transfer.partial} is git blob {blob}, the hub says {transfer.git_blob}",
            fix=f"delete {transfer.partial} and fetch it again",
        )


def _refusal(file: FileStatus, together: Sequence[FileStatus], error: Exception) -> UserError:
    """Word a failed request: what the hub said, or how to get the files without a network here."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    card = file.card
    if isinstance(error, GatedRepoError):
        return UserError(
            f"{card.repo} asks you to accept its licence first",
            fix=f"accept it on https://huggingface.co/{card.repo}, then: hf auth login",
        )
    if isinstance(error, HfHubHTTPError):
        what = f"{card.repo}/{' or '.join(_forms(card))} @ {card.revision}"
        return UserError(f"the hub refuses {what}: {_cause(error)}")
    wanted: dict[str, list[str]] = {}
    for other in (other.card for other in together):
        kind = "" if other.kind == "model" else f" --repo-type {other.kind}"
        command = f"hf download {other.repo}{{}} --revision {other.revision}{kind} --local-dir {file.owner}"
        wanted.setdefault(command, []).append("|".join(_forms(other)))
    commands = "; ".join(command.format(_arguments(names)) for command, names in wanted.items())
    names = ", ".join(f"{other.card.repo}/{' or '.join(_forms(other.card))}" for other in together)
    return UserError(
        f"cannot reach the hub for {names} ({_cause(error)})",
        fix=f"on a machine with a network: {commands}; then copy the files to {together[0].expected.parent}",
    )


def _arguments(names: Sequence[str]) -> str:
    """Which files of a repository: all of it where nobody knows which alternative is there."""
    return "" if any("|" in name for name in names) else " ".join(["", *names])


def _cause(error: Exception) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def human_size(size: int | None) -> str:
    """Return decimal units as the hub prints them, e.g. `5.64 GB`."""
    if size is None:
        return "size unknown"
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"
