"""Which SHA-256 a weight file must have: its card's, or the one recorded when it was first downloaded; and
digests of files read before.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignbench.errors import UserError
from alignbench.files import cache_root, file_sha256, make_folder, write_atomic
from alignbench.registry.schema import WeightFile


def promised(file: WeightFile) -> str | None:
    """Return the digest on the card, else the recorded one, else None."""
    return file.sha256 or _recorded().get(_address(file))


def check_digest(file: WeightFile, path: Path) -> str:
    """Return a file's SHA-256 after comparing it with the card's, else with the one recorded before.

    The digest of a hub file that has none on its card is recorded in `weights/digests.json` at the first call
    (trust on first use) and compared from then on. A file without a repository is only hashed.

    Raises:
        UserError: the digests differ.
    """
    return judge(file, path, file_sha256(path))


def judge(file: WeightFile, path: Path, digest: str, offered: str | None = None) -> str:
    """Return the digest of `path` if it is the promised one, or the one offered by the hub where none is."""
    recorded = _recorded().get(_address(file))
    wanted = file.sha256 or recorded or offered
    if wanted is not None and digest != wanted:
        where = "its card says" if file.sha256 else f"{_digest_file()} says" if recorded else "the hub says"
        again = f"delete {path} and fetch it again; if it differs again, {file.repo or 'its source'} changed"
        raise UserError(
            f"{path} has SHA-256 {digest}, {where} {wanted}",
            fix="reinstall alignbench" if file.shipped else again,
        )
    if file.repo and not file.sha256 and not recorded:
        _record({**_recorded(), _address(file): digest})
    return digest


def _address(file: WeightFile) -> str:
    return f"{file.repo}@{file.revision}/{file.path}"


def _digest_file() -> Path:
    return cache_root() / "weights" / "digests.json"


def _recorded() -> dict[str, str]:
    if not _digest_file().is_file():
        return {}
    try:
        return dict(json.loads(_digest_file().read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"{_digest_file()} is not readable JSON: {error}", fix="mend or delete it") from error


def _record(digests: Mapping[str, str]) -> None:
    make_folder(_digest_file().parent)
    write_atomic(_digest_file(), json.dumps(digests, indent=2, sort_keys=True) + "\n")


@dataclass
class KnownDigests:
    """Digests of assets by path, size and time of change, in `cache_root()/assets/digests.json`, so that
    gigabytes are read once."""

    entries: dict[str, Any]
    fresh: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls) -> KnownDigests:
        """Read the list; one that cannot be read costs nothing but time."""
        with contextlib.suppress(OSError, ValueError):
            entries = json.loads(cls.place().read_text(encoding="utf-8"))
            return cls(entries if isinstance(entries, dict) else {})
        return cls({})

    @staticmethod
    def place() -> Path:
        return cache_root() / "assets" / "digests.json"

    def sha256(self, path: Path) -> str:
        """Return a file's digest, reading it only if it may have changed."""
        real = path.resolve()
        stat = real.stat()
        seen = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        entry = self.entries.get(str(real))
        if isinstance(entry, dict) and {key: entry.get(key) for key in seen} == seen and "sha256" in entry:
            return str(entry["sha256"])
        digest = file_sha256(real)
        self.fresh[str(real)] = {**seen, "sha256": digest}
        return digest

    def write(self) -> None:
        """Add what is new. A cache that may not be written, e.g. a shared one, is simply not extended."""
        if self.fresh:
            content = json.dumps({**self.entries, **self.fresh}, indent=2, sort_keys=True) + "\n"
            with contextlib.suppress(OSError):
                write_atomic(self.place(), content)
