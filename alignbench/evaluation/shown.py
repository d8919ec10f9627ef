"""The images that a page of a log shows: the extremes of every score, small enough to be mailed."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from alignbench.api import ImageSet
from alignbench.evaluation.extremes import Group, Place, facts_of, values_of
from alignbench.samples.pixels import channels_last

SMALL = 64
"""Images of so many pixels a side or fewer are shown as they are."""
THUMBNAIL = 160
"""Side of what is shown of others."""
PAGE_BYTES = 5 << 20
"""Of all picture files of a page, a third more in it; fewer are shown where they take more."""


def pictures_of(group: Group, images: Sequence[ImageSet], files: Sequence[str]) -> dict[str, Any]:
    """Return what a page shows of one subject at one setting; see `html.samples.page`."""
    header, columns = group.headers[0], list(facts_of(group.headers[0]))
    places = sorted(group.lines)
    pixels = _pixels(images, places)
    pictures = []
    for place in places:
        line, (picture, original) = group.lines[place], pixels[place]
        values, name = values_of(line), line.get("name")
        asked = line.get("prompt", f"{line['class']}: {name}" if name else str(line.get("class", "")))
        pictures.append({
            "id": line["id"], "seed": line["seed"], "asked": asked,
            "group": line["tag"] if "prompt" in line else asked,
            "src": encoded(picture), "original": None if original is None else encoded(original),
            "small": max(picture.shape) <= SMALL, "values": [values.get(column, "") for column in columns],
        })  # fmt: skip
    at = {place: number for number, place in enumerate(places)}
    ends = {columns.index(name): found for name, found in group.found.items()}
    return {
        "subject": header["subject"], "title": header["title"], "setting": header["setting"]["title"],
        "files": list(files), "images": sum(x["images"] for x in group.headers), "pictures": pictures,
        "worst": {column: [at[place] for place in one.worst] for column, one in ends.items()},
        "best": {column: [at[place] for place in one.best] for column, one in ends.items()},
        "tied": {column: one.tied for column, one in ends.items()},
    }  # fmt: skip


def _pixels(
    images: Sequence[ImageSet], places: Sequence[Place]
) -> Mapping[Place, tuple[np.ndarray, np.ndarray | None]]:
    """Load the images at some places with their originals, [H, W, 3] each; no shard twice."""
    wanted = defaultdict(list)
    for file, position in places:
        shards = images[file].shards()
        number = next(number for number, ids in enumerate(shards) if position < ids.stop - shards[0].start)
        wanted[file, number].append(position)
    found: dict[Place, tuple[np.ndarray, np.ndarray | None]] = {}
    for (file, number), positions in wanted.items():
        batch, first = images[file].load(number), images[file].shards()[number].start
        rows = [position - first for position in positions]
        pictures = channels_last(batch.images[rows])
        originals = None if batch.originals is None else channels_last(batch.originals[rows])
        for row, position in enumerate(positions):
            found[file, position] = (pictures[row], None if originals is None else originals[row])
    return found


def encoded(picture: np.ndarray) -> tuple[str, bytes]:
    """Return (type of the file, file) of [H, W, 3] uint8: a small picture as it is, another one smaller."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    if max(picture.shape) <= SMALL:
        image.save(buffer, format="PNG")
        return "image/png", buffer.getvalue()
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    image.save(buffer, format="JPEG", quality=85)
    return "image/jpeg", buffer.getvalue()


def fit(sets: Sequence[dict[str, Any]], count: int) -> int:
    """Leave out pictures until the page is small enough; return how many stay at each end."""
    while True:
        total = 0
        for one in sets:
            _keep(one, count)
            total += sum(_bytes(picture) for picture in one["pictures"])
        if total <= PAGE_BYTES or count == 1:
            return count
        count //= 2
        for one in sets:
            one["tied"] = {}  # of the longer lists


def _bytes(picture: Mapping[str, Any]) -> int:
    return sum(len(picture[key][1]) for key in ("src", "original") if picture[key])


def _keep(one: dict[str, Any], count: int) -> None:
    """Cut both ends of every score to `count` pictures, and drop those that no end needs."""
    for end in ("worst", "best"):
        one[end] = {column: numbers[:count] for column, numbers in one[end].items()}
    used = sorted({n for end in ("worst", "best") for numbers in one[end].values() for n in numbers})
    at = {number: place for place, number in enumerate(used)}
    one["pictures"] = [one["pictures"][number] for number in used]
    for end in ("worst", "best"):
        one[end] = {column: [at[number] for number in numbers] for column, numbers in one[end].items()}
