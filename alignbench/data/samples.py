"""Generated images made elsewhere: a folder of pictures, an ADM sample file, or GenEval's folder layout.

Samples are judged as they are. They are never resized or cropped, since the filter would change every metric,
and none is left out: an image that cannot be read faithfully is an error that names it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from alignbench.api import ImageBatch, Prompt
from alignbench.data import ProgressCallback
from alignbench.data.encoded import UnreadableImage, choose, decode_image, reason_of
from alignbench.data.faithful import check_header, decode_exact
from alignbench.data.npz import Archive, Rows
from alignbench.data.pool import ordered_map
from alignbench.errors import UserError

SHARD = 256
"""Images per shard."""
EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
LOSSY = frozenset({".jpg", ".jpeg", ".webp"})
OTHER_PICTURES = frozenset(
    {".avif", ".gif", ".heic", ".jfif", ".jp2", ".jxl", ".npy", ".pgm", ".ppm", ".tif", ".tiff"}
)
"""Endings of images that are not read; a file with another ending is taken for a by-product."""
SHOWN = 3
"""Offending files named in a message."""

Fit = Literal["exact", "crop"]
"""`exact`: only images of the wanted size; `crop`: ADM's centre crop, for real images of a reference."""


class SampleImages:
    """Images with a fixed order, an `api.ImageSet`."""

    def __init__(
        self,
        *,
        title: str,
        identity: str,
        count: int,
        read: Callable[[range], Tensor],
        labels: np.ndarray | None = None,
        prompts: Sequence[Prompt] = (),
        notes: Sequence[str] = (),
    ) -> None:
        """Put a set together; see `open_samples`.

        Args:
            title: how messages name it.
            identity: changes whenever an image may have changed.
            count: images, N.
            read: image ids → [n, 3, H, W] uint8.
            labels: [N] int64 class ids.
            prompts: one per image, or none.
            notes: what a reader of the numbers should know about the files.
        """
        self.title = title
        self.identity = identity
        self.notes = tuple(notes)
        self.labels = labels
        self.prompts = tuple(prompts)
        self._count = count
        self._read = read

    def __len__(self) -> int:
        return self._count

    def shards(self) -> list[range]:
        return [range(at, min(at + SHARD, self._count)) for at in range(0, self._count, SHARD)]

    def load(self, number: int) -> ImageBatch:
        """Return one shard.

        Raises:
            UserError: images that turn out to be damaged, by name.
        """
        return self.take(self.shards()[number])

    def take(self, ids: range) -> ImageBatch:
        """Return any consecutive images."""
        rows = slice(ids.start, ids.stop)
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        return ImageBatch(ids=ids, images=self._read(ids), labels=labels, prompts=self.prompts[rows])


def open_samples(
    path: Path,
    *,
    image_size: int,
    prompts: Sequence[Prompt] = (),
    images_per_prompt: int = 1,
    fit: Fit = "exact",
    limit: int = 0,
    seed: int = 0,
    workers: int = 2,
    progress: ProgressCallback | None = None,
) -> SampleImages:
    """Open images that are already there.

    A folder is read at any depth, in natural order of the relative paths (`2.png` before `10.png`); hidden
    files are left out. Sub-folders named by numbers are class ids. An ADM file holds `arr_0` and perhaps
    class ids in `arr_1`. A folder in GenEval's layout brings its own prompts.

    Args:
        path: folder or `.npz` file.
        image_size: side the images must have.
        prompts: prompts of the images, in order, each used `images_per_prompt` times in a row; checked
            against those that a GenEval folder brings.
        images_per_prompt: images of one prompt that follow each other.
        fit: `exact` refuses other sizes; an `.npz` file is never cropped.
        limit: keep a fixed random subset of a folder's images, by their names; 0 keeps all.
        seed: another seed, another subset.
        workers: threads that decode.
        progress: told how many files are looked at.

    Raises:
        UserError: naming the files that do not fit and why; unreadable pixels may show up only in `load`.
    """
    if path.is_file():
        if limit:
            raise UserError(f"{path}: a subset can be taken of a folder only", fix="leave the limit out")
        return _open_npz(path, image_size, prompts, images_per_prompt)
    if not path.is_dir():
        raise UserError(f"{path} does not exist", fix="give a folder of images or an .npz file")
    from alignbench.data import geneval_folder

    if geneval_folder.is_geneval_folder(path):
        layout = geneval_folder.read_layout(path)
        files = [Path(file) for file, _ in layout]
        own = [prompt for _, prompt in layout]
        _check_own_prompts(path, own, prompts)
        return _open_files(path, files, image_size, own, fit, workers, progress, ())
    files, notes = _list_folder(path)
    names = [_relative(file, path) for file in files]
    files = [files[position] for position in choose(names, limit=limit, seed=seed)]
    expanded = _expand(path, len(files), prompts, images_per_prompt)
    return _open_files(path, files, image_size, expanded, fit, workers, progress, notes)


# --- a folder -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Files:
    """Encoded pictures in order."""

    root: Path
    files: Sequence[Path]
    decode: Callable[[bytes], np.ndarray]
    workers: int

    def read(self, ids: range) -> Tensor:
        outcomes = list(ordered_map(self._decode, ids, workers=self.workers))
        refuse_unreadable(
            self.root,
            {self.name(at): found for at, found in zip(ids, outcomes, strict=True) if isinstance(found, str)},
        )
        pixels = np.stack([found for found in outcomes if isinstance(found, np.ndarray)])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def name(self, position: int) -> str:
        return _relative(self.files[position], self.root)

    def _decode(self, position: int) -> np.ndarray | str:
        """Return the pixels, or why there are none."""
        try:
            return self.decode(_bytes_of(self.files[position]))
        except MemoryError:  # says something about the machine, not about the image
            raise
        except Exception as error:  # damaged files make decoders raise nearly anything
            return reason_of(error)


def _open_files(
    root: Path,
    files: Sequence[Path],
    image_size: int,
    prompts: Sequence[Prompt],
    fit: Fit,
    workers: int,
    progress: ProgressCallback | None,
    notes: Sequence[str],
) -> SampleImages:
    def decode(data: bytes) -> np.ndarray:
        return decode_exact(data, image_size) if fit == "exact" else decode_image(data, image_size)

    source = _Files(root, files, decode, workers)
    if fit == "exact":
        _check_headers(source, image_size, progress)
    return SampleImages(
        title=str(root),
        identity=_identity(source),
        count=len(files),
        read=source.read,
        labels=_labels(source),
        prompts=prompts,
        notes=(*notes, *_lossy_note(files)),
    )


def _check_headers(source: _Files, image_size: int, progress: ProgressCallback | None) -> None:
    """Look at the beginning of every file, so that a wrong set is refused before the work starts."""

    def check(position: int) -> str:
        try:
            check_header(source.files[position], image_size)
        except Exception as error:  # damaged files make decoders raise nearly anything
            return reason_of(error)
        return ""

    reasons = {}
    total = len(source.files)
    for at, reason in enumerate(ordered_map(check, range(total), workers=source.workers)):
        if reason:
            reasons[source.name(at)] = reason
        if progress is not None:
            progress(at + 1, total)
    refuse_unreadable(source.root, reasons)


def refuse_unreadable(root: Path, reasons: dict[str, str]) -> None:
    """Raise UserError if any image has a reason not to be scored; the commonest reason comes first."""
    if not reasons:
        return
    reason, _ = Counter(reasons.values()).most_common(1)[0]
    names = sorted(reasons, key=lambda name: reasons[name] != reason)
    listed = "; ".join(f"{name}: {reasons[name]}" for name in names[:SHOWN])
    more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    images = "1 image" if len(names) == 1 else f"{len(names)} images"
    raise UserError(
        f"{root}: {images} cannot be scored: {listed}{more}",
        fix="mend or remove them: images are never resized, converted with loss or left out here",
    )


def _list_folder(root: Path) -> tuple[list[Path], list[str]]:
    """Return the images in natural order, and notes on what else lies there."""
    images: list[Path] = []
    unsupported: list[Path] = []
    others: list[Path] = []
    for path in _walk(root):
        ending = path.suffix.lower()
        chosen = images if ending in EXTENSIONS else unsupported if ending in OTHER_PICTURES else others
        chosen.append(path)
    refuse_unreadable(
        root,
        {
            _relative(path, root): f"{path.suffix.lower()} files are not read; save it as PNG"
            for path in sorted(unsupported)
        },
    )
    if not images:
        raise UserError(f"{root}: no images in it", fix=f"give {', '.join(sorted(EXTENSIONS))} files")
    images.sort(key=lambda path: natural(_relative(path, root)))
    names = ", ".join(sorted(_relative(path, root) for path in others)[:SHOWN])
    more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    return images, [f"no images by their names: {names}{more}"] if others else []


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


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key in which numbers inside names count as numbers."""
    pieces = re.split(r"([0-9]+)", name)
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces], name


def _relative(path: Path, root: Path) -> str:
    """Name a file inside its folder, with forward slashes and printable characters only."""
    name = path.relative_to(root).as_posix()
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _bytes_of(path: Path) -> bytes:
    if not path.is_file():  # a broken link, or a pipe that would never end
        raise UnreadableImage("not a regular file")
    return path.read_bytes()


def _labels(source: _Files) -> np.ndarray | None:
    """Return class ids if every image lies in a folder whose name is a number, one level down."""
    parents = [file.relative_to(source.root).parent.as_posix() for file in source.files]
    if not all(re.fullmatch(r"[0-9]{1,9}", parent) for parent in parents):
        return None
    return np.array([int(parent) for parent in parents], dtype=np.int64)


def _lossy_note(files: Sequence[Path]) -> list[str]:
    lossy = sum(file.suffix.lower() in LOSSY for file in files)
    if not lossy:
        return []
    return [f"{lossy} of {len(files)} images are JPEG or WebP: what compression changed counts as theirs"]


def _identity(source: _Files) -> str:
    """Hash the root and every file's name, size and time of change."""
    state = hashlib.sha256(os.fsencode(source.root.resolve()))
    for position, file in enumerate(source.files):
        status = file.stat()
        state.update(json.dumps([source.name(position), status.st_size, status.st_mtime_ns]).encode())
    return state.hexdigest()


# --- prompts --------------------------------------------------------------------------------------


def _expand(path: Path, count: int, prompts: Sequence[Prompt], each: int) -> list[Prompt]:
    """Give every image its prompt."""
    if prompts and count != len(prompts) * each:
        raise UserError(
            f"{path}: {count} images for {len(prompts)} prompts × {each}",
            fix=f"give {len(prompts) * each} images, those of one prompt after another",
        )
    return [prompt for prompt in prompts for _ in range(each)]


def _check_own_prompts(path: Path, own: Sequence[Prompt], wanted: Sequence[Prompt]) -> None:
    """Refuse a folder that was made from other prompts than the protocol's."""
    texts = {prompt.text for prompt in wanted}
    strange = [prompt.text for prompt in own if prompt.text not in texts] if wanted else []
    missing = texts - {prompt.text for prompt in own}
    if strange or missing:
        what = f"{strange[0]!r} is not in" if strange else f"no image of {min(missing)!r}, which is in"
        raise UserError(f"{path}: {what} the protocol's prompt file", fix="generate from that file's prompts")


# --- an ADM sample file ---------------------------------------------------------------------------


def _open_npz(path: Path, image_size: int, prompts: Sequence[Prompt], images_per_prompt: int) -> SampleImages:
    archive = Archive(path)
    rows = check_pixels(archive, image_size=image_size)
    count = len(rows)
    return SampleImages(
        title=str(path),
        identity=npz_identity(path),
        count=count,
        read=lambda ids: pixels_of(rows, ids),
        labels=_npz_labels(archive, count),
        prompts=_expand(path, count, prompts, images_per_prompt),
    )


def check_pixels(archive: Archive, *, image_size: int) -> Rows:
    """Return a reader of `arr_0`.

    Raises:
        UserError: it is missing, not uint8 [N, H, W, 3], empty, or of another size.
    """
    header = archive.headers.get("arr_0")
    if header is None:
        names = ", ".join(archive.headers) or "nothing"
        raise UserError(f"{archive.path}: no images: it has no array arr_0, but {names}")
    shape = "×".join(map(str, header.shape))
    if header.dtype != np.uint8 or len(header.shape) != 4 or header.shape[3] != 3:
        raise UserError(
            f"{archive.path}: arr_0 is {header.dtype} {shape}, not uint8 N×H×W×3",
            fix="save the images as bytes, channels last",
        )
    if header.shape[0] == 0:
        raise UserError(f"{archive.path}: arr_0 holds no images")
    if header.shape[1:3] != (image_size, image_size):
        raise UserError(
            f"{archive.path}: its images are {header.shape[2]}×{header.shape[1]}, "
            f"the protocol scores {image_size}×{image_size}",
            fix="generate at that size; images are never resized here",
        )
    return archive.rows("arr_0")


def pixels_of(rows: Rows, ids: range) -> Tensor:
    """Read images, [n, 3, H, W] uint8."""
    return torch.from_numpy(rows.read(ids.start, ids.stop)).permute(0, 3, 1, 2).contiguous()


def npz_identity(path: Path) -> str:
    """Hash a file's place, size and time of change."""
    status = path.stat()
    text = json.dumps([os.fsdecode(path.resolve()), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _npz_labels(archive: Archive, count: int) -> np.ndarray | None:
    header = archive.headers.get("arr_1")
    if header is None:
        return None
    if header.shape != (count,) or header.dtype.kind not in "iu":
        shape = "×".join(map(str, header.shape))
        raise UserError(f"{archive.path}: arr_1 is {header.dtype} {shape}, not {count} whole class ids")
    return archive.array("arr_1").astype(np.int64)
