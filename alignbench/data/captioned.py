"""Images with captions: what a caption is, which one is taken, and how samples become a data set.

A sample whose image cannot be read, or which has no caption, is left out and listed with the reason, as
unreadable images are everywhere. Nothing stands in for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignbench.data.dataset import ProgressCallback, ordered_map
from alignbench.data.encoded import EncodedImages, Source, UnreadableImage, choose, open_encoded
from alignbench.registry.schema import Scalar

CAPTION_KEYS = ("caption", "text", "prompt", "captions")
"""Where a JSON object may hold its caption, in order of preference."""
IMAGE_KEYS = ("image", "file_name", "image_path", "path")
"""Where a line of a manifest may name its image."""
NO_CAPTION = "no caption"
MAX_CAPTION_BYTES = 1 << 20
"""Largest caption file that is read."""


@dataclass(frozen=True)
class Sample:
    """One image of a source with all of its captions, before it is checked."""

    name: str
    """Unique; how lists of what was left out call it."""
    captions: tuple[str, ...] = ()
    problem: str = ""
    """Why it is left out before its image is even looked at."""


@dataclass(frozen=True)
class Listing:
    """All samples of a source, by position."""

    names: Sequence[str]
    sample: Callable[[int], Sample]
    """Called once for each sample that is used; may read a file."""
    read: Callable[[int], bytes]
    """Encoded picture; called from several threads, and not for samples with a problem."""
    identity: str
    """Changes whenever a picture may have changed."""

    @classmethod
    def of(cls, samples: Sequence[Sample], read: Callable[[int], bytes], identity: str) -> Listing:
        """List samples that are known already."""
        return cls([sample.name for sample in samples], samples.__getitem__, read, identity)


def captions_in(value: Any) -> tuple[str, ...]:
    """Return the captions in a JSON value: a text, or those texts of a list that are not empty."""
    texts = value if isinstance(value, list) else [value]
    return tuple(text.strip() for text in texts if isinstance(text, str) and _is_caption(text))


def captions_of_object(content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return the captions in a JSON object.

    Args:
        content: the object.
        key: where they are; empty: the first of `CAPTION_KEYS` that holds any.
    """
    found = (captions_in(content.get(name)) for name in ([key] if key else CAPTION_KEYS))
    return next(filter(None, found), ())


def read_captions(data: bytes, *, is_json: bool, key: str) -> tuple[tuple[str, ...], str]:
    """Return (captions, problem) of a caption file: a JSON object, or a text, one caption as a whole."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return (), "the caption is not UTF-8 text"
    if not is_json:
        found = captions_in(text)
        return found, "" if found else "the caption is empty"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return (), "the caption file is not JSON"
    found = captions_of_object(content, key) if isinstance(content, dict) else ()
    return found, "" if found else f"{NO_CAPTION} under {key or ', '.join(CAPTION_KEYS)}"


def open_samples(
    listing: Listing,
    *,
    title: str,
    options: Mapping[str, Scalar],
    image_size: int,
    workers: int,
    cache_dir: Path,
    progress: ProgressCallback | None,
) -> EncodedImages:
    """Check samples and open the good ones.

    Args:
        listing: the samples in their order.
        title: what messages call the source.
        options: `choice`, `limit` and `subset_seed`.
        image_size: side of the loaded images.
        workers: threads that decode.
        cache_dir: where the outcome of the check is kept.
        progress: told how many are checked.

    Raises:
        UserError: there is no good sample.
    """
    seed = int(options["subset_seed"])
    kept = choose(listing.names, limit=int(options["limit"]), seed=seed)
    chosen = list(ordered_map(listing.sample, kept, workers=workers))

    def read_kept(position: int) -> bytes:
        if chosen[position].problem:
            raise UnreadableImage(chosen[position].problem)
        return listing.read(kept[position])

    # A sample that has lost its caption since the last time has to be looked at again.
    problems = json.dumps([listing.identity, [sample.problem for sample in chosen]])
    source = Source(
        title=title,
        names=[sample.name for sample in chosen],
        labels=[0] * len(chosen),
        class_names=(),
        read=read_kept,
        identity=hashlib.sha256(problems.encode()).hexdigest(),
        captions=[_choose_caption(sample, str(options["choice"]), seed) for sample in chosen],
    )
    return open_encoded(
        source, image_size=image_size, workers=workers, cache_dir=cache_dir, progress=progress
    )


def _choose_caption(sample: Sample, choice: str, seed: int) -> str:
    """Return one caption: the first, or one that depends on the sample's name and the seed alone."""
    if not sample.captions:
        return ""
    if choice == "first":
        return sample.captions[0]
    text = f"{seed}/caption/{sample.name}".encode("utf-8", "surrogateescape")
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return sample.captions[number % len(sample.captions)]


def _is_caption(text: str) -> bool:
    """Whether a text says anything and can be written down; JSON may hold halves of characters."""
    return bool(text.strip()) and text == text.encode("utf-8", "replace").decode("utf-8")
