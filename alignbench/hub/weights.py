"""Weights on disk: where they are (`locate`), how they get there (`fetch`), that they are the right ones.

Looking is quick, reads no file and loads no network library; only `fetch` hashes and downloads. Nothing here
opens a checkpoint: reading weights is the backbones' business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignbench.errors import UserError
from alignbench.files import cache_root as cache_root
from alignbench.files import file_sha256 as file_sha256
from alignbench.files import package_file
from alignbench.hub import download
from alignbench.hub.digests import check_digest as check_digest
from alignbench.hub.digests import judge, promised
from alignbench.registry.schema import ModelCard, WeightFile

Log = Callable[[str], None]


# --- where files are ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FileStatus:
    """What is known about one weight file without reading it."""

    role: str
    """`policy`, `tokenizer` or `text`."""
    file: WeightFile | None
    """The card's entry; None for a path given by the user."""
    path: Path | None
    """Where it was found; None: nowhere."""
    expected: Path
    """Where it belongs."""
    size_ok: bool
    """It was found and has the card's size (without one: it is not empty)."""
    reason: str
    """What is wrong, or where it was found."""
    fix: str = ""
    """What to do about it; empty when nothing is wrong."""

    @property
    def ok(self) -> bool:
        return self.path is not None and self.size_ok

    @property
    def sha256(self) -> str | None:
        """The digest that the card promises, not compared with the file: `verify` does that."""
        return self.file.sha256 if self.file else None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "role": self.role,
            "path": str(self.path) if self.path else None,
            "expected": str(self.expected),
            "ok": self.ok,
            "reason": self.reason,
            "fix": self.fix,
            "sha256": self.sha256,
        }


def locate(model: str, card: ModelCard, overrides: Mapping[str, str] | None = None) -> dict[str, FileStatus]:
    """Find the weight files of a model.

    Looked at in this order: the path given by the user, files shipped in the package,
    `cache_root()/weights/<model>/`, the Hugging Face cache. The first one that exists is taken; a wrong size
    there is reported, not skipped.

    Args:
        model: name of the card.
        card: the card.
        overrides: {role: path} as given by `--set model.<role>=PATH`; an empty path counts as not given.

    Returns:
        {role: status}; further files of one role (shards) are keyed `<role>.2`, `<role>.3` and so on. A path
        given by the user stands for all files of its role.
    """
    given = {role: path for role, path in (overrides or {}).items() if path}
    statuses = {role: _given(role, Path(path).expanduser()) for role, path in given.items()}
    seen: dict[str, int] = {}
    for file in card.files:
        if file.role not in given:
            seen[file.role] = seen.get(file.role, 0) + 1
            key = file.role if seen[file.role] == 1 else f"{file.role}.{seen[file.role]}"
            statuses[key] = _look(model, file)
    return statuses


def _given(role: str, path: Path) -> FileStatus:
    found = path.is_file()
    sound = found and path.stat().st_size > 0
    # An export or a fine-tuned copy may have any size: only emptiness is wrong here.
    reason = f"given as model.{role}" if sound else f"model.{role} = {path}: {_complaint(path)}"
    return FileStatus(
        role=role,
        file=None,
        path=path if found else None,
        expected=path,
        size_ok=sound,
        reason=reason,
        fix="" if sound else f"--set model.{role}=PATH with the path of a weight file",
    )


def _complaint(path: Path) -> str:
    if path.is_file():
        return "the file is empty"
    return "a folder, not a file" if path.is_dir() else "no such file"


def _look(model: str, file: WeightFile) -> FileStatus:
    expected = _place(model, file)
    path = expected if expected.is_file() else _in_hub_cache(file)
    size = path.stat().st_size if path else 0
    sound = size > 0 and size == (file.size or size)
    reason, fix = f"found: {path}", ""
    if path is None:
        reason, fix = _missing(model, file, expected)
    elif not sound:
        reason = f"{path} has {size} bytes and should {f'have {file.size}' if file.size else 'not be empty'}"
        fix = f"delete it, then: alignbench fetch {model}" if file.repo else "replace it"
    return FileStatus(
        role=file.role, file=file, path=path, expected=expected, size_ok=sound, reason=reason, fix=fix
    )


def _place(model: str, file: WeightFile) -> Path:
    """Where a file belongs."""
    if file.shipped:
        return package_file(file.path)
    return cache_root() / "weights" / model / file.path


def _in_hub_cache(file: WeightFile) -> Path | None:
    if not file.repo:
        return None
    from huggingface_hub import constants

    # The import behind the real look-up costs a quarter of a second: skip it where the repository is absent.
    if not (Path(constants.HF_HUB_CACHE) / f"models--{file.repo.replace('/', '--')}").is_dir():
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        file.repo, file.path, cache_dir=constants.HF_HUB_CACHE, revision=file.revision
    )
    return Path(found) if isinstance(found, str) else None


def _missing(model: str, file: WeightFile, expected: Path) -> tuple[str, str]:
    """Return (reason, fix)."""
    reason = f"{expected.name} is not in {expected.parent}"
    if file.shipped:
        return reason, "the installation is incomplete: reinstall alignbench"
    own = f"--set model.{file.role}=PATH"
    if not file.repo:
        return f"{reason}, and no public release exists", f"{own}, or put your own file there"
    return reason, f"alignbench fetch {model}, or {own}"


def verify(status: FileStatus) -> str:
    """Return the SHA-256 of a file that was found; see `check_digest` for what it is compared with.

    Of an index given by the user (`….index.json`) it covers the files it lists.

    Raises:
        UserError: it is not the file that was meant.
    """
    assert status.path is not None, f"{status.role} was not found"
    if status.file is None and status.path.name.endswith(".index.json"):
        return _index_sha256(status.path)
    if status.file is None:
        return file_sha256(status.path)
    return check_digest(status.file, status.path)


def _index_sha256(path: Path) -> str:
    """Hash an index of sharded weights with everything it lists."""
    try:
        listed = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        digests = {name: file_sha256(path.parent / name) for name in [path.name, *listed]}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not an index of weight files", fix="name a weight file") from error
    except OSError as error:
        raise UserError(f"{path} lists {error.filename}: {(error.strerror or '').lower()}") from error
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


# --- how they get there ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Fetched:
    """What `fetch` did about one file."""

    role: str
    path: Path
    action: Literal["present", "downloaded", "would download", "bring your own"]
    size: int | None
    """Bytes; None: not known before the download, or no file."""
    sha256: str | None
    """None where nothing was hashed."""


def fetch(model: str, card: ModelCard, *, dry_run: bool = False, say: Log | None = None) -> list[Fetched]:
    """Download the files of a model that are not there yet, and check all of them.

    Calling again continues a broken transfer where it stopped. A file gets its final name only after its size
    and digest were checked.

    Args:
        model: name of the card.
        card: the card.
        dry_run: say what would be done; needs no network and hashes nothing.
        say: called with one line at a time; licence and sizes come before the first byte.

    Returns:
        One entry a file, in the card's order. Files without a public release are reported, not an error.

    Raises:
        UserError: no network, no such file on the hub, a wrong size or digest, not enough room.
        RunFailed: the disk filled up or the connection broke half-way; the part that arrived is kept.
    """
    say = say or (lambda line: None)
    statuses = list(locate(model, card).values())
    pairs = list(zip(card.files, statuses, strict=True))
    for file, status in pairs:
        if not status.ok and (status.path is not None or file.shipped):
            raise UserError(status.reason, fix=status.fix)
    absent = [(file, status.expected) for file, status in pairs if status.path is None and file.repo]
    say(f"{model}: licence {card.licence or 'not stated'}")
    for file, target in absent:
        say(f"{file.repo}/{file.path} @ {file.revision[:12]}, {download.human_size(file.size)} → {target}")
    arrived = _download(model, absent, say) if absent and not dry_run else {}
    return [_outcome(file, status, dry_run, arrived, say) for file, status in pairs]


def _download(model: str, absent: Sequence[tuple[WeightFile, Path]], say: Log) -> dict[Path, str]:
    """Bring the files; {target: digest}."""
    offers = download.ask(model, absent)
    for offer in offers:
        _check_offer(offer)
    download.check_room(offers)
    digests = {}
    for offer in offers:
        say(f"downloading {offer.file.path}, {download.human_size(offer.remaining)} to go")
        download.run(offer)
        digest = judge(offer.file, offer.partial, file_sha256(offer.partial), offer.sha256)
        offer.partial.replace(offer.target)
        digests[offer.target] = digest
    return digests


def _check_offer(offer: download.Transfer) -> None:
    """Raise UserError if the hub has another file than the card means, before gigabytes are moved."""
    file = offer.file
    wanted = promised(file) or offer.sha256
    if offer.size != (file.size or offer.size) or (offer.sha256 or wanted) != wanted:
        raise UserError(
            f"{file.repo}/{file.path} @ {file.revision[:12]} is not the file its card means: the hub has "
            f"{offer.size} bytes with SHA-256 {offer.sha256}, wanted are {file.size or 'any'} with {wanted}",
            fix=f"--set model.{file.role}=PATH with a copy you trust, or update the card",
        )


def _outcome(
    file: WeightFile, status: FileStatus, dry_run: bool, arrived: Mapping[Path, str], say: Log
) -> Fetched:
    if status.expected in arrived:
        size = status.expected.stat().st_size
        return Fetched(file.role, status.expected, "downloaded", size, arrived[status.expected])
    if status.path is None and file.repo:
        return Fetched(file.role, status.expected, "would download", file.size, None)
    if status.path is None:
        say(f"{status.reason} → {status.fix}")
        return Fetched(file.role, status.expected, "bring your own", None, None)
    size = status.path.stat().st_size
    if dry_run:
        return Fetched(file.role, status.path, "present", size, None)
    say(f"checking {status.path}")
    return Fetched(file.role, status.path, "present", size, check_digest(file, status.path))
