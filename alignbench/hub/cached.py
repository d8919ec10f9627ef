"""Weight files of rewards: found in the Hugging Face cache or where an option says, never downloaded here.

Gigabytes in the middle of a run should be nobody's surprise: what is missing is named with the command that
brings it, before anything else is done.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from alignbench.errors import UserError
from alignbench.files import cache_root

WEIGHTS = "model.safetensors|model.safetensors.index.json|pytorch_model.bin|pytorch_model.bin.index.json"
"""Any of the forms in which transformers keeps weights."""


def hub_folder(reward: str, repo: str, revision: str, given: str, files: Sequence[str]) -> Path:
    """Return the folder that holds a repository's files.

    Args:
        reward: name, for messages.
        repo: on the hub, OWNER/NAME.
        revision: branch, tag or commit.
        given: folder in the hub's form that the user names instead; empty: look into the hub's cache.
        files: what must be there; `a|b` means any of them.

    Raises:
        UserError: the repository is not in the cache, or a file is missing from it.
    """
    if given:
        folder = Path(given).expanduser()
        fix = f"put it there, or leave path out to use {repo} from the hub's cache"
        return _with_files(reward, str(folder), folder, files, fix)
    from huggingface_hub import constants

    store = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    names = [name for alternatives in files for name in alternatives.split("|")[:1]]
    at = "" if revision == "main" else f" --revision {shlex.quote(revision)}"
    fix = f"hf download {shlex.quote(repo)}{at}"
    branch = store / "refs" / revision
    commit = branch.read_text().strip() if branch.is_file() else revision
    folder = store / "snapshots" / commit
    if not folder.is_dir():
        raise UserError(
            f"reward {reward!r} needs {', '.join(names)} of {repo} at {revision}; not in {store}",
            fix=fix,
        )
    return _with_files(reward, f"{repo} at {revision} in {folder}", folder, files, fix)


def _with_files(reward: str, place: str, folder: Path, files: Sequence[str], fix: str) -> Path:
    for alternatives in files:
        if not any((folder / name).is_file() for name in alternatives.split("|")):
            raise UserError(
                f"reward {reward!r} needs {alternatives.replace('|', ' or ')}, which is not in {place}",
                fix=fix,
            )
    return folder


def plain_file(reward: str, given: str, name: str, url: str) -> Path:
    """Return a single file: the one the user names, or the one of that name in alignbench's own cache.

    Raises:
        UserError: it is not there.
    """
    path = Path(given).expanduser() if given else cache_root() / "weights" / reward / name
    if not path.is_file():
        fix = f"curl --create-dirs -fL -o {shlex.quote(str(path))} {shlex.quote(url)}"
        raise UserError(f"reward {reward!r} needs {path}, which is not there", fix=fix)
    return path
