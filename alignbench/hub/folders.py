"""Folders in the hub's form: what must be in them, and which shards an index of weights names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from alignbench.errors import UserError
from alignbench.files import parse_json
from alignbench.registry.schema import stays_inside

INDEX = ".index.json"
"""End of the name of an index of weights in several files."""


def listed_shards(index: Path) -> list[Path]:
    """Return the files that an index of weights lists, sorted, whether or not they are there.

    Raises:
        UserError: it is no such index, or lists what does not lie beside it.
    """
    try:
        names = sorted(set(parse_json(index.read_bytes())["weight_map"].values()))
        if not names or not all(re.fullmatch(r"[\w.-][\w./-]*", stays_inside(name)) for name in names):
            raise ValueError
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        wrong = f"{index} is not an index of weight files"
        raise UserError(wrong, fix="name a weight file, or delete the index and fetch it again") from error
    return [index.parent / name for name in names]


def missing_files(folder: Path, files: Sequence[str]) -> list[str]:
    """Return what is listed and a folder lacks, `a|b` as `a or b`; without a list, anything at all.

    An index of weights counts once the files that it lists are there; they are what is lacking otherwise.
    """
    if not files:
        return [] if folder.is_dir() and any(path.is_file() for path in folder.iterdir()) else ["any file"]
    lacking: list[str] = []
    for names in files:
        present = [folder / name for name in names.split("|") if (folder / name).is_file()]
        incomplete = [_missing_shards(folder, path) for path in present]
        if all(incomplete):
            lacking += incomplete[0] if present else [names.replace("|", " or ")]
    return list(dict.fromkeys(lacking))


def _missing_shards(folder: Path, path: Path) -> list[str]:
    if not path.name.endswith(INDEX):
        return []
    try:
        return [str(shard.relative_to(folder)) for shard in listed_shards(path) if not shard.is_file()]
    except UserError:
        return [f"a whole {path.relative_to(folder)}"]
