"""Which bytes a file from outside consists of, and whether they are those that its card means."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alignbench.api import Prompt
from alignbench.errors import Problem, UserError
from alignbench.files import (
    cache_root,
    digest_of,
    file_digests,
    in_turn,
    make_folder,
    read_json,
    write_json,
)
from alignbench.hub.folders import INDEX, listed_shards
from alignbench.hub.locate import FileStatus, how_to_replace
from alignbench.registry.protocol import AssetCard, ProtocolCard

FIRST_USE = "weights/digests.json"
"""In the cache: SHA-256 of weights from the hub that have none on their card, as they first came."""
MEMORY = "assets/digests.json"
"""In the cache: digests of files, so that gigabytes are read once; see `files.file_digests`."""


@dataclass(frozen=True)
class AssetFile:
    """An asset as an evaluator gets it."""

    name: str
    path: Path
    """A file, or a folder in the hub's form."""
    sha256: str
    """Of the file; of a folder, over names and digests of its files."""


@dataclass(frozen=True)
class Requirements:
    """A protocol with the files its evaluators read."""

    digest: str
    """Identity of the protocol; files other than those on the cards count."""
    protocol: ProtocolCard
    """As given, but for the number of images where the user's own prompts decide it."""
    assets: dict[str, AssetFile] = field(default_factory=dict)
    """Files that evaluators read, by asset name; those that were found."""
    prompts: Sequence[Prompt] = ()
    """What a text protocol generates from."""
    problems: Sequence[Problem] = ()


def verify_asset(status: FileStatus) -> AssetFile:
    """Return an asset with its digest; raises UserError: it is not there, or not the file on the card."""
    if not status.ok or status.path is None:
        raise UserError(f"asset {status.name!r}: {status.reason}", fix=status.fix)
    return AssetFile(status.name, status.path, verify(status))


def verify(status: FileStatus) -> str:
    """Return the SHA-256 of a file that was found after comparing it with the promised one.

    Of a folder it covers names and digests of its files, of an index of sharded weights (`….index.json`) that
    the user names the files it lists. What the user names may be any file; another one is a UserError.
    """
    path = status.path
    assert path is not None, f"{status.option} was not found"
    if status.is_weights and status.overridden and path.name.endswith(".index.json"):
        digest = _index_sha256(path)
    elif path.is_file():
        (digest,) = file_digests([path], cache_root() / MEMORY)
    else:
        names = _contents(path, status.card.files)
        digests = file_digests([path / name for name in names], cache_root() / MEMORY)
        digest = digest_of(dict(zip(names, digests, strict=True)))
    if not status.overridden:
        check_digest(status, path, digest)
    return digest


def promised(status: FileStatus) -> str | None:
    """Return the digest on the card, else for weights from the hub the one recorded at first use."""
    if status.sha256 or not (status.is_weights and status.card.repo):
        return status.sha256
    return _first_use().get(_address(status.card))


def check_digest(status: FileStatus, path: Path, digest: str, offered: str | None = None) -> None:
    """Compare the digest of `path` with the promised one, else with the one its server offers.

    That of weights from the hub without a digest on their card is recorded at the first call. Raises
    UserError if the digests differ.
    """
    card, before = status.card, promised(status)
    wanted = before or offered
    if wanted not in (None, digest):
        authority = "its card" if card.sha256 else cache_root() / FIRST_USE if before else "the hub"
        fix = f"delete {path} and fetch it again; if it differs again, {card.repo or 'its source'} changed"
        if path == status.path:
            own = f"--set {status.option}={shlex.quote(str(path))}"
            fix = f"{how_to_replace(status)}; or {own} to use it all the same, in rows apart"
        raise UserError(f"{path} has SHA-256 {digest}, {authority} says {wanted}", fix=fix)
    if status.is_weights and card.repo and not before and not _recorded(_address(card), digest):
        check_digest(status, path, digest, offered)  # another process was first


def _index_sha256(path: Path) -> str:
    """Hash an index of sharded weights with everything it lists."""
    files = [path, *listed_shards(path)]
    try:
        digests = file_digests(files, cache_root() / MEMORY)
    except OSError as error:
        raise UserError(f"{path} lists {error.filename}: {(error.strerror or '').lower()}") from error
    listed = {str(file.relative_to(path.parent)): digest for file, digest in zip(files, digests, strict=True)}
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()


def _contents(folder: Path, files: Sequence[str]) -> list[str]:
    """Names of the files that make up a folder: those the card lists and their shards, else all."""
    if files:
        names = [name for alternatives in files for name in alternatives.split("|")]
        listed = {name for name in names if (folder / name).is_file()}
        indexes = [folder / name for name in listed if name.endswith(INDEX)]
        parts = [file for path in indexes for file in listed_shards(path) if file.is_file()]
        return sorted(listed | {str(file.relative_to(folder)) for file in parts})
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- the records ----------------------------------------------------------------------------------


def _address(card: AssetCard) -> str:
    return f"{card.repo}@{card.revision}/{card.file}"


def _recorded(address: str, digest: str) -> bool:
    """Record a digest; False: one is there already."""
    make_folder(cache_root() / "weights")
    with in_turn(cache_root() / FIRST_USE):
        known = _first_use()
        if address not in known:
            write_json(cache_root() / FIRST_USE, {**known, address: digest})
        return address not in known


def _first_use() -> dict[str, str]:
    path = cache_root() / FIRST_USE
    try:
        return read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}", fix="delete it: digests are recorded anew") from error
