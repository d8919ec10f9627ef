"""Pictures in a folder, scored as they are: which files count, in which order, why some cannot be read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from alignbench.data.decode import UnreadableImage, open_exact, ordered_map, reason_of
from alignbench.data.walk import EXTENSIONS, natural, printable, read_file, walk
from alignbench.errors import UserError
from alignbench.files import cache_root, digest_of, file_digests
from alignbench.samples.pixels import channels_first

LOSSY = frozenset({".jpg", ".jpeg", ".webp"})
OTHER_PICTURES = frozenset(
    {".avif", ".gif", ".heic", ".jfif", ".jp2", ".jxl", ".npy", ".pgm", ".ppm", ".tif", ".tiff"}
)
"""Endings of images that are not read; a file with another ending is taken for a by-product."""
OVERVIEW = "grid.png"
"""What this and other programs call the picture of all samples that they put beside them."""
SHOWN = 3
"""Offending files named in a message."""

Output = TypeVar("Output")


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
        """Return images, [n, 3, H, W] uint8, or raise UserError naming those that cannot be read."""
        return channels_first(np.stack(self._each(ids, lambda path: self.decode(read_file(path)))))

    def check_headers(self, image_size: int) -> None:
        """Refuse a wrong set before the work starts: UserError names files whose beginning does not fit."""

        def check(path: Path) -> None:
            with path.open("rb") as file:
                open_exact(file, image_size)

        self._each(range(len(self.files)), check)

    def _each(self, ids: range, function: Callable[[Path], Output]) -> list[Output]:
        """Call a function with every file, in threads; UserError names the files that cannot be scored."""

        def outcome(position: int) -> tuple[list[Output], str]:
            try:
                if not self.files[position].is_file():  # a broken link, or a pipe that would never end
                    raise UnreadableImage("not a regular file")
                return [function(self.files[position])], ""
            except Exception as error:  # damaged files make decoders raise nearly anything
                return [], reason_of(error)

        outcomes = list(ordered_map(outcome, ids, workers=self.workers))
        reasons = {position: reason for position, (_, reason) in zip(ids, outcomes, strict=True) if reason}
        refuse(self.root, {relative(self.files[at], self.root): reason for at, reason in reasons.items()})
        return [output for outputs, _ in outcomes for output in outputs]

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
        """Hash every file's name and content.

        Raises:
            UserError: a file cannot be read.
        """
        self._each(range(len(self.files)), lambda path: None)  # a pipe would never end
        digests = remembered_digests(self.files, self.root, workers=self.workers)
        names = [os.fsdecode(file.relative_to(self.root)) for file in self.files]
        return digest_of([names, digests])


def remembered_digests(files: Sequence[Path], root: Path, *, workers: int = 1) -> list[str]:
    """Return the SHA-256 of files; those of one folder or archive are remembered together.

    Raises:
        UserError: a file cannot be read.
    """
    memory = cache_root() / "digests" / f"{digest_of(os.fsdecode(root.resolve()))[:24]}.json"
    try:
        return file_digests(files, memory, workers=workers)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror or error}", fix="make it readable") from error


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
    names = {path: relative(path, root) for path in sorted(walk(root))}
    kinds = {path: path.suffix.lower() for path in names}
    unsupported = {names[path]: kind for path, kind in kinds.items() if kind in OTHER_PICTURES}
    refuse(root, {name: f"{kind} files are not read; save it as PNG" for name, kind in unsupported.items()})
    images = [path for path, kind in kinds.items() if kind in EXTENSIONS and path.name != OVERVIEW]
    if not images:
        raise UserError(f"{root}: no images in it", fix=f"give {', '.join(sorted(EXTENSIONS))} files")
    others = sorted(set(names.values()) - {names[path] for path in images})
    more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    notes = [f"left out: {', '.join(others[:SHOWN])}{more}"] if others else []
    return sorted(images, key=lambda path: natural(names[path])), notes


def relative(path: Path, root: Path) -> str:
    """Name a file inside its folder, with forward slashes and printable characters only."""
    return printable(path.relative_to(root).as_posix())
