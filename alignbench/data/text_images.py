"""Captioned images in whatever form they lie: files side by side, JSONL manifests, tar shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from alignbench.data import ProgressCallback
from alignbench.data.captioned import open_samples
from alignbench.data.encoded import EncodedImages
from alignbench.data.text_folder import list_folder, list_manifests
from alignbench.data.webdataset import find_shards, list_shards
from alignbench.errors import UserError
from alignbench.registry.schema import Scalar

_SET_ROOT = "--set data.root=PATH"


def open_text_images(
    *,
    split: str,
    image_size: int,
    num_classes: int | None,
    options: Mapping[str, Scalar],
    workers: int,
    cache_dir: Path,
    progress: ProgressCallback | None = None,
) -> EncodedImages:
    """Open captioned images; arguments as in `open_dataset`.

    Options: `root`, a folder or a file; `form` of what is there; `caption_key` in JSON; `choice` among
    several captions of an image; `limit` images at most (0: all) chosen by `subset_seed`.

    Raises:
        UserError: nothing there can be used, with the remedy.
    """
    if not options["root"]:
        raise UserError("no captioned images were given", fix=_SET_ROOT)
    root = Path(str(options["root"])).expanduser()
    if not root.exists():
        raise UserError(f"data.root: {root} does not exist", fix=_SET_ROOT)
    form, key = str(options["form"]), str(options["caption_key"])
    form = form_of(root) if form == "auto" else form
    if form == "folder" and not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder", fix=_SET_ROOT)
    if form == "folder":
        listing = list_folder(root, key)
    elif form == "jsonl":
        listing = list_manifests(root, key)
    else:
        listing = list_shards(root, key, workers=workers, cache_dir=cache_dir)
    return open_samples(
        listing,
        title=str(root),
        options=options,
        image_size=image_size,
        workers=workers,
        cache_dir=cache_dir,
        progress=progress,
    )


def form_of(root: Path) -> str:
    """Say in which form captioned images lie: `folder`, `jsonl` or `tar`.

    Raises:
        UserError: a file that is neither a manifest nor a shard.
    """
    if root.is_dir():
        if any(root.glob("*.jsonl")):
            return "jsonl"
        return "tar" if find_shards(root) else "folder"
    kind = root.suffix.lower().removeprefix(".")
    if kind not in ("jsonl", "tar"):
        raise UserError(f"data.root: {root} is neither a folder nor a .jsonl or .tar file", fix=_SET_ROOT)
    return kind
