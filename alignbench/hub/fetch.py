"""How files from outside get onto the disk: licence and size first, then in parts, checked, then named."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from alignbench.errors import UserError
from alignbench.files import file_sha256, make_folder
from alignbench.hub.folders import INDEX, listed_shards, missing_files
from alignbench.hub.locate import FOLDER, FileStatus
from alignbench.hub.transfer import Transfer, alone_with, ask, bring, check_blob, human_size, narrowed
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
    """Say what a file is, under which licence, and where it is or comes from: each place on its own line."""
    card = file.card
    name = f"{file.owner} {file.name}" if file.is_weights else file.name
    origin = card.url or "no public source"
    if card.repo:
        origin = f"{card.repo}{'' if card.file == FOLDER else f'/{card.file}'} @ {card.revision[:12]}"
    where = f"  here: {file.path}" if file.ok else f"  from {origin}\n  to   {file.expected}"
    return f"{name}: licence {card.licence or 'not stated'}, {human_size(card.size)}\n{where}"


def _parts(file: FileStatus) -> list[FileStatus]:
    """What to download: of a folder what it lacks, alternatives as one part, and shards by their index."""
    if file.card.file != FOLDER:
        return [file]
    parts: list[FileStatus] = []
    for names in file.card.files:
        index = next((name for name in names.split("|") if (file.expected / name).is_file()), None)
        if index and missing_files(file.expected, [names]):
            parts += _shards(narrowed(file, index))
        elif not index:
            parts.append(replace(file, card=file.card.model_copy(update={"files": [names]})))
    return parts


def _shards(index: FileStatus) -> list[FileStatus]:
    """What an index of weights in a repository lists and is not there yet; nothing of another file."""
    if index.is_weights or not (index.card.repo and index.card.file.endswith(INDEX)):
        return []
    folder = index.expected.parent
    within = [str(file.relative_to(folder)) for file in listed_shards(index.expected) if not file.is_file()]
    base = index.card.file.removesuffix(index.expected.name)
    return [replace(narrowed(index, base + name), expected=folder / name) for name in within]


def _download(files: Sequence[FileStatus], say: Log) -> dict[Path, str]:
    """Bring the files of one model or asset, and shards that an index among them lists; {path: digest}."""
    transfers = ask(files)
    _check_offers(transfers)
    digests = {}
    for transfer in transfers:
        say(f"downloading {transfer.file.card.file}, {human_size(transfer.remaining)} to go")
        with alone_with(transfer):
            bring(transfer)
            check_blob(transfer)
            digest = digests[transfer.file.expected] = file_sha256(transfer.partial)
            check_digest(transfer.file, transfer.partial, digest, transfer.sha256)
            transfer.partial.replace(transfer.file.expected)
    listed = [shard for transfer in transfers for shard in _shards(transfer.file)]
    return digests | (_download(listed, say) if listed else {})


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
