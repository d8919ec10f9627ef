"""Pictures in a folder, scored as they are: which files count, in which order, why some cannot be read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alignbench.data.dataset import ProgressCallback, ordered_map
from alignbench.data.encoded import FORMATS, UnreadableImage, reason_of
from alignbench.errors import UserError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
LOSSY = frozenset({".jpg", ".jpeg", ".webp"})
OTHER_PICTURES = frozenset(
    {".avif", ".gif", ".heic", ".jfif", ".jp2", ".jxl", ".npy", ".pgm", ".ppm", ".tif", ".tiff"}
)
"""Endings of images that are not read; a file with another ending is taken for a by-product."""
SHOWN = 3
"""Offending files named in a message."""


@dataclass(frozen=True)
class PictureFiles:
    """Encoded pictures in order."""

    root: Path
    files: Sequence[Path]
    decode: Callable[[bytes], np.ndarray]
    """Encoded picture → [H, W, 3] uint8."""
    workers: int
    """Threads that decode."""

    def read(self, ids: range) -> Tensor:
        """Return images, [n, 3, H, W] uint8.

        Raises:
            UserError: naming those that cannot be read.
        """
        outcomes = list(ordered_map(self._decode, ids, workers=self.workers))
        named = zip(map(self.name, ids), outcomes, strict=True)
        refuse(self.root, {name: found for name, found in named if isinstance(found, str)})
        pixels = np.stack([found for found in outcomes if isinstance(found, np.ndarray)])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def check_headers(self, image_size: int, progress: ProgressCallback | None) -> None:
        """Look at the beginning of every file, so that a wrong set is refused before the work starts.

        Raises:
            UserError: naming the files that do not fit.
        """

        def check(position: int) -> str:
            try:
                check_header(self.files[position], image_size)
            except Exception as error:  # damaged files make decoders raise nearly anything
                return reason_of(error)
            return ""

        reasons = {}
        total = len(self.files)
        for at, reason in enumerate(ordered_map(check, range(total), workers=self.workers)):
            if reason:
                reasons[self.name(at)] = reason
            if progress is not None:
                progress(at + 1, total)
        refuse(self.root, reasons)

    def name(self, position: int) -> str:
        """Name a file for people."""
        return relative(self.files[position], self.root)

    def labels(self) -> np.ndarray | None:
        """Return class ids, [N] int64, if every picture lies one level down in a folder named by a number."""
        parents = [file.relative_to(self.root).parent.as_posix() for file in self.files]
        if not all(re.fullmatch(r"[0-9]{1,9}", parent) for parent in parents):
            return None
        return np.array([int(parent) for parent in parents], dtype=np.int64)

    def lossy_note(self) -> list[str]:
        """Say how many files were compressed with loss, if any."""
        lossy = sum(file.suffix.lower() in LOSSY for file in self.files)
        if not lossy:
            return []
        return [
            f"{lossy} of {len(self.files)} images are JPEG or WebP: what compression changed counts as theirs"
        ]

    def identity(self) -> str:
        """Hash the root and every file's name, size and time of change."""
        state = hashlib.sha256(os.fsencode(self.root.resolve()))
        for position, file in enumerate(self.files):
            status = file.stat()
            state.update(json.dumps([self.name(position), status.st_size, status.st_mtime_ns]).encode())
        return state.hexdigest()

    def _decode(self, position: int) -> np.ndarray | str:
        """Return the pixels, or why there are none."""
        try:
            path = self.files[position]
            if not path.is_file():  # a broken link, or a pipe that would never end
                raise UnreadableImage("not a regular file")
            return self.decode(path.read_bytes())
        except MemoryError:  # says something about the machine, not about the image
            raise
        except Exception as error:  # damaged files make decoders raise nearly anything
            return reason_of(error)


def refuse(root: Path, reasons: Mapping[str, str]) -> None:
    """Raise UserError if any image has a reason not to be scored; the commonest reason comes first."""
    if not reasons:
        return
    commonest, _ = Counter(reasons.values()).most_common(1)[0]
    names = sorted(reasons, key=lambda name: reasons[name] != commonest)
    listed = "; ".join(f"{name}: {reasons[name]}" for name in names[:SHOWN])
    more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    images = "1 image" if len(names) == 1 else f"{len(names)} images"
    raise UserError(
        f"{root}: {images} cannot be scored: {listed}{more}",
        fix="mend or remove them: images are never resized, converted with loss or left out here",
    )


def list_pictures(root: Path) -> tuple[list[Path], list[str]]:
    """Return the pictures of a folder at any depth, in natural order, and notes on what else lies there.

    Raises:
        UserError: none at all, or pictures of a kind that is not read.
    """
    images: list[Path] = []
    unsupported: list[Path] = []
    others: list[Path] = []
    for path in _walk(root):
        ending = path.suffix.lower()
        chosen = images if ending in EXTENSIONS else unsupported if ending in OTHER_PICTURES else others
        chosen.append(path)
    kinds = {relative(path, root): path.suffix.lower() for path in sorted(unsupported)}
    refuse(root, {name: f"{kind} files are not read; save it as PNG" for name, kind in kinds.items()})
    if not images:
        raise UserError(f"{root}: no images in it", fix=f"give {', '.join(sorted(EXTENSIONS))} files")
    images.sort(key=lambda path: natural(relative(path, root)))
    names = ", ".join(sorted(relative(path, root) for path in others)[:SHOWN])
    more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    return images, [f"no images by their names: {names}{more}"] if others else []


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key in which numbers inside names count as numbers."""
    pieces = re.split(r"([0-9]+)", name)
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces], name


def relative(path: Path, root: Path) -> str:
    """Name a file inside its folder, with forward slashes and printable characters only."""
    name = path.relative_to(root).as_posix()
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _walk(root: Path) -> list[Path]:
    """Return all files at any depth but hidden ones; links to folders are followed, each folder once."""
    found: list[Path] = []
    visited: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(root, onerror=_refuse_folder, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return found


def _refuse_folder(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
"""Pixel forms that become RGB without a choice being made; CMYK and wide channels do not."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = 24
"""Offset of the byte in a PNG file that says how many bits a channel has."""


def check_header(path: Path, size: int) -> None:
    """Look at the beginning of a file.

    Raises:
        UnreadableImage: another size, or pixels that have no faithful RGB bytes.
        Exception: whatever Pillow raises on what is no picture.
    """
    if not path.is_file():  # a broken link, or a pipe that would never end
        raise UnreadableImage("not a regular file")
    with path.open("rb") as file:
        _check(file, size)


def decode_exact(data: bytes, size: int) -> np.ndarray:
    """Decode a picture of a given size.

    Grey and palette pictures become RGB. Transparency is accepted only where every pixel is opaque, since any
    background would be a choice. The EXIF orientation and colour profiles are ignored, as ADM's and
    torch-fidelity's readers do; the first frame of an animation counts.

    Args:
        data: the encoded picture.
        size: side it must have.

    Returns:
        [size, size, 3] uint8.

    Raises:
        UnreadableImage: as in `check_header`, or a pixel that is not opaque.
        Exception: whatever Pillow raises on a damaged picture.
    """
    with _check(io.BytesIO(data), size) as image:
        if "A" in image.mode or "transparency" in image.info:
            image = image.convert("RGBA")
            alpha = np.asarray(image.getchannel("A"))
            if alpha.min() < 255:
                raise UnreadableImage("transparent pixels: what lies behind them is not known")
        return np.array(image.convert("RGB"))


def _check(file: IO[bytes], size: int) -> Image.Image:
    start = file.read(_PNG_DEPTH + 1)
    file.seek(0)
    if not start:
        raise UnreadableImage("an empty file")
    image = Image.open(file, formats=FORMATS)
    # Pillow reads 16-bit colour as 8-bit colour without a word, so the file itself is asked.
    if start.startswith(_PNG) and start[_PNG_DEPTH:] == b"\x10":
        raise UnreadableImage("16 bits per channel; save it with 8")
    if image.mode not in MODES:
        raise UnreadableImage(f"{image.mode} pixels have no faithful RGB bytes; save it as 8-bit RGB")
    if image.size != (size, size):
        raise UnreadableImage(f"{image.width}×{image.height} where {size}×{size} is scored")
    return image
