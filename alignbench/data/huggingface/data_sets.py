"""The data sets of these cards: images with classes, images with captions, captions alone.

Needs the optional `datasets` package. Only its tables are used: pictures are decoded, checked and
cropped here, by the same rules as files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from alignbench.api import Prompt
from alignbench.data.captioned import NO_CAPTION, Listing, Sample, captioned_source, captions_in
from alignbench.data.decode import Skipped, UnreadableImage
from alignbench.data.encoded import Source
from alignbench.data.huggingface.rows import Rows, open_rows
from alignbench.data.numbered import Prompts
from alignbench.data.walk import file_state
from alignbench.errors import UserError


def open_hub(*, num_classes: int | None, **how: Any) -> Source:
    """List a data set; arguments as in `open_dataset`, options as on the card.

    Raises:
        UserError: the package is missing, the data set cannot be loaded, a column does not fit, or the
            classes are not the model's.
        RunFailed: a stream broke off.
    """
    wanted = {"image_column": "images", "label_column": "class ids (ClassLabel or whole numbers)"}
    rows = open_rows(wanted, **how)
    image_column, label_column = (str(how["options"][option]) for option in wanted)
    labels = _labels(rows, label_column)
    class_names = _class_names(rows.table.features[label_column], labels, num_classes, rows.path)
    return Source(
        title=rows.path,
        names=rows.names,
        labels=labels.tolist(),
        class_names=class_names,
        read=_picture_reader(rows.table, image_column),
        identity=_identity(rows, image_column),
    )


def open_text_hub(**how: Any) -> Source:
    """List a data set of captioned images; arguments as in `open_dataset`, options as on the card.

    Raises:
        UserError: the package is missing, the data set cannot be loaded, or a column does not fit.
        RunFailed: a stream broke off.
    """
    wanted = {"image_column": "images", "caption_column": "texts or lists of texts"}
    rows = open_rows(wanted, **how)
    image_column, caption_column = (str(how["options"][option]) for option in wanted)
    captions = [captions_in(cell) for cell in _cells(rows.table, caption_column)]
    samples = [
        Sample(name, texts, "" if texts else NO_CAPTION)
        for name, texts in zip(rows.names, captions, strict=True)
    ]
    identity = _identity(rows, image_column)
    listing = Listing.of(samples, _picture_reader(rows.table, image_column), identity)
    return captioned_source(listing, title=rows.path, options=how["options"], workers=how["workers"])


def open_prompts_hub(**how: Any) -> Prompts:
    """List captions of a data set, without images; arguments as in `open_dataset`, options as on the card.

    Raises:
        UserError: the package is missing, the data set cannot be loaded, or its column holds no captions.
        RunFailed: a stream broke off.
    """
    rows = open_rows({"caption_column": "texts or lists of texts"}, **how)
    column = str(how["options"]["caption_column"])
    captions = [captions_in(cell) for cell in _cells(rows.table, column)]
    skipped = [
        Skipped(name, NO_CAPTION) for name, texts in zip(rows.names, captions, strict=True) if not texts
    ]
    prompts = [Prompt(texts[0]) for texts in captions if texts]
    if not prompts:
        raise UserError(f"data.caption_column: column {column!r} of {rows.path} holds no captions")
    return Prompts(prompts, skipped)


# --- labels and pictures --------------------------------------------------------------------------


def _cells(table: Any, column: str) -> list[Any]:
    values: list[Any] = table.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    return values


def _labels(rows: Rows, column: str) -> np.ndarray:
    """Return every row's class id, [rows] int64."""
    values = _cells(rows.table, column)
    missing = [row for row, value in enumerate(values) if value is None or value < 0]
    if missing:
        raise UserError(
            f"data.label_column: {len(missing)} rows of {rows.path} have no class, "
            f"e.g. {rows.names[missing[0]]}",
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


def _identity(rows: Rows, column: str) -> str:
    """Name the rows' content: the package's fingerprint, which does not see that a file was changed."""
    files = [
        [file["filename"], *file_state(Path(file["filename"]).stat())] for file in rows.table.cache_files
    ]
    state = [rows.table._fingerprint, column, list(rows.names), files]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()
