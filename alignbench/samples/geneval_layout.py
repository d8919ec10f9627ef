"""GenEval's folder layout: `00000/metadata.jsonl` and `00000/samples/0000.png`, a numbered folder per prompt.

Images may also lie beside the metadata, without `samples/`. Read so that images made for the official
evaluator can be scored here, written so that ours can be scored there (github.com/djghosh13/geneval,
`evaluation/evaluate_images.py`).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import ExifTags, Image

from alignbench.api import ImageBatch, Prompt
from alignbench.errors import UserError
from alignbench.files import parse_json, write_atomic
from alignbench.samples.pixels import channels_last

METADATA = "metadata.jsonl"
SAMPLES = "samples"
_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF_KEYS = (b"Raw profile type exif", b"XML:com.adobe.xmp", b"Raw profile type xmp")
"""Texts of a PNG file in which Pillow looks for an orientation."""


def is_geneval_folder(path: Path) -> bool:
    """Whether any numbered folder in it has metadata."""
    return path.is_dir() and any((folder / METADATA).is_file() for folder in _numbered(path))


def read_layout(path: Path) -> list[tuple[Path, Prompt]]:
    """List the images with their prompts: folders by number, in each the images by number.

    Folders and files whose names are not numbers are passed over, as by the official evaluator.

    Raises:
        UserError: a folder without metadata or images, metadata that cannot be read, or an image that its
            EXIF orientation turns. The official evaluator turns it; here pixels are scored as stored.
    """
    layout: list[tuple[Path, Prompt]] = []
    for folder in _numbered(path):
        prompt = _read_prompt(folder / METADATA)
        home = folder / SAMPLES if (folder / SAMPLES).is_dir() else folder
        files = _numbered(home, ".png")
        if not files:
            raise UserError(f"{home}: no image like 0000.png", fix="remove or fill the folder")
        layout += [(file, prompt) for file in files]
    if not layout:
        raise UserError(f"{path}: no numbered folder like 00000", fix=f"each has {METADATA} and {SAMPLES}/")
    for file, _ in layout:
        _refuse_turned(file)
    return layout


def write_layout(path: Path, batches: Iterable[ImageBatch]) -> int:
    """Write images as PNG and return how many; consecutive ones of a prompt share a folder, as order is kept.

    Raises:
        UserError: images without prompts, or a folder that already has numbered folders.
    """
    if path.is_dir() and any(_numbered(path)):
        raise UserError(f"{path} already holds numbered folders", fix="name a new folder")
    previous: Prompt | None = None
    folder = path
    folders = images = within = 0
    for batch in batches:
        if len(batch.prompts) != len(batch):
            raise UserError("images without prompts have no place in GenEval's layout")
        for pixels, prompt in zip(channels_last(batch.images), batch.prompts, strict=True):
            if prompt != previous:
                folder = path / f"{folders:05d}"
                (folder / SAMPLES).mkdir(parents=True, exist_ok=True)
                write_atomic(folder / METADATA, json.dumps(_metadata(prompt)) + "\n")
                folders, within, previous = folders + 1, 0, prompt
            Image.fromarray(pixels).save(folder / SAMPLES / f"{within:04d}.png")
            within, images = within + 1, images + 1
    return images


def write_results(
    path: Path, layout: Sequence[tuple[Path, Prompt]], correct: Sequence[bool], reasons: Sequence[str]
) -> None:
    """Write verdicts in the form of the official `results.jsonl`, for its `summary_scores.py`.

    `details` stays empty: boxes are not kept. Layout, as `read_layout` returned it, verdicts and reasons have
    one entry per image.
    """
    lines = []
    for (file, prompt), right, reason in zip(layout, correct, reasons, strict=True):
        metadata = _metadata(prompt)
        line = {
            "filename": str(file),
            "tag": metadata["tag"],
            "prompt": metadata["prompt"],
            "correct": bool(right),
            "reason": str(reason),
            "metadata": json.dumps(metadata),
            "details": "{}",
        }
        lines.append(json.dumps(line) + "\n")
    write_atomic(path, "".join(lines))


def _numbered(folder: Path, ending: str = "") -> list[Path]:
    """Return the files of a folder that are named by a number and an ending, without one its sub-folders."""
    items = [path for path in folder.glob("*") if re.fullmatch(f"[0-9]+{re.escape(ending)}", path.name)]
    items = [item for item in items if (item.is_file() if ending else item.is_dir())]
    return sorted(items, key=lambda item: (int(item.name.removesuffix(ending)), item.name))


def _metadata(prompt: Prompt) -> dict[str, object]:
    """The prompt's own line; plain prompts get the two fields every reader needs."""
    return {"tag": prompt.tag, "prompt": prompt.text, **prompt.metadata}


def _read_prompt(path: Path) -> Prompt:
    try:
        line = parse_json(path.read_text(encoding="utf-8-sig"))
        return Prompt(text=str(line["prompt"]), tag=str(line.get("tag", "")), metadata=line)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{path} is not one JSON object with a prompt"
        raise UserError(what, fix="see docs/evaluators/geneval.md") from error


# --- turned images --------------------------------------------------------------------------------


def _refuse_turned(file: Path) -> None:
    if not _may_be_turned(file):
        return
    with Image.open(file) as image:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation != 1:
        raise UserError(
            f"{file}: EXIF orientation {orientation} says that it is to be turned",
            fix="save it with its pixels turned and without EXIF",
        )


def _may_be_turned(file: Path) -> bool:
    """Whether a PNG file holds anything in which an orientation could be; reads chunk headers only."""
    with file.open("rb") as stream:
        if stream.read(len(_PNG)) != _PNG:
            return False  # not PNG whatever its name: the decoder will say so
        while len(header := stream.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            if kind == b"eXIf":
                return True
            start = stream.read(min(length, 32)) if kind in (b"tEXt", b"zTXt", b"iTXt") else b""
            if start.startswith(_EXIF_KEYS):
                return True
            stream.seek(length - len(start) + 4, 1)  # what is left of the chunk, and its checksum
    return False
