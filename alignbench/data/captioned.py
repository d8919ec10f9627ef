"""Images with captions: what a caption is, which one is taken, and how samples become a data set.

A sample whose image cannot be read, or which has no caption, is left out and listed with the reason, as
unreadable images are everywhere. Nothing stands in for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignbench.data.decode import UnreadableImage, ordered_map, reason_of
from alignbench.data.encoded import Source
from alignbench.data.numbered import choose
from alignbench.files import parse_json
from alignbench.registry.schema import Scalar

CAPTION_KEYS = ("caption", "text", "prompt", "captions")
"""Where a JSON object may hold its caption, in order of preference."""
CAPTION_FILES = (".txt", ".json")
"""Beside the image and of the same name; the first that exists counts. With a caption key only JSON does."""
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
        """List samples that are in memory already."""
        return cls([sample.name for sample in samples], samples.__getitem__, read, identity)


def captions_in(value: Any) -> tuple[str, ...]:
    """Return the captions in a JSON value: a text, or those texts of a list that are not empty."""
    texts = value if isinstance(value, list) else [value]
    return tuple(text.strip() for text in texts if isinstance(text, str) and _is_caption(text))


def _is_caption(text: str) -> bool:
    """Whether a text says anything and can be written down; JSON may hold halves of characters."""
    return bool(text.strip()) and text == text.encode("utf-8", "replace").decode("utf-8")


def captions_of_object(content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return the captions under a key of a JSON object; without one, under the first of the usual keys that
    holds any."""
    captions = (captions_in(content.get(name)) for name in ([key] if key else CAPTION_KEYS))
    return next(filter(None, captions), ())


def read_captions(
    files: Mapping[str, Callable[[int], bytes]], key: str, where: str
) -> tuple[tuple[str, ...], str]:
    """Read the caption file of an image; return (captions, problem), one of which is empty.

    Args:
        files: {ending: reads so many bytes at most} of the caption files that there are.
        key: of the caption in JSON; empty: the usual ones, and a text file goes first.
        where: ends the message that there is none.
    """
    endings = CAPTION_FILES[1:] if key else CAPTION_FILES
    ending = next((ending for ending in endings if ending in files), None)
    if ending is None:
        return (), f"{NO_CAPTION}: no {' or '.join(endings)} file {where}"
    try:
        data = files[ending](MAX_CAPTION_BYTES + 1)
    except OSError as error:
        return (), f"the caption file: {reason_of(error)}"
    if len(data) > MAX_CAPTION_BYTES:
        return (), f"the caption file is larger than {MAX_CAPTION_BYTES >> 20} MiB"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return (), "the caption is not UTF-8 text"
    if ending == ".txt":
        captions = captions_in(text)
        return captions, "" if captions else "the caption is empty"
    try:
        content = parse_json(text)
    except ValueError:
        return (), "the caption file is not JSON"
    captions = captions_of_object(content, key) if isinstance(content, dict) else ()
    return captions, "" if captions else f"{NO_CAPTION} under {key or ', '.join(CAPTION_KEYS)}"


def captioned_source(listing: Listing, *, title: str, options: Mapping[str, Scalar], workers: int) -> Source:
    """Choose samples, and one caption of each, by the options `choice`, `limit` and `subset_seed`."""
    seed = int(options["subset_seed"])
    kept = choose(listing.names, limit=int(options["limit"]), seed=seed)
    samples = list(ordered_map(listing.sample, kept, workers=workers))

    def read(position: int) -> bytes:
        if samples[position].problem:
            raise UnreadableImage(samples[position].problem)
        return listing.read(kept[position])

    # A sample that has lost its caption since the last time has to be looked at again.
    problems = json.dumps([listing.identity, [sample.problem for sample in samples]])
    return Source(
        title=title,
        names=[sample.name for sample in samples],
        labels=[0] * len(samples),
        class_names=(),
        read=read,
        identity=hashlib.sha256(problems.encode()).hexdigest(),
        captions=[_choose_caption(sample, str(options["choice"]), seed) for sample in samples],
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
