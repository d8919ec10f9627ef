"""Where files from outside are: weights of models, and what evaluators and rewards read.

Looking is quick, reads no file but an index of sharded weights, and loads no network library. What files hold
is the business of backbones, evaluators and rewards.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignbench.errors import UserError
from alignbench.files import cache_root, expand, package_file
from alignbench.hub.folders import missing_files
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import AssetCard, ProtocolCard
from alignbench.registry.reward_spec import Resolved, is_remote
from alignbench.registry.schema import ModelCard

FOLDER = "."
"""`file` of a card whose asset is a whole repository."""
WEIGHTS = "model.safetensors|model.safetensors.index.json|pytorch_model.bin|pytorch_model.bin.index.json"
"""Any of the forms in which transformers keeps weights."""


@dataclass(frozen=True, kw_only=True)
class FileStatus:
    """A file from outside: which one is meant and where it is. Nothing of it was read."""

    owner: str
    """The model or asset: what `alignbench fetch` takes."""
    option: str
    """Key of `--set` that names another file: `model.<role>` or `assets.<name>`."""
    card: AssetCard
    """Which file is meant; that of a weight file is made from its model's card."""
    expected: Path
    """Where it belongs."""
    path: Path | None = None
    """Where it was found; None: nowhere."""
    reason: str = ""
    """What is wrong, or where it was found."""
    fix: str = ""
    """What to do about it; empty when nothing is wrong."""
    overridden: bool = False
    """The user named the path, so that it may be another file than the card's."""

    @property
    def ok(self) -> bool:
        return self.path is not None and not self.fix

    @property
    def name(self) -> str:
        """Role of a weight file, name of an asset."""
        return self.option.partition(".")[2]

    @property
    def is_weights(self) -> bool:
        """Whether it belongs to a model."""
        return self.option.startswith("model.")

    @property
    def is_public(self) -> bool:
        """Whether it can be downloaded; of a repository only what its card lists."""
        return bool(self.card.url or (self.card.repo and (self.card.file != FOLDER or self.card.files)))

    @property
    def sha256(self) -> str | None:
        """The digest that the card promises, not compared with the file: `verify` does that."""
        return None if self.overridden else self.card.sha256

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "role": self.name,
            "path": str(self.path) if self.path else None,
            "expected": str(self.expected),
            "ok": self.ok,
            "reason": self.reason,
            "fix": self.fix,
            "sha256": self.sha256,
        }


def assets_of(registry: Registry, protocol: ProtocolCard) -> list[str]:
    """Name a protocol's assets: its evaluators', statistics, prompts; raises UserError: unknown evaluator."""
    names = [asset for name in protocol.evaluators for asset in registry.evaluator(name).assets]
    names += [protocol.reference.statistics] if protocol.reference else []
    return list(dict.fromkeys(filter(None, [*names, protocol.prompts])))


def locate_asset(name: str, card: AssetCard, override: str = "") -> FileStatus:
    """Find an asset.

    Looked at in this order: the path that the user names, the package if shipped, its folder of the cache,
    the card's places, the Hugging Face cache. The first file that exists is taken; a wrong size there is
    reported, not skipped. A folder counts as existing once it holds everything the card lists.

    Args:
        override: path as in `--set assets.<name>=PATH`; empty: none. It may have any size but zero, and in
            place of a network's file it may be a folder in the hub's form.
    """
    folder = package_file("") if card.shipped else cache_root() / "assets" / name
    status = FileStatus(owner=name, option=f"assets.{name}", card=card, expected=folder / card.file)
    return _overridden(status, Path(override).expanduser()) if override else _looked_up(status)


def locate_weights(
    model: str, card: ModelCard, overrides: Mapping[str, str] | None = None
) -> dict[str, FileStatus]:
    """Find the weight files of a model, as `locate_asset` finds an asset.

    Args:
        overrides: {role: path} as `--set model.<role>=PATH` names them; an empty path counts for nothing.

    Returns:
        {role: status}; further files of one role (shards) are keyed `<role>.2`, `<role>.3` and so on. A path
        that the user names stands for all files of its role.
    """
    paths = {role: Path(path).expanduser() for role, path in (overrides or {}).items() if path}
    statuses = {}
    for role, path in paths.items():
        any_file = AssetCard(title=role, what="network", file=path.name)
        status = FileStatus(owner=model, option=f"model.{role}", card=any_file, expected=path)
        statuses[role] = _overridden(status, path)
    for file in card.files:
        if file.role in paths:
            continue
        shards = sum(key.partition(".")[0] == file.role for key in statuses)
        folder = package_file("") if file.shipped else cache_root() / "weights" / model
        values = file.model_dump(exclude={"role", "path"})
        status = FileStatus(
            owner=model,
            option=f"model.{file.role}",
            card=AssetCard(title=file.role, what="network", licence=card.licence, file=file.path, **values),
            expected=folder / file.path,
        )
        statuses[f"{file.role}.{shards + 1}" if shards else file.role] = _looked_up(status)
    return statuses


def _looked_up(status: FileStatus) -> FileStatus:
    card = status.card
    for path in _candidates(status):
        if card.file == FOLDER and not missing_files(path, card.files):
            return replace(status, path=path, reason=f"found: {path}")
        if card.file != FOLDER and path.is_file():
            size = path.stat().st_size
            if size and size == (card.size or size):
                return replace(status, path=path, reason=f"found: {path}")
            wanted = f"have {card.size}" if card.size else "not be empty"
            reason = f"{path} has {size} bytes and should {wanted}"
            return replace(status, path=path, reason=reason, fix=how_to_replace(status))
    expected, own = status.expected, f"--set {status.option}=PATH"
    reason = f"{expected.name} is not in {expected.parent}"
    if card.file == FOLDER:
        reason = f"{expected} lacks {' and '.join(missing_files(expected, card.files))}"
    if card.shipped:
        fix = "the installation is incomplete: reinstall alignbench"
    elif status.is_public:
        fix = f"alignbench fetch {status.owner}, or {own}"
    elif status.is_weights:
        reason, fix = f"{reason}, and no public release exists", f"{own}, or put your own file there"
    else:
        fix = f"no public source is known: {own}, or put it at {expected}"
    return replace(status, reason=reason, fix=fix)


def _candidates(status: FileStatus) -> Iterator[Path]:
    card = status.card
    yield status.expected
    if not card.shipped:
        yield from map(expand, card.places)
        if card.repo:
            yield snapshot_folder(card.repo, card.revision, card.kind) / card.file


def snapshot_folder(repo: str, revision: str, kind: str = "model") -> Path:
    """Return where the Hugging Face cache keeps a revision (branch, tag or commit) of a repository."""
    from huggingface_hub import constants

    store = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo.replace('/', '--')}"
    branch = store / "refs" / revision
    return store / "snapshots" / (branch.read_text().strip() if branch.is_file() else revision)


def how_to_replace(status: FileStatus) -> str:
    """What to do about a wrong file."""
    if status.card.shipped:
        return "reinstall alignbench"
    return f"delete it, then: alignbench fetch {status.owner}" if status.is_public else "replace it"


def _overridden(status: FileStatus, path: Path) -> FileStatus:
    """Look at a path that the user names."""
    card, wrong = status.card, ""
    if not path.exists():
        wrong = "no such file"
    elif path.is_file() and card.file == FOLDER:
        wrong = "a file, not a folder"
    elif path.is_file():
        wrong = "" if path.stat().st_size else "the file is empty"
    elif status.is_weights or card.what != "network":
        wrong = "a folder, not a file"
    elif missing := missing_files(path, card.files):
        wrong = f"the folder lacks {' and '.join(missing)}"
    wanted = f"the path of {'a weight file' if status.is_weights else card.file}"
    if card.file == FOLDER:
        wanted = f"a folder that holds {', '.join(card.files)}".replace("|", " or ")
    return replace(
        status,
        expected=path,
        path=path if path.is_file() or not wrong else None,
        reason=f"{status.option} = {path}: {wrong}" if wrong else f"given as {status.option}",
        fix=f"--set {status.option}=PATH with {wanted}" if wrong else "",
        overridden=True,
    )


# --- what rewards read ----------------------------------------------------------------------------


def locate_reward_files(registry: Registry, resolved: Resolved) -> list[FileStatus]:
    """Find what a reward reads and pip does not bring; nothing of what a server computes."""
    if is_remote(str(resolved.common["placement"])):
        return []
    values = {key: str(value) for key, value in resolved.options.items()}
    statuses = []
    for file in resolved.card.files:
        if not file.needed(resolved.options):
            continue
        repo, revision = file.repo.format_map(values), file.revision.format_map(values)
        path = values.get(file.option, "")
        if file.asset:
            status = locate_asset(file.asset, registry.asset(file.asset), path)
        elif repo:
            names = [name.format_map(values) for name in file.files]
            status = _in_hub(resolved.name, repo, revision, names, path)
        else:
            status = _plain(file.file, file.url, path)
        # By the reward's name those of its default options are fetched.
        fix = status.fix if file.when else status.fix and _how_to_get(resolved.name, status)
        if fix and file.option:
            fix += f", or {resolved.name}({file.option}=PATH)"
        card = status.card.model_copy(update={"licence": status.card.licence or resolved.card.licence})
        statuses.append(replace(status, card=card, fix=fix))
    return statuses


def _in_hub(reward: str, repo: str, revision: str, files: Sequence[str], path: str) -> FileStatus:
    """Locate a repository; an asset named like the reward may hold the same files."""
    title, name = f"{repo} @ {revision}", f"{repo.replace('/', '--')}@{revision[:12]}"
    places = [str(cache_root() / "assets" / reward)]
    about = {"title": title, "what": "network", "repo": repo, "revision": revision, "places": places}
    card = AssetCard.model_validate({**about, "file": FOLDER, "files": list(files)})
    return locate_asset(name, card, path)


def _plain(file: str, url: str, path: str) -> FileStatus:
    return locate_asset(Path(file).stem, AssetCard(title=file, what="network", file=file, url=url), path)


def hub_folder(reward: str, repo: str, revision: str, path: str, files: Sequence[str]) -> Path:
    """Return the folder that holds a repository's files for a reward; nothing is downloaded in mid-run.

    Args:
        reward: for messages.
        path: folder in the hub's form that the user names instead; empty: alignbench's and the hub's caches.
        files: what must be there; `a|b` means any of them.

    Raises:
        UserError: files are missing.
    """
    return _of_reward(reward, _in_hub(reward, repo, revision, files, path))


def plain_file(reward: str, path: str, name: str, url: str) -> Path:
    """Return a file for a reward: the user's, or the one in the cache; raises UserError if absent."""
    return _of_reward(reward, _plain(name, url, path))


def _of_reward(reward: str, status: FileStatus) -> Path:
    if not status.ok or status.path is None:
        raise UserError(f"reward {reward!r}: {status.reason}", fix=_how_to_get(reward, status))
    return status.path


def _how_to_get(reward: str, status: FileStatus) -> str:
    if status.overridden:
        return "put it there, or leave the option out"
    card = status.card
    by_hand = f", or hf download {shlex.quote(card.repo)} --revision {card.revision}" if card.repo else ""
    return f"alignbench fetch {shlex.quote(reward)}{by_hand}"
