"""Cards and files that the tests of this package share."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from alignbench.hub.locate import FileStatus, locate_asset, locate_weights
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import AssetCard
from alignbench.registry.schema import WeightFile

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def asset_card(**changes: Any) -> AssetCard:
    values = {"title": "Net", "licence": "MIT", "what": "network", "file": "net.pt"}
    return AssetCard.model_validate(values | changes)


def folder_card(**changes: Any) -> AssetCard:
    """A repository of two files, the second in one of two forms."""
    values = {"file": ".", "repo": "someone/net", "revision": COMMIT, "files": ["a.json", "w.st|w.bin"]}
    return asset_card(**values | changes)


def weight_file(**changes: Any) -> WeightFile:
    values = {"role": "policy", "repo": "someone/model", "revision": COMMIT, "path": "policy.pt"}
    return WeightFile.model_validate(values | changes)


def weights(*files: WeightFile, **overrides: str) -> dict[str, FileStatus]:
    """Locate weight files of a model named `mine`."""
    card = Registry.default().model("llamagen-b").model_copy(update={"files": list(files)})
    return locate_weights("mine", card, overrides)


def policy(**changes: Any) -> FileStatus:
    """Locate a weight file."""
    return weights(weight_file(**changes))["policy"]


def net(**changes: Any) -> FileStatus:
    """Locate an asset named `net`."""
    return locate_asset("net", asset_card(**changes))


def put(path: Path, content: bytes) -> Path:
    """Write a file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
