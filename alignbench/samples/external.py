"""Generated images made elsewhere: a folder of pictures, an ADM sample file, or GenEval's folder layout.

Samples are scored as they are. They are never resized or cropped, since the filter would change every metric,
and none is left out: an image that cannot be read faithfully is an error that names it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from alignbench.api import ImageBatch, Prompt
from alignbench.data.decode import decode_cropped, decode_exact
from alignbench.data.numbered import choose
from alignbench.errors import UserError
from alignbench.samples import geneval_layout
from alignbench.samples.npz import Archive, NpzArray
from alignbench.samples.pictures import PictureFiles, list_pictures, relative, remembered_digests
from alignbench.samples.pixels import channels_first
from alignbench.samples.real import SHARD, shards

Fit = Literal["exact", "crop"]
"""`exact`: only images of the wanted size; `crop`: ADM's centre crop, for real images of a reference."""


@dataclass(eq=False)
class SampleImages:
    """Images with a fixed order, an `api.ImageSet`; see `open_samples`."""

    title: str
    """How messages name it."""
    identity: str
    """Digest of names and contents of the files."""
    count: int
    """Images, N."""
    read: Callable[[range], Tensor]
    """Image ids → [n, 3, H, W] uint8."""
    labels: np.ndarray | None = None
    """[N] int64 class ids."""
    prompts: Sequence[Prompt] = ()
    """One per image, or none."""
    batch: int = SHARD
    """Images that are worked on together; shards are whole numbers of it."""
    notes: Sequence[str] = ()
    """What a reader of the numbers should know about the files."""

    def __len__(self) -> int:
        return self.count

    def shards(self) -> list[range]:
        return shards(self.count, self.batch)

    def load(self, number: int) -> ImageBatch:
        """Return one shard; raises UserError, by name, for images that turn out to be damaged."""
        return self.take(self.shards()[number])

    def take(self, ids: range) -> ImageBatch:
        """Return any consecutive images."""
        rows = slice(ids.start, ids.stop)
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        return ImageBatch(ids=ids, images=self.read(ids), labels=labels, prompts=self.prompts[rows])


def open_samples(
    path: Path,
    *,
    image_size: int,
    prompts: Sequence[Prompt] = (),
    batch: int = SHARD,
    fit: Fit = "exact",
    limit: int = 0,
    seed: int = 0,
    workers: int = 2,
) -> SampleImages:
    """Open images that are already there.

    A folder is read at any depth, in natural order of the relative paths (`2.png` before `10.png`); hidden
    files are left out. Sub-folders named by numbers are class ids. An ADM file holds `arr_0` and perhaps
    class ids in `arr_1`. A folder in GenEval's layout says which prompt each image is of.

    Args:
        path: folder or `.npz` file.
        image_size: side the images must have.
        prompts: one for each image that is to be there, in order. Images in GenEval's layout are matched by
            the text beside them; what is asked of an image is always taken from here.
        batch: the protocol's, by which shards are cut.
        fit: `exact` refuses other sizes; an `.npz` file is never cropped.
        limit: keep a fixed random subset of a folder's images, by their names; 0 keeps all.
        seed: another seed, another subset.

    Raises:
        UserError: naming the files that do not fit and why; unreadable pixels may show up only in `load`.
    """
    if path.is_file():
        if limit:
            raise UserError(f"{path}: a subset can be taken of a folder only", fix="leave the limit out")
        return open_archive(Archive(path), image_size, prompts, batch)
    if not path.is_dir():
        raise UserError(f"{path} does not exist", fix="give a folder of images or an .npz file")
    notes: list[str] = []
    if geneval_layout.is_geneval_folder(path):
        layout = geneval_layout.read_layout(path)
        files = [file for file, _ in layout]
        expanded = list(_matched(path, layout, prompts) if prompts else (prompt for _, prompt in layout))
    else:
        files, notes = _in_order(path, prompts)
        names = [relative(file, path) for file in files]
        files = [files[position] for position in choose(names, limit=limit, seed=seed)]
        expanded = list(_by_order(path, len(files), prompts))
    decode = partial(decode_exact if fit == "exact" else decode_cropped, size=image_size)
    pictures = PictureFiles(path, files, decode, workers)
    if fit == "exact":
        pictures.check_headers(image_size)
    return SampleImages(
        title=str(path),
        identity=pictures.identity(),
        count=len(files),
        read=pictures.read,
        labels=pictures.labels(),
        prompts=expanded,
        batch=batch,
        notes=(*notes, *pictures.lossy_note()),
    )


def open_archive(
    archive: Archive, image_size: int, prompts: Sequence[Prompt] = (), batch: int = SHARD
) -> SampleImages:
    """Open an ADM file: pixels in `arr_0`, perhaps class ids in `arr_1`; raises UserError: they misfit."""
    pixels = _pixels_of(archive, image_size)
    return SampleImages(
        title=str(archive.path),
        identity=remembered_digests([archive.path], archive.path)[0],
        count=len(pixels),
        read=lambda ids: channels_first(pixels.read(ids.start, ids.stop)),
        labels=_class_ids_of(archive, len(pixels)),
        prompts=_by_order(archive.path, len(pixels), prompts),
        batch=batch,
    )


def _pixels_of(archive: Archive, image_size: int) -> NpzArray:
    """Return a reader of `arr_0`, [N, H, W, 3] uint8."""
    header = archive.headers.get("arr_0")
    if header is None:
        names = ", ".join(archive.headers) or "nothing"
        raise UserError(f"{archive.path}: no images: it has no array arr_0, but {names}")
    if header.dtype != np.uint8 or len(header.shape) != 4 or header.shape[3] != 3:
        raise UserError(
            f"{archive.path}: arr_0 is {header}, not uint8 N×H×W×3",
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


def _class_ids_of(archive: Archive, count: int) -> np.ndarray | None:
    """Return `arr_1`, [N] int64; None if there is none."""
    header = archive.headers.get("arr_1")
    if header is None:
        return None
    if header.shape != (count,) or header.dtype.kind not in "iu":
        raise UserError(f"{archive.path}: arr_1 is {header}, not {count} whole class ids")
    return archive.array("arr_1").astype(np.int64)


def _by_order(path: Path, count: int, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Return the prompts of images that follow their order; raises UserError: another number."""
    if prompts and count != len(prompts):
        fix = f"give {len(prompts)} images, those of one prompt after another"
        if count < len(prompts):
            fix += f"; {_fewer(count)}, if they are those of its first prompts"
        raise UserError(f"{path}: {count} images where the protocol has {len(prompts)}", fix=fix)
    return prompts


def _fewer(count: int) -> str:
    return f"--set protocol.samples={count}, a protocol of that number"


def _in_order(path: Path, prompts: Sequence[Prompt]) -> tuple[list[Path], list[str]]:
    """List a plain folder's pictures and notes on it; what only looks like GenEval's layout is refused."""
    if stray := next(path.glob(f"*/{geneval_layout.METADATA}"), None):
        raise UserError(
            f"{stray}: prompts are only read from folders named by numbers", fix="call them 00000, 00001, …"
        )
    files, notes = list_pictures(path)
    return files, notes + ["images are matched with the prompts by their order"] * bool(prompts)


def _matched(path: Path, layout: Sequence[tuple[Path, Prompt]], prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the protocol's prompt of each image, by the text that its folder names.

    Raises:
        UserError: a folder that says other things of a prompt than the protocol, a prompt that is not among
            the protocol's, or another number of images of one: the metrics would be of other images.
    """
    by_text: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_text[prompt.text].append(prompt)
    matched = []
    for file, own in layout:
        candidates = by_text.get(own.text)
        if candidates is None:
            raise UserError(
                f"{path}: {own.text!r} is not among the prompts of the protocol's {len(prompts)} images",
                fix="give images of its prompt file alone, those of the first prompts",
            )
        fitting = [prompt for prompt in candidates if not _differences(own, prompt)]
        if not fitting:
            keys = ", ".join(_differences(own, candidates[0]))
            raise UserError(
                f"{file}: its {geneval_layout.METADATA} differs from the protocol's prompt file in {keys}",
                fix="what is asked of an image comes from the protocol: put the file's own line there",
            )
        matched.append(fitting[0])
    found, count = Counter(prompt.text for prompt in matched), len(matched)
    for text, same in by_text.items():
        if found[text] != len(same):
            first = found == Counter(prompt.text for prompt in prompts[:count])
            raise UserError(
                f"{path}: {found[text]} images of {text!r} where the protocol has {len(same)}",
                fix=_fewer(count) if first else "give as many of every prompt as the protocol has",
            )
    return matched


def _differences(own: Prompt, wanted: Prompt) -> list[str]:
    """Return the keys in which what a folder says of its prompt differs; a line may hold the text alone."""
    if not wanted.metadata:  # a plain list of texts asks nothing
        return []
    asked = {"tag": wanted.tag, "prompt": wanted.text, **wanted.metadata}
    return [key for key, value in own.metadata.items() if asked.get(key) != value]
