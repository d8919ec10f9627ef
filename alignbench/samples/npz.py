"""Arrays in `.npz` archives, read and written a few rows at a time.

Sample files and reference files of the ADM form hold gigabytes of pixels. What `numpy.savez` wrote is read in
place, so that each process reads its own rows only; compressed arrays are unpacked from their start.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from alignbench.errors import UserError
from alignbench.files import atomic_file

UNREADABLE = (OSError, ValueError, EOFError, LookupError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What zipfile and numpy raise on a damaged, encrypted or exotic archive."""


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """What an array's header says; known without reading the array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    length: int
    """Bytes of the header."""
    member: zipfile.ZipInfo

    @property
    def row(self) -> int:
        """Bytes of a row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def __str__(self) -> str:
        """E.g. `uint8 10×8×8×3`."""
        return f"{self.dtype} {'×'.join(map(str, self.shape))}"


class Archive:
    """The arrays of one `.npz` file; opening reads headers only."""

    def __init__(self, path: Path) -> None:
        """Open a file; raises UserError: missing, no zip archive, or a member is no plain numpy array."""
        self.path = path
        self.headers: dict[str, Header] = {}
        """{array name: header}, in the order of the file."""
        try:
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if info.filename.endswith(".npy"):
                        name = info.filename.removesuffix(".npy")
                        with archive.open(info) as file:
                            self.headers[name] = _read_header(file, info)
        except FileNotFoundError as error:
            raise UserError(f"{path} does not exist") from error
        except UNREADABLE as error:
            raise UserError(f"{path} is not a readable .npz file: {_first_line(error)}") from error

    def array(self, name: str) -> np.ndarray:
        """Return a whole array, for small ones; raises UserError if it is damaged."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                values: np.ndarray = file[name]
        except UNREADABLE as error:
            raise UserError(f"{self.path}: array {name!r} cannot be read: {_first_line(error)}") from error
        return values

    def rows(self, name: str) -> NpzArray:
        """Return a reader of an array's rows; raises UserError: stored by columns, or fewer than it says."""
        header = self.headers[name]
        if header.fortran and len(header.shape) > 1:
            raise UserError(
                f"{self.path}: array {name!r} is stored column by column",
                fix="save numpy.ascontiguousarray of it",
            )
        if header.member.file_size < header.length + header.row * header.shape[0]:
            raise UserError(f"{self.path}: array {name!r} is cut short: it ends before its last row")
        return NpzArray(self.path, name, header)


class NpzArray:
    """Rows of an array on disk; of a compressed one, going forward is cheap and going back starts again."""

    def __init__(self, path: Path, name: str, header: Header) -> None:
        self._path, self._name, self._header = path, name, header
        self._file: IO[bytes] | None = None
        self._start = header.length
        """Where the first row begins in the open file."""

    def __len__(self) -> int:
        return self._header.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows [stop - start, ...], a copy; raises UserError if the archive is damaged."""
        shape, row = (stop - start, *self._header.shape[1:]), self._header.row
        try:
            if self._file is None:
                self._file = self._open()
            self._file.seek(self._start + start * row)
            data = _read_exactly(self._file, shape[0] * row)
        except UNREADABLE as error:
            raise UserError(f"{self._path}: array {self._name!r} is damaged: {_first_line(error)}") from error
        return np.frombuffer(data, self._header.dtype).reshape(shape)

    def _open(self) -> IO[bytes]:
        member = self._header.member
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:  # 1: encrypted
            return zipfile.ZipFile(self._path).open(member)
        file = self._path.open("rb")
        file.seek(member.header_offset)
        local = _read_exactly(file, 30)  # its name and extra field may be longer than in the directory
        if local[:4] != b"PK\x03\x04":
            raise ValueError("its directory points nowhere")
        before = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        self._start += member.header_offset + len(local) + before
        return file


def _read_header(file: IO[bytes], member: zipfile.ZipInfo) -> Header:
    """Read an array's header; raises ValueError for Python objects and versions nobody writes for numbers."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version[0]}.{version[1]} of the array format")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded")
    return Header(shape, dtype, fortran, file.tell(), member)


def _read_exactly(file: IO[bytes], count: int) -> bytearray:
    data = bytearray()
    while len(data) < count:
        piece = file.read(min(count - len(data), 1 << 26))
        if not piece:
            raise EOFError("it ends too early")
        data += piece
    return data


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return next(iter(str(error).splitlines()), type(error).__name__)


# --- writing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NpzColumn:
    """An array whose rows come piece by piece."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Iterable[np.ndarray]
    """[n, *shape[1:]] each; n sums to shape[0]."""

    def write(self, file: IO[bytes]) -> None:
        """Write header and rows; raises ValueError for other rows than announced."""
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": self.shape}
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


def write_archive(
    path: Path,
    columns: Mapping[str, NpzColumn],
    arrays: Callable[[], Mapping[str, np.ndarray]] = dict,
) -> None:
    """Write an uncompressed archive as `numpy.savez` would, columns first; the file is whole or absent.

    Args:
        columns: {array name: rows that come piece by piece}; read one after another.
        arrays: returns {array name: array}; called when the columns are done, so it may depend on them.

    Raises:
        ValueError: a column gives other rows than announced.
        OSError: the disk is full or the folder is not writable.
    """
    with (
        atomic_file(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
    ):
        for name, column in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                column.write(member)
        for name, array in arrays().items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
