"""Arrays in `.npz` archives, read and written a few rows at a time.

Sample files and reference files of the ADM form hold gigabytes of pixels. Members that `numpy.savez` wrote
are stored as they are and are read in place; compressed ones have to be unpacked from their start.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from alignbench.errors import UserError

_BROKEN = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile and numpy raise on a damaged, encrypted or exotic archive."""

_LOCAL_HEADER = 30
"""Bytes of a zip member's own header before its name."""


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """What an array's header says; known without reading the array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    length: int
    """Bytes of the header."""


class Archive:
    """The arrays of one `.npz` file; opening reads headers only."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            UserError: it is missing, no zip archive, or a member is no plain numpy array.
        """
        self.path = path
        self.headers: dict[str, Header] = {}
        """{array name: header}, in the order of the file."""
        try:
            with zipfile.ZipFile(path) as archive:
                self._members = {
                    info.filename.removesuffix(".npy"): info
                    for info in archive.infolist()
                    if info.filename.endswith(".npy")
                }
                for name, info in self._members.items():
                    with archive.open(info) as file:
                        self.headers[name] = _read_header(file)
        except FileNotFoundError as error:
            raise UserError(f"{path} does not exist") from error
        except _BROKEN as error:
            raise UserError(f"{path} is not a readable .npz file: {_first_line(error)}") from error

    def array(self, name: str) -> np.ndarray:
        """Return a whole array, for small ones.

        Raises:
            UserError: it is damaged.
        """
        try:
            with np.load(self.path, allow_pickle=False) as file:
                found: np.ndarray = file[name]
        except _BROKEN as error:
            raise UserError(f"{self.path}: array {name!r} cannot be read: {_first_line(error)}") from error
        return found

    def rows(self, name: str) -> Rows:
        """Return a reader of an array's rows.

        Raises:
            UserError: rows do not lie one after another, or the file is shorter than it says.
        """
        header, info = self.headers[name], self._members[name]
        if header.fortran and len(header.shape) > 1:
            raise UserError(
                f"{self.path}: array {name!r} is stored column by column",
                fix="save numpy.ascontiguousarray of it",
            )
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            return Unpacked(self.path, name, header, info)
        try:
            return Mapped(self.path, header, _data_offset(self.path, info) + header.length)
        except _BROKEN as error:
            raise UserError(f"{self.path}: array {name!r} is cut short: {_first_line(error)}") from error


class Rows:
    """Rows of an array on disk."""

    header: Header

    def __len__(self) -> int:
        return self.header.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows [stop - start, ...], a copy."""
        raise NotImplementedError


class Mapped(Rows):
    """Rows of an array stored as it is."""

    def __init__(self, path: Path, header: Header, offset: int) -> None:
        self.header = header
        self._pixels = np.memmap(path, dtype=header.dtype, mode="r", offset=offset, shape=header.shape)

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.array(self._pixels[start:stop])


class Unpacked(Rows):
    """Rows of a compressed array: going forward is cheap, going back starts again."""

    def __init__(self, path: Path, name: str, header: Header, info: zipfile.ZipInfo) -> None:
        self.header = header
        self._path = path
        self._name = name
        self._info = info
        self._row_bytes = int(np.prod(header.shape[1:], dtype=np.int64)) * header.dtype.itemsize
        self._archive: zipfile.ZipFile | None = None
        self._file: IO[bytes] | None = None
        self._row = 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows, a copy.

        Raises:
            UserError: the archive is damaged.
        """
        try:
            if self._file is None or start < self._row:
                self._rewind()
            self._take(start - self._row)
            data = self._take(stop - start)
        except _BROKEN as error:
            raise UserError(f"{self._path}: array {self._name!r} is damaged: {_first_line(error)}") from error
        return np.frombuffer(data, self.header.dtype).reshape(-1, *self.header.shape[1:]).copy()

    def _rewind(self) -> None:
        if self._archive is not None:
            self._archive.close()
        self._archive = zipfile.ZipFile(self._path)
        self._file = self._archive.open(self._info)
        _read_exactly(self._file, self.header.length)
        self._row = 0

    def _take(self, rows: int) -> bytes:
        assert self._file is not None
        data = _read_exactly(self._file, rows * self._row_bytes)
        self._row += rows
        return data


def _read_header(file: IO[bytes]) -> Header:
    """Read an array's header; the stream then stands at its first element.

    Raises:
        ValueError: no numpy array, a version nobody writes for numbers, or Python objects.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version[0]}.{version[1]} of the array format")
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded")
    return Header(shape, dtype, fortran, file.tell())


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin; its own header is not always as long as the one in the directory."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        local = _read_exactly(file, _LOCAL_HEADER)
    if local[:4] != b"PK\x03\x04":
        raise ValueError("its directory points nowhere")
    name, extra = int.from_bytes(local[26:28], "little"), int.from_bytes(local[28:30], "little")
    return info.header_offset + _LOCAL_HEADER + name + extra


def _read_exactly(file: IO[bytes], count: int) -> bytes:
    """Read `count` bytes, or raise EOFError."""
    pieces = []
    while count > 0:
        piece = file.read(min(count, 1 << 26))
        if not piece:
            raise EOFError("it ends too early")
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


# --- writing --------------------------------------------------------------------------------------


def write_archive(
    path: Path,
    streams: Mapping[str, Stream],
    arrays: Callable[[], Mapping[str, np.ndarray]] = dict,
) -> None:
    """Write an uncompressed archive as `numpy.savez` would, streams first; the file is whole or absent.

    Args:
        path: file to write.
        streams: {array name: rows that come piece by piece}; read one after another.
        arrays: returns {array name: array}; called when the streams are done, so it may depend on them.

    Raises:
        ValueError: a stream gives other rows than announced.
        OSError: the disk is full or the folder is not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, stream in streams.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    stream.copy_to(member)
            for name, array in arrays().items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Stream:
    """An array whose rows come piece by piece."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Iterable[np.ndarray]
    """[n, *shape[1:]] each; n sums to shape[0]."""

    def copy_to(self, file: IO[bytes]) -> None:
        """Write header and rows."""
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": self.shape,
        }
        np.lib.format.write_array_header_1_0(file, header)
        written = 0
        for piece in self.pieces:
            if piece.shape[1:] != self.shape[1:] or piece.dtype != self.dtype:
                raise ValueError(
                    f"{piece.dtype}{list(piece.shape)} is no part of {self.dtype}{list(self.shape)}"
                )
            file.write(np.ascontiguousarray(piece).data.cast("B") if piece.size else b"")
            written += len(piece)
        if written != self.shape[0]:
            raise ValueError(f"{written} rows instead of {self.shape[0]}")
