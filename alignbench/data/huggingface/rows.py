"""Which rows of a Hugging Face data set are used, and how they get here.

Of a folder written by `save_to_disk`, `limit` keeps a fixed subset as everywhere. Anything else is streamed
where there is a limit, and downloaded whole by its own package where there is none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignbench.data.decode import ProgressCallback
from alignbench.data.huggingface.streamed import first_line, take_rows
from alignbench.data.numbered import choose
from alignbench.data.walk import identity_of, numbered_names, walk
from alignbench.errors import UserError, suggest
from alignbench.registry.schema import Scalar

TRAIN = "train"
"""Split that the option `split` renames."""
IDENTIFY = ("path", "config", "revision", "files")
"""Options that say what a stream consists of, beside those that name its columns."""


@dataclass(frozen=True)
class Rows:
    """The rows that are used."""

    path: str
    table: Any
    """`datasets.Dataset`."""
    names: Sequence[str]
    """How lists of what was left out call them; row-aligned."""


def open_rows(
    wanted: Mapping[str, str],
    *,
    split: str,
    options: Mapping[str, Scalar],
    cache_dir: Path,
    progress: ProgressCallback | None,
    **_: object,
) -> Rows:
    """Open one split as the options name it, and choose its rows before any column is read.

    Args:
        wanted: {option that names a column: what the column must hold}.

    Raises:
        UserError: the package is missing, the data set cannot be loaded, or a column does not fit.
        RunFailed: the stream broke off.
    """
    path, limit, seed = str(options["path"]), int(options["limit"]), int(options["subset_seed"])
    if not path:
        raise UserError("no data set was named", fix="--set data.path=HUB_ID or a folder")
    split = str(options["split"]) if split == TRAIN and options["split"] else split
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "Hugging Face data sets need the package datasets", fix="pip install 'alignbench[data]'"
        ) from error
    source, folder = _Origin(path, split, options, wanted), Path(path).expanduser()
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if limit and not saved:
        key = {"split": split} | {name: str(options[name]) for name in (*IDENTIFY, *wanted)}
        if folder.is_dir():
            files = sorted(file.relative_to(folder).as_posix() for file in walk(folder))
            key["path"] = identity_of(folder, files)
        taken = take_rows(source.stream, key, limit=limit, seed=seed, cache_dir=cache_dir, progress=progress)
        return Rows(path, *taken)
    with source.loading():
        if saved:
            table = _split_of(datasets.load_from_disk(str(folder)), split, path)
        else:
            revision = str(options["revision"]) or None
            table = datasets.load_dataset(**source.where(), split=split, revision=revision)
    source.columns(table.features)
    names = [f"row {row}" for row in range(len(table))]
    rows = choose(names, limit=limit, seed=seed)
    return Rows(path, table.select(rows) if len(rows) < len(table) else table, [names[row] for row in rows])


@dataclass(frozen=True)
class _Origin:
    """One split of a data set, as the options name it."""

    path: str
    split: str
    options: Mapping[str, Scalar]
    wanted: Mapping[str, str]

    def where(self) -> dict[str, Any]:
        """Return what the package's functions that load have to be told."""
        files = str(self.options["files"])
        named = {"data_files": {self.split: numbered_names(files)}} if files else {}
        return {"path": self.path, "name": str(self.options["config"]) or None, **named}

    def columns(self, features: Mapping[str, Any]) -> list[str]:
        """Return the columns that are read; raises UserError: one does not fit."""
        return [_column(features, self.path, self.options, *item) for item in self.wanted.items()]

    def stream(self, commit: str) -> tuple[Any, str]:
        """Open the stream of these columns at a commit, empty: as the options say; see `streamed.Load`."""
        import datasets

        with self.loading():
            commit = commit or self._commit()
            where = {**self.where(), "revision": commit or None}
            builder = datasets.load_dataset_builder(**where)
            rows = builder.as_streaming_dataset(split=self.split)._resolve_features()
            columns = self.columns(rows.features)
            if hasattr(
                builder.config, "columns"
            ):  # Parquet: the bytes of other columns then stay where they are
                builder = datasets.load_dataset_builder(**where, columns=columns)
                rows = builder.as_streaming_dataset(split=self.split)
            rows = rows.select_columns(columns)
            for name in columns:
                if isinstance(rows.features[name], datasets.Image):
                    rows = rows.cast_column(name, datasets.Image(decode=False))
            return rows, commit

    def _commit(self) -> str:
        """Return the commit that the hub has now; empty: a folder."""
        import huggingface_hub

        if Path(self.path).expanduser().exists():
            return ""
        revision = str(self.options["revision"]) or None
        return str(huggingface_hub.HfApi().dataset_info(self.path, revision=revision).sha)

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Turn whatever the package raises into a UserError: its own errors, the hub's, pyarrow's, others."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"data.path: {self.path} (split {self.split!r}) cannot be loaded: {first_line(error)}",
                fix="try again, or give a folder written by save_to_disk: --set data.path=FOLDER",
            ) from error


def _split_of(opened: Any, split: str, path: str) -> Any:
    """Return the table of a split of what `save_to_disk` wrote: a table, or several by split."""
    if isinstance(opened, Mapping):
        if split not in opened:
            raise UserError(
                f"data.path: {path} has no split {split!r}, only {', '.join(opened)}."
                f"{suggest(split, opened)}",
                fix="--set data.split=NAME chooses the one to train on",
            )
        return opened[split]
    if opened.split is not None and str(opened.split) != split:
        raise UserError(
            f"data.path: {path} holds the split {str(opened.split)!r}, not {split!r}",
            fix=f"--set data.split={opened.split}",
        )
    return opened


# --- columns --------------------------------------------------------------------------------------


def _column(
    features: Mapping[str, Any], path: str, options: Mapping[str, Scalar], option: str, what: str
) -> str:
    """Return the column that an option names; if it does not fit, UserError names one that does."""
    column = str(options[option])
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
