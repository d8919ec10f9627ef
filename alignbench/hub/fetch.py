"""How files from outside get onto the disk: listed with licence and size first, continued where they stopped,
checked before they get their final name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from alignbench.errors import UserError
from alignbench.files import file_sha256
from alignbench.hub import download
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
    and digest were checked.

    Args:
        files: as they were located, those of one model or asset together.
        dry_run: say what would be done; needs no network and hashes nothing.
        say: called with one line at a time; licences and sizes come before the first byte.

    Returns:
        One entry a file. Those that cannot be downloaded are reported, not an error.

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
    return f"{name}: licence {card.licence or 'not stated'}, {download.human_size(card.size)}, {where}"


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
    transfers = download.ask(files)
    for transfer in transfers:
        _check_offer(transfer)
    download.check_room(transfers)
    digests = {}
    for transfer in transfers:
        say(f"downloading {transfer.file.card.file}, {download.human_size(transfer.remaining)} to go")
        download.run(transfer)
        digest = digests[transfer.file.expected] = file_sha256(transfer.partial)
        check_digest(transfer.file, transfer.partial, digest, transfer.sha256)
        transfer.partial.replace(transfer.file.expected)
    return digests


def _check_offer(transfer: download.Transfer) -> None:
    """Raise UserError if the source has another file than the card means, before gigabytes are moved."""
    size, wanted = transfer.file.card.size, promised(transfer.file)
    if size not in (None, transfer.size) or (wanted and transfer.sha256 not in (None, wanted)):
        raise UserError(
            f"{transfer.address} is not the file its card means: it has {transfer.size} bytes with SHA-256 "
            f"{transfer.sha256 or 'unknown'}, wanted are {size or 'any'} with {wanted or 'any'}",
            fix=f"--set {transfer.file.option}=PATH with a copy you trust, or update the card",
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
