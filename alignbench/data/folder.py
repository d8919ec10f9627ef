"""A folder of images with one sub-folder a class.

Class ids follow the sorted folder names, as ImageNet's are numbered, unless the names are whole numbers (then
they are the ids) or a list of names says otherwise. Neither order nor subset depends on the file system.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignbench.data.encoded import Source
from alignbench.data.numbered import choose
from alignbench.data.walk import EXTENSIONS, identity_of, image_names, read_file, refuse_folder
from alignbench.errors import UserError, suggest
from alignbench.files import parse_json
from alignbench.registry.class_names import SYNSET
from alignbench.registry.schema import Scalar

WHOLE = "all"
"""Split whose class folders lie directly in the root; other splits are sub-folders of the root."""

_SPLIT_NAMES = frozenset({"train", "val", "valid", "validation", "test"})
_WHOLE_NUMBER = re.compile(r"[0-9]{1,9}")
_SET_ROOT = "--set data.root=PATH"


def open_folder(*, split: str, num_classes: int | None, options: Mapping[str, Scalar], **_: object) -> Source:
    """List a folder as `open_dataset` says; the options are on the card. Raises UserError.

    `class_index` names all class folders in the order of the model's class ids: one per line, ImageNet's
    `LOC_synset_mapping.txt`, or `imagenet_class_index.json`.
    """
    root, folders, class_names = _classes(split, num_classes, options)
    ids = {name: number for number, name in enumerate(class_names)}
    listed = sorted((path, ids[folder]) for folder in folders for path in _images_of(root, folder))
    kept = choose([path for path, _ in listed], limit=int(options["limit"]), seed=int(options["subset_seed"]))
    names, labels = zip(*(listed[position] for position in kept), strict=True)
    return Source(
        title=str(root),
        names=names,
        labels=labels,
        class_names=class_names,
        read=lambda position: read_file(root / names[position]),
        identity=identity_of(root, names),
    )


def list_classes(*, split: str, num_classes: int | None, options: Mapping[str, Scalar]) -> tuple[str, ...]:
    """Return the folder name of every class id; looks at no image. Raises UserError as `open_folder` does."""
    return _classes(split, num_classes, options)[2]


def _classes(
    split: str, num_classes: int | None, options: Mapping[str, Scalar]
) -> tuple[Path, list[str], tuple[str, ...]]:
    root = _root(str(options["root"]), split)
    folders = _class_folders(root)
    return root, folders, _class_names(folders, str(options["class_index"]), num_classes, root)


def _root(option: str, split: str) -> Path:
    if not option:
        raise UserError("no image folder was given", fix=_SET_ROOT)
    root = Path(option).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder", fix=_SET_ROOT)
    if split == WHOLE:
        return root
    if not (root / split).is_dir():
        raise UserError(
            f"data.root: {root} has no sub-folder {split!r}",
            fix=f"give the folder that holds {split}/: {_SET_ROOT}",
        )
    return root / split


def _class_folders(root: Path) -> list[str]:
    """Return the names of the class folders in the order of their ids, or say why they are none."""
    try:
        entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        refuse_folder(error)
    loose = [entry for entry in entries if entry.suffix.lower() in EXTENSIONS and not entry.is_dir()]
    folders = [entry.name for entry in entries if entry.is_dir()]
    if loose:
        raise UserError(
            f"{root}: {len(loose)} images lie outside any class folder, e.g. {loose[0].name}",
            fix="put the images of each class into a sub-folder of its own",
        )
    if not folders:
        raise UserError(f"{root}: no class folders in it", fix=f"one sub-folder a class, or {_SET_ROOT}")
    if set(folders) <= _SPLIT_NAMES:
        raise UserError(
            f"{root}: {', '.join(folders)} look like splits, not like classes",
            fix=f"--set data.root={root / folders[0]}",
        )
    if len(folders) == 1:
        raise UserError(
            f"{root}: only one class folder, {folders[0]!r}",
            fix=f"at least two classes are needed, or did you mean --set data.root={root / folders[0]}?",
        )
    return folders


def _class_names(
    folders: Sequence[str], class_index: str, num_classes: int | None, root: Path
) -> tuple[str, ...]:
    """Return the folder name of every class id."""
    if class_index:
        return _indexed_names(folders, Path(class_index).expanduser(), num_classes, root)
    if all(_WHOLE_NUMBER.fullmatch(name) for name in folders):
        return _numbered_names(folders, num_classes, root)
    if num_classes is None or len(folders) == num_classes:
        return tuple(folders)
    if len(folders) > num_classes:
        raise UserError(
            f"{root}: {len(folders)} class folders, but the model knows {num_classes} classes",
            fix="choose another model, or remove the folders it was not trained on",
        )
    raise UserError(
        f"{root}: {len(folders)} class folders for a model of {num_classes} classes, "
        "and nothing says which ids they are",
        fix=f"list all {num_classes} folder names in order of id, one per line: --set data.class_index=FILE",
    )


def _numbered_names(folders: Sequence[str], num_classes: int | None, root: Path) -> tuple[str, ...]:
    """Order folders named by class ids; as texts, `10` would come before `2`."""
    ordered = sorted(folders, key=int)
    ids = [int(name) for name in ordered]
    wanted = range(len(ids) if num_classes is None else num_classes)
    if ids == list(wanted):
        return tuple(ordered)
    absent, extra = sorted(set(wanted) - set(ids)), sorted(set(ids) - set(wanted))
    problems = [f"{number} is there twice" for number in sorted({n for n in ids if ids.count(n) > 1})]
    problems += [f"{absent[0]} is missing"] if absent else []
    problems += [f"{extra[0]} is too much"] if extra else []
    raise UserError(
        f"{root}: class folders named by numbers must be the class ids 0 … {len(wanted) - 1}, but "
        f"{' and '.join(problems)}",
        fix="rename them, or list all folder names in order of id, one per line: --set data.class_index=FILE",
    )


def _indexed_names(
    folders: Sequence[str], path: Path, num_classes: int | None, root: Path
) -> tuple[str, ...]:
    try:
        names = _listed_names(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"data.class_index: {path} cannot be read: {error}") from error
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"data.class_index: {path} lists {twice!r} twice")
    if num_classes is not None and len(names) != num_classes:
        raise UserError(
            f"data.class_index: {path} lists {len(names)} classes, the model has {num_classes}",
            fix="list every class of the model, with or without images",
        )
    unknown = [folder for folder in folders if folder not in names]
    if unknown:
        raise UserError(
            f"{root}: class folder {unknown[0]!r} is not in {path}.{suggest(unknown[0], names)}",
            fix=f"add it to the list or remove the folder ({len(unknown)} such)",
        )
    return names


def _listed_names(path: Path) -> tuple[str, ...]:
    """Read a class list in any of its forms; see `open_folder`."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".json":
        entries = {int(number): entry for number, entry in parse_json(text).items()}
        return tuple(str(entries[number][0]) for number in range(len(entries)))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if all(SYNSET.match(line) for line in lines):
        return tuple(line.split(maxsplit=1)[0] for line in lines)
    return tuple(lines)


def _images_of(root: Path, folder: str) -> list[str]:
    names = image_names(root, folder)
    if not names:
        raise UserError(
            f"{root / folder}: no images in it",
            fix=f"remove the empty class folder, or add {', '.join(sorted(EXTENSIONS))} files",
        )
    return names
