"""Hugging Face data sets: from the hub, or from a folder written by `save_to_disk`.

Needs the optional `datasets` package. Only its tables are used: pictures are decoded, checked and
cropped here, by the same rules as files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignbench.data.captioned import NO_CAPTION, Listing, Sample, captions_in, open_samples
from alignbench.data.dataset import ProgressCallback
from alignbench.data.encoded import EncodedImages, Source, UnreadableImage, choose, open_encoded
from alignbench.errors import UserError, suggest
from alignbench.registry.schema import Scalar

TRAIN = "train"
"""Split that the option `split` renames."""


def open_hub(
    *,
    split: str,
    image_size: int,
    num_classes: int | None,
    options: Mapping[str, Scalar],
    workers: int,
    cache_dir: Path,
    progress: ProgressCallback | None = None,
) -> EncodedImages:
    """Open a data set; arguments as in `open_dataset`.

    Options: `path` (hub id or folder), `config`, `revision`; `split`, the table that serves as `train`
    (empty: the one of that name); `image_column`, `label_column`; `limit` images at most (0: all) chosen
    by `subset_seed`.

    Raises:
        UserError: the package is missing, the data set cannot be loaded, a column does not fit, or the
            classes are not the model's.
    """
    path, table = _open_table(options, split)
    image_column, label_column = str(options["image_column"]), str(options["label_column"])
    _check_column(table, path, "image_column", image_column, _is_picture, "images")
    what = "class ids (ClassLabel or whole numbers)"
    _check_column(table, path, "label_column", label_column, _is_class, what)
    labels = _labels(table, path, label_column)
    class_names = _class_names(table.features[label_column], labels, num_classes, path)
    numbers = [str(row) for row in range(len(table))]
    rows = choose(numbers, limit=int(options["limit"]), seed=int(options["subset_seed"]))
    pictures = _encoded(table, image_column)
    source = Source(
        title=path,
        names=[f"row {row}" for row in rows],
        labels=[int(labels[row]) for row in rows],
        class_names=class_names,
        read=lambda position: _picture(pictures[rows[position]][image_column]),
        identity=_identity(table, rows, image_column),
    )
    return open_encoded(
        source, image_size=image_size, workers=workers, cache_dir=cache_dir, progress=progress
    )


def open_text_hub(
    *,
    split: str,
    image_size: int,
    num_classes: int | None,
    options: Mapping[str, Scalar],
    workers: int,
    cache_dir: Path,
    progress: ProgressCallback | None = None,
) -> EncodedImages:
    """Open a data set of captioned images; arguments as in `open_dataset`.

    Options: those of `open_hub`, with `caption_column` for the classes, a column of texts or of lists of
    texts; `choice` among several captions of an image.

    Raises:
        UserError: the package is missing, the data set cannot be loaded, or a column does not fit.
    """
    path, table = _open_table(options, split)
    image_column, caption_column = str(options["image_column"]), str(options["caption_column"])
    _check_column(table, path, "image_column", image_column, _is_picture, "images")
    _check_column(table, path, "caption_column", caption_column, _is_text, "texts or lists of texts")
    cells = table.select_columns([caption_column]).with_format("arrow")[:][caption_column].to_pylist()
    found = [captions_in(cell) for cell in cells]
    samples = [
        Sample(f"row {row}", captions, "" if captions else NO_CAPTION) for row, captions in enumerate(found)
    ]
    pictures = _encoded(table, image_column)
    identity = _identity(table, range(len(table)), image_column)
    return open_samples(
        Listing.of(samples, lambda row: _picture(pictures[row][image_column]), identity),
        title=path,
        options=options,
        image_size=image_size,
        workers=workers,
        cache_dir=cache_dir,
        progress=progress,
    )


# --- loading --------------------------------------------------------------------------------------


def _open_table(options: Mapping[str, Scalar], split: str) -> tuple[str, Any]:
    """Return (path, table) as the options name them."""
    path = str(options["path"])
    if not path:
        raise UserError("no data set was named", fix="--set data.path=HUB_ID or a folder")
    wanted = str(options["split"]) if split == TRAIN and options["split"] else split
    return path, _load(path, str(options["config"]), str(options["revision"]), wanted)


def _load(path: str, config: str, revision: str, split: str) -> Any:
    """Return the table (`datasets.Dataset`) of one split."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "Hugging Face data sets need the package datasets", fix="pip install 'alignbench[data]'"
        ) from error
    folder = Path(path).expanduser()
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        if not saved:
            return datasets.load_dataset(path, config or None, split=split, revision=revision or None)
        opened = datasets.load_from_disk(str(folder))
    except Exception as error:  # the package raises its own, the hub's, pyarrow's and built-in errors
        raise UserError(
            f"data.path: {path} (split {split!r}) cannot be loaded: {_first_line(error)}",
            fix="offline, give a folder written by save_to_disk: --set data.path=FOLDER",
        ) from error
    if isinstance(opened, datasets.DatasetDict):
        return _pick(opened, split, path)
    if opened.split is not None and str(opened.split) != split:
        raise UserError(
            f"data.path: {path} holds the split {str(opened.split)!r}, not {split!r}",
            fix=f"--set data.split={opened.split}",
        )
    return opened


def _pick(tables: Mapping[str, Any], split: str, path: str) -> Any:
    if split not in tables:
        raise UserError(
            f"data.path: {path} has no split {split!r}, only {', '.join(tables)}.{suggest(split, tables)}",
            fix="--set data.split=NAME chooses the one to train on",
        )
    return tables[split]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# --- columns --------------------------------------------------------------------------------------


def _check_column(
    table: Any, path: str, option: str, column: str, fits: Callable[[Any], bool], what: str
) -> None:
    """Raise UserError unless a column exists and holds what is wanted; name one that does."""
    features = table.features
    fitting = [name for name, kind in features.items() if fits(kind)]
    if column in fitting:
        return
    problem = f"does not hold {what}" if column in features else "does not exist"
    raise UserError(
        f"data.{option}: column {column!r} of {path} {problem}; columns: {', '.join(features)}",
        fix=f"--set data.{option}={fitting[0]}" if fitting else f"choose a data set with {what}",
    )


def _is_picture(kind: Any) -> bool:
    import datasets

    return isinstance(kind, datasets.Image)


def _is_text(kind: Any) -> bool:
    import datasets

    if isinstance(kind, datasets.List | datasets.LargeList):
        kind = kind.feature
    return isinstance(kind, datasets.Value) and kind.dtype in ("string", "large_string")


def _is_class(kind: Any) -> bool:
    import datasets

    if isinstance(kind, datasets.ClassLabel):
        return True
    return isinstance(kind, datasets.Value) and kind.dtype.lstrip("u").startswith("int")


def _labels(table: Any, path: str, column: str) -> np.ndarray:
    """Return every row's class id, [rows] int64."""
    values = table.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    missing = [row for row, value in enumerate(values) if value is None or value < 0]
    if missing:
        raise UserError(
            f"data.label_column: {len(missing)} rows of {path} have no class, e.g. row {missing[0]}",
            fix="choose a labelled split: --set data.split=NAME",
        )
    return np.asarray(values, dtype=np.int64)


def _class_names(kind: Any, labels: np.ndarray, num_classes: int | None, path: str) -> tuple[str, ...]:
    """Return the names of the class ids.

    Whole numbers are taken as the model's ids, so that a subset of its classes is fine; a ClassLabel
    column numbers its own names, so that it must have as many as the model.
    """
    named = hasattr(kind, "names")
    found = len(kind.names) if named else int(labels.max(initial=-1)) + 1
    if num_classes is not None and found > num_classes:
        raise UserError(
            f"{path}: {found} classes, but the model knows {num_classes}", fix="choose another model"
        )
    if num_classes is not None and named and found < num_classes:
        raise UserError(
            f"{path}: {found} named classes for a model of {num_classes}, "
            "and nothing says which ids they are",
            fix="store the model's class ids as whole numbers in the label column",
        )
    return tuple(kind.names) if named else tuple(str(number) for number in range(num_classes or found))


# --- pictures -------------------------------------------------------------------------------------


def _encoded(table: Any, column: str) -> Any:
    """Return the table with nothing but the encoded pictures."""
    import datasets

    return table.select_columns([column]).cast_column(column, datasets.Image(decode=False)).with_format(None)


def _picture(cell: Mapping[str, Any] | None) -> bytes:
    if cell is None:
        raise UnreadableImage("empty cell")
    if cell["bytes"] is not None:
        return bytes(cell["bytes"])
    return Path(cell["path"]).read_bytes()


def _identity(table: Any, rows: Sequence[int], column: str) -> str:
    """Name the table's content by the fingerprint that the package keeps of it."""
    state = hashlib.sha256(json.dumps([table._fingerprint, column, len(table)]).encode())
    state.update(np.asarray(rows, dtype="<i8").tobytes())
    return state.hexdigest()
