"""How files from outside get onto the disk: licence and size first, then in parts, checked, then named."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from alignbench.errors import FULL, RunFailed, UserError
from alignbench.files import alone, file_sha256, lock_of, make_folder
from alignbench.hub.locate import FOLDER, FileStatus
from alignbench.hub.verify import check_digest, promised, verify

Log = Callable[[str], None]


@dataclass(frozen=True)
class Fetched:
    """What `fetch_files` did about one file."""

    name: str
    """Role of a weight file, name of an asset."""
    path: Path
    action: Literal["present", "downloaded", "would download", "bring your own"]
    sha256: str | None
    """None where nothing was hashed."""


def fetch_files(
    files: Sequence[FileStatus], *, dry_run: bool = False, say: Log = lambda line: None
) -> list[Fetched]:
    """Download files that are not there yet, and check all of them.

    Calling again continues a broken transfer where it stopped. A file gets its final name only after its size
    and digest were checked. Files that cannot be downloaded are reported, not an error.

    Args:
        files: as they were located, those of one model or asset together.
        dry_run: say what would be done; needs no network and hashes nothing.
        say: called with one line at a time; licences and sizes come before the first byte.

    Raises:
        UserError: no network, no such file there, a wrong size or digest, not enough room.
        RunFailed: the disk filled up or the connection broke half-way; the part that arrived is kept.
    """
    for file in files:
        say(_describe(file))
    for file in files:
        if not file.ok and (file.path is not None or file.card.shipped):
            raise UserError(file.reason, fix=file.fix)
    absent = [part for file in files if file.path is None and file.is_public for part in _parts(file)]
    arrived: dict[Path, str] = {}
    if not dry_run:
        for _, together in itertools.groupby(absent, key=lambda file: (file.owner, file.is_weights)):
            arrived |= _download(list(together), say)
    return [_outcome(file, arrived, dry_run, say) for file in files]


def _describe(file: FileStatus) -> str:
    """Say in one line what a file is, under which licence, and whether it is here."""
    card = file.card
    name = f"{file.owner} {file.name}" if file.is_weights else file.name
    origin = card.url or "no public source"
    if card.repo:
        origin = f"{card.repo}{'' if card.file == FOLDER else f'/{card.file}'} @ {card.revision[:12]}"
    where = f"here: {file.path}" if file.ok else f"{origin} → {file.expected}"
    return f"{name}: licence {card.licence or 'not stated'}, {human_size(card.size)}, {where}"


def _parts(file: FileStatus) -> list[FileStatus]:
    """What to download: of a folder the files it lacks, of alternatives the one its authors recommend."""
    if file.card.file != FOLDER:
        return [file]
    parts = []
    for name in (names.split("|")[0] for names in file.card.files):
        card = file.card.model_copy(update={"file": name, "files": [], "size": None, "sha256": None})
        parts.append(replace(file, card=card, expected=file.expected / name))
    return [part for part in parts if not part.expected.is_file()]


def _download(files: Sequence[FileStatus], say: Log) -> dict[Path, str]:
    """Bring the files of one model or asset; {path: digest}."""
    transfers = ask(files)
    _check_offers(transfers)
    digests = {}
    for transfer in transfers:
        say(f"downloading {transfer.file.card.file}, {human_size(transfer.remaining)} to go")
        with _alone(transfer):
            _run(transfer)
            digest = digests[transfer.file.expected] = file_sha256(transfer.partial)
            check_digest(transfer.file, transfer.partial, digest, transfer.sha256)
            transfer.partial.replace(transfer.file.expected)
    return digests


def _check_offers(transfers: Sequence[Transfer]) -> None:
    """Raise UserError, before gigabytes move, if a source has another file or there is too little room."""
    for transfer in transfers:
        size, wanted = transfer.file.card.size, promised(transfer.file)
        if size not in (None, transfer.size) or (wanted and transfer.sha256 not in (None, wanted)):
            raise UserError(
                f"{transfer.address} is not the file its card means: it has {transfer.size} bytes with "
                f"SHA-256 {transfer.sha256 or 'unknown'}, wanted are {size or 'any'} with {wanted or 'any'}",
                fix=f"--set {transfer.file.option}=PATH with a copy you trust, or update the card",
            )
    folder = transfers[0].file.expected.parent
    make_folder(folder)
    needed, free = sum(transfer.remaining for transfer in transfers), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} has {human_size(free)} free, the files need {human_size(needed)}",
            fix="free some space, or set ALIGNBENCH_CACHE to a folder on another disk",
        )


def _outcome(file: FileStatus, arrived: Mapping[Path, str], dry_run: bool, say: Log) -> Fetched:
    if file.path is None and not file.is_public:
        say(f"{file.name}: {file.reason} → {file.fix}")
        return Fetched(file.name, file.expected, "bring your own", None)
    path = file.path or file.expected
    if dry_run:
        return Fetched(file.name, path, "present" if file.path else "would download", None)
    if file.path is None:
        return Fetched(file.name, path, "downloaded", arrived.get(path) or verify(replace(file, path=path)))
    say(f"checking {path}")
    return Fetched(file.name, path, "present", verify(file))


# --- transfers ------------------------------------------------------------------------------------


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
    def partial(self) -> Path:
        """Where the part that arrived waits; another version of the file gets another name."""
        return self.file.expected.with_name(f"{self.file.expected.name}.{self.etag[:16]}.partial")

    @property
    def remaining(self) -> int:
        return self.size - (self.partial.stat().st_size if self.partial.is_file() else 0)


def ask(files: Sequence[FileStatus]) -> list[Transfer]:
    """Ask for size and version of the files of a model or asset; raises UserError: no answer, or no size."""
    return [_ask_url(file) if file.card.url else _ask_hub(file, files) for file in files]


def _ask_hub(file: FileStatus, together: Sequence[FileStatus]) -> Transfer:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    card = file.card
    address = hf_hub_url(card.repo, card.file, revision=card.revision, repo_type=card.kind)
    try:
        metadata = get_hf_file_metadata(address)
    except Exception as error:  # the hub's client has changed its HTTP library, hence its errors, before
        raise _refusal(file, together, error) from error
    if metadata.size is None or not metadata.etag:
        raise UserError(f"the hub does not say the size of {card.repo}/{card.file}", fix="try again later")
    return Transfer(file, address, metadata.size, metadata.etag)


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
def _alone(transfer: Transfer) -> Iterator[None]:
    """Be the only process that brings a file; raises UserError: another one is at it."""
    what = f"{transfer.file.card.file}: another process is downloading it"
    with (
        lock_of(transfer.file.expected).open("w") as lock,
        alone(lock, UserError(what, fix="wait for it to end")),
    ):
        yield


def _run(transfer: Transfer) -> None:
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
        return UserError(f"the hub refuses {card.repo}/{card.file} @ {card.revision}: {_cause(error)}")
    wanted: dict[str, list[str]] = {}
    for other in (other.card for other in together):
        kind = "" if other.kind == "model" else f" --repo-type {other.kind}"
        command = f"hf download {other.repo} {{}} --revision {other.revision}{kind} --local-dir {file.owner}"
        wanted.setdefault(command, []).append(other.file)
    commands = "; ".join(command.format(" ".join(names)) for command, names in wanted.items())
    names = ", ".join(f"{other.card.repo}/{other.card.file}" for other in together)
    return UserError(
        f"cannot reach the hub for {names} ({_cause(error)})",
        fix=f"on a machine with a network: {commands}; then copy the files to {together[0].expected.parent}",
    )


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
