"""Files from outside that evaluators read: where they are (`locate`), which bytes they are (`verify`).

Looking is quick, reads no file and loads no network library. Nothing is downloaded (`fetch_assets` does
that, on request), and nothing is opened for its content: that is the evaluators' business.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignbench.errors import UserError
from alignbench.files import cache_root, digest_of, expand, package_file
from alignbench.hub.digests import KnownDigests
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import AssetCard, ProtocolCard

FOLDER = "."
"""`file` of a card whose asset is a whole repository."""


@dataclass(frozen=True)
class AssetFile:
    """An asset as an evaluator gets it."""

    name: str
    path: Path
    """A file, or a folder in the hub's form."""
    sha256: str
    """Of the file; of a folder, over names and digests of its files."""


@dataclass(frozen=True, kw_only=True)
class AssetStatus:
    """What is known about an asset without reading it."""

    name: str
    ok: bool
    path: Path | None
    """Where it was found; None: nowhere."""
    expected: Path
    """Where it belongs."""
    reason: str
    """What is wrong, or where it was found."""
    fix: str = ""
    """What to do about it; empty when nothing is wrong."""
    given: bool = False
    """The path was named by the user."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "name": self.name,
            "ok": self.ok,
            "path": str(self.path) if self.path else None,
            "expected": str(self.expected),
            "reason": self.reason,
            "fix": self.fix,
            "given": self.given,
        }


def assets_of(registry: Registry, protocol: ProtocolCard) -> list[str]:
    """Return the names of all assets a protocol reads: its evaluators', its statistics, its prompts.

    Raises:
        UserError: an evaluator that does not exist.
    """
    names = [asset for name in protocol.evaluators for asset in registry.evaluator(name).assets]
    names += [protocol.reference.statistics] if protocol.reference else []
    return list(dict.fromkeys(filter(None, [*names, protocol.prompts])))


# --- where they are -------------------------------------------------------------------------------
def locate(name: str, card: AssetCard, override: str = "") -> AssetStatus:
    """Find an asset.

    Looked at in this order: the path given by the user, the package if shipped,
    `cache_root()/assets/<name>/`, the card's places, the Hugging Face cache. The first file that exists is
    taken; a wrong size there is reported, not skipped. A folder counts as existing once it holds everything
    the card lists.

    Args:
        name: of the card.
        card: the card.
        override: path as given by `--set assets.<name>=PATH`; empty: none. In place of a network's file it
            may be a folder in the hub's form.
    """
    if override:
        return _given(name, card, Path(override).expanduser())
    expected = _home(name, card)
    for path in (expected, *_elsewhere(card)):
        if not _missing_files(card, path) if card.file == FOLDER else path.is_file():
            return _found(name, card, path, expected)
    reason = f"{expected.name} is not in {expected.parent}"
    if card.file == FOLDER:
        reason = f"{expected} lacks {' and '.join(_missing_files(card, expected))}"
    return AssetStatus(
        name=name, ok=False, path=None, expected=expected, reason=reason, fix=_fix(name, card, expected)
    )


def _given(name: str, card: AssetCard, path: Path) -> AssetStatus:
    complaint = _complaint(card, path)
    return AssetStatus(
        name=name,
        ok=not complaint,
        path=path if path.exists() else None,
        expected=path,
        reason=f"assets.{name} = {path}: {complaint}" if complaint else f"given as assets.{name}",
        fix=f"--set assets.{name}=PATH with {_what(card)}" if complaint else "",
        given=True,
    )


def _complaint(card: AssetCard, path: Path) -> str:
    """What is wrong with a path given by the user; empty: nothing."""
    if not path.exists():
        return "no such file"
    if path.is_file():
        if card.file == FOLDER:
            return "a file, not a folder"
        return "" if path.stat().st_size else "the file is empty"
    if card.what != "network":
        return "a folder, not a file"
    missing = _missing_files(card, path)
    return f"the folder lacks {' and '.join(missing)}" if missing else ""


def _what(card: AssetCard) -> str:
    if card.file != FOLDER:
        return f"the path of {card.file}"
    return f"a folder that holds {', '.join(card.files)}".replace("|", " or ")


def _home(name: str, card: AssetCard) -> Path:
    """Where an asset belongs."""
    if card.shipped:
        return package_file(card.file)
    return cache_root() / "assets" / name / card.file


def _elsewhere(card: AssetCard) -> Iterator[Path]:
    """Where other programs keep it."""
    if card.shipped:
        return
    yield from map(expand, card.places)
    if card.repo:
        from huggingface_hub import constants

        store = Path(constants.HF_HUB_CACHE) / f"{card.kind}s--{card.repo.replace('/', '--')}"
        branch = store / "refs" / card.revision
        commit = branch.read_text().strip() if branch.is_file() else card.revision
        yield store / "snapshots" / commit / card.file


def _missing_files(card: AssetCard, folder: Path) -> list[str]:
    """What a card lists and a folder lacks; of a card without a list, anything at all."""
    missing = [
        names.replace("|", " or ")
        for names in card.files
        if not any((folder / name).is_file() for name in names.split("|"))
    ]
    if not card.files and not (folder.is_dir() and any(path.is_file() for path in folder.iterdir())):
        missing.append("any file")
    return missing


def _found(name: str, card: AssetCard, path: Path, expected: Path) -> AssetStatus:
    size = path.stat().st_size
    sound = card.file == FOLDER or (size > 0 and size == (card.size or size))
    wanted = f"have {card.size}" if card.size else "not be empty"
    return AssetStatus(
        name=name,
        ok=sound,
        path=path,
        expected=expected,
        reason=f"found: {path}" if sound else f"{path} has {size} bytes and should {wanted}",
        fix="" if sound else _again(name, card),
    )


def _again(name: str, card: AssetCard) -> str:
    """How to replace a wrong file."""
    if card.shipped:
        return "reinstall alignbench"
    return f"delete it, then: alignbench fetch {name}" if card.url or card.repo else "replace it"


def _fix(name: str, card: AssetCard, expected: Path) -> str:
    if card.shipped:
        return "the installation is incomplete: reinstall alignbench"
    if card.url or card.repo:
        return f"alignbench fetch {name}, or --set assets.{name}=PATH"
    return f"no public source is known: --set assets.{name}=PATH, or put it at {expected}"


# --- which bytes they are -------------------------------------------------------------------------
def verify(name: str, card: AssetCard, status: AssetStatus) -> AssetFile:
    """Return an asset that was found, with its digest.

    Digests are remembered by path, size and time of change, so that gigabytes are read once.

    Raises:
        UserError: it is not there, or not the file on the card. A file given by the user may be another one.
    """
    if not status.ok or status.path is None:
        raise UserError(f"asset {name!r}: {status.reason}", fix=status.fix)
    digest = _digest(card, status.path)
    if card.sha256 and digest != card.sha256 and not status.given:
        own = f"--set assets.{name}={shlex.quote(str(status.path))}"
        raise UserError(
            f"asset {name!r}: {status.path} has SHA-256 {digest}, its card says {card.sha256}",
            fix=f"{_again(name, card)}; or {own} to use it all the same, in rows apart",
        )
    return AssetFile(name, status.path, digest)


def is_official(card: AssetCard, file: AssetFile) -> bool:
    """Whether a file is known to be the one its card means."""
    return card.sha256 is not None and file.sha256 == card.sha256


def _digest(card: AssetCard, path: Path) -> str:
    remembered = KnownDigests.read()
    if path.is_file():
        digest = remembered.sha256(path)
    else:
        digest = digest_of({name: remembered.sha256(path / name) for name in _contents(card, path)})
    remembered.write()
    return digest


def _contents(card: AssetCard, folder: Path) -> list[str]:
    """Names of the files that make up a folder: those the card lists, else all."""
    if card.file == FOLDER and card.files:
        names = [name for alternatives in card.files for name in alternatives.split("|")]
        return sorted(name for name in names if (folder / name).is_file())
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
