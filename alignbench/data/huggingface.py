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

from alignbench.api import Prompt
from alignbench.data.captioned import NO_CAPTION, Listing, Sample, captioned_source, captions_in
from alignbench.data.decode import Skipped, UnreadableImage
from alignbench.data.encoded import Source
from alignbench.data.numbered import Prompts, choose, subset
from alignbench.data.walk import file_state
from alignbench.errors import UserError, suggest
from alignbench.registry.schema import Scalar

TRAIN = "train"
"""Split that the option `split` renames."""


def open_hub(*, split: str, num_classes: int | None, options: Mapping[str, Scalar], **_: object) -> Source:
    """List a data set; arguments as in `open_dataset`, options as on the card.

    Raises:
        UserError: the package is missing, the data set cannot be loaded, a column does not fit, or the
            classes are not the model's.
    """
    path, table = _open_table(options, split)
    image_column = _column(table, path, options, "image_column", "images")
    label_column = _column(table, path, options, "label_column", "class ids (ClassLabel or whole numbers)")
    labels = _labels(table, path, label_column)
    class_names = _class_names(table.features[label_column], labels, num_classes, path)
    numbers = [str(row) for row in range(len(table))]
    rows = choose(numbers, limit=int(options["limit"]), seed=int(options["subset_seed"]))
    picture = _picture_reader(table, image_column)
    return Source(
        title=path,
        names=[f"row {row}" for row in rows],
        labels=[int(labels[row]) for row in rows],
        class_names=class_names,
        read=lambda position: picture(rows[position]),
        identity=_identity(table, rows, image_column),
    )


def open_text_hub(*, split: str, options: Mapping[str, Scalar], workers: int, **_: object) -> Source:
    """List a data set of captioned images; arguments as in `open_dataset`, options as on the card.

    Raises:
        UserError: the package is missing, the data set cannot be loaded, or a column does not fit.
    """
    path, table = _open_table(options, split)
    image_column = _column(table, path, options, "image_column", "images")
    caption_column = _column(table, path, options, "caption_column", "texts or lists of texts")
    captions = [captions_in(cell) for cell in _cells(table, caption_column)]
    samples = [Sample(f"row {row}", texts, "" if texts else NO_CAPTION) for row, texts in enumerate(captions)]
    identity = _identity(table, range(len(table)), image_column)
    listing = Listing.of(samples, _picture_reader(table, image_column), identity)
    return captioned_source(listing, title=path, options=options, workers=workers)


def open_prompts_hub(*, split: str, options: Mapping[str, Scalar], **_: object) -> Prompts:
    """List captions of a data set, without images; arguments as in `open_dataset`, options as on the card.

    Raises:
        UserError: the package is missing, the data set cannot be loaded, or its column holds no captions.
    """
    path, table = _open_table(options, split)
    column = _column(table, path, options, "caption_column", "texts or lists of texts")
    captions = [captions_in(cell) for cell in _cells(table, column)]
    skipped = [Skipped(f"row {row}", NO_CAPTION) for row, texts in enumerate(captions) if not texts]
    prompts = [Prompt(texts[0]) for texts in captions if texts]
    if not prompts:
        raise UserError(f"data.caption_column: column {column!r} of {path} holds no captions")
    return subset(prompts, options, skipped)


# --- loading --------------------------------------------------------------------------------------


def _open_table(options: Mapping[str, Scalar], split: str) -> tuple[str, Any]:
    """Return the path and the table (`datasets.Dataset`) of one split as the options name them."""
    path, config, revision = (str(options[key]) for key in ("path", "config", "revision"))
    if not path:
        raise UserError("no data set was named", fix="--set data.path=HUB_ID or a folder")
    split = str(options["split"]) if split == TRAIN and options["split"] else split
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
            table = datasets.load_dataset(path, config or None, split=split, revision=revision or None)
            return path, table
        opened = datasets.load_from_disk(str(folder))
    except Exception as error:  # the package raises its own, the hub's, pyarrow's and built-in errors
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"data.path: {path} (split {split!r}) cannot be loaded: {reason}",
            fix="offline, give a folder written by save_to_disk: --set data.path=FOLDER",
        ) from error
    if isinstance(opened, datasets.DatasetDict):
        if split not in opened:
            raise UserError(
                f"data.path: {path} has no split {split!r}, only {', '.join(opened)}."
                f"{suggest(split, opened)}",
                fix="--set data.split=NAME chooses the one to train on",
            )
        return path, opened[split]
    if opened.split is not None and str(opened.split) != split:
        raise UserError(
            f"data.path: {path} holds the split {str(opened.split)!r}, not {split!r}",
            fix=f"--set data.split={opened.split}",
        )
    return path, opened


# --- columns --------------------------------------------------------------------------------------


def _column(table: Any, path: str, options: Mapping[str, Scalar], option: str, what: str) -> str:
    """Return the column that an option names; if it does not fit, UserError names one that does."""
    features, column = table.features, str(options[option])
    fitting = [name for name, feature in features.items() if _holds(feature, option)]
    if column in fitting:
        return column
    problem = f"does not hold {what}" if column in features else "does not exist"
    raise UserError(
        f"data.{option}: column {column!r} of {path} {problem}; columns: {', '.join(features)}",
        fix=f"--set data.{option}={fitting[0]}" if fitting else f"choose a data set with {what}",
    )


def _holds(feature: Any, option: str) -> bool:
    """Whether a column of this type may be named by an option."""
    import datasets

    if option == "image_column":
        return isinstance(feature, datasets.Image)
    if option == "label_column":
        whole = isinstance(feature, datasets.Value) and feature.dtype.lstrip("u").startswith("int")
        return whole or isinstance(feature, datasets.ClassLabel)
    if isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _cells(table: Any, column: str) -> list[Any]:
    values: list[Any] = table.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    return values


def _labels(table: Any, path: str, column: str) -> np.ndarray:
    """Return every row's class id, [rows] int64."""
    values = _cells(table, column)
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
    count = len(kind.names) if named else int(labels.max(initial=-1)) + 1
    if num_classes is not None and count > num_classes:
        raise UserError(
            f"{path}: {count} classes, but the model knows {num_classes}", fix="choose another model"
        )
    if num_classes is not None and named and count < num_classes:
        raise UserError(
            f"{path}: {count} named classes for a model of {num_classes}, "
            "and nothing says which ids they are",
            fix="store the model's class ids as whole numbers in the label column",
        )
    return tuple(kind.names) if named else tuple(str(number) for number in range(num_classes or count))


# --- pictures -------------------------------------------------------------------------------------


def _picture_reader(table: Any, column: str) -> Callable[[int], bytes]:
    """Return row → encoded picture."""
    import datasets

    cells = table.select_columns([column]).cast_column(column, datasets.Image(decode=False)).with_format(None)

    def read(row: int) -> bytes:
        cell = cells[row][column]
        if cell is None:
            raise UnreadableImage("empty cell")
        return Path(cell["path"]).read_bytes() if cell["bytes"] is None else bytes(cell["bytes"])

    return read


def _identity(table: Any, rows: Sequence[int], column: str) -> str:
    """Name the table's content: the package's fingerprint, which does not see that a file was changed."""
    files = [[file["filename"], *file_state(Path(file["filename"]).stat())] for file in table.cache_files]
    state = hashlib.sha256(json.dumps([table._fingerprint, column, len(table), files]).encode())
    state.update(np.asarray(rows, dtype="<i8").tobytes())
    return state.hexdigest()
