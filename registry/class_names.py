"""What classes are called in words that a text model knows: a card's list, a package's table, or a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from alignbench.errors import UserError
from alignbench.registry.lookup import import_target
from alignbench.registry.schema import DatasetCard

SYNSET = re.compile(r"n[0-9]{8}\s+")
"""A WordNet id with the names of its class behind it, as in ImageNet's `LOC_synset_mapping.txt`."""


def _wordnet() -> Sequence[str]:
    from timm.data.imagenet_info import ImageNetInfo  # slow

    info = ImageNetInfo()
    return [info.index_to_description(number) for number in range(info.num_classes())]


TABLES: dict[str, Callable[[], Sequence[str]]] = {
    "openai": partial(import_target, "open_clip.zero_shot_metadata:IMAGENET_CLASSNAMES"),
    "wordnet": _wordnet,
}
"""ImageNet's classes in the order of their ids: OpenAI's cleaned names; all words of each synset."""


def class_names(card: DatasetCard, names: str = "", num_classes: int | None = None) -> Sequence[str]:
    """Return the name of each class, in order of the id; perhaps none.

    Args:
        names: one of `TABLES` or a file, see `read_names`; empty: what the card gives or points to.

    Raises:
        UserError: what it points to is not installed, or as `read_names`.
    """
    if names:
        return read_names(names, num_classes)
    if not isinstance(card.class_names, str):
        return card.class_names
    return _imported(f"class names of {card.title}", partial(import_target, card.class_names))


def read_names(names: str, num_classes: int | None) -> Sequence[str]:
    """Return a table of `TABLES`, or a file's names, one a line, perhaps behind a WordNet id.

    Raises:
        UserError: a package is missing, the file cannot be read, or there is not one name for each class.
    """
    if names in TABLES:
        found = _imported(f"class names {names!r}", TABLES[names])
    else:
        try:
            lines = Path(names).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"data.names: {names} is neither {' nor '.join(TABLES)} nor a file that can be read",
                fix="give a UTF-8 file with a name for each class, one a line, in order of the id",
            ) from error
        found = [SYNSET.sub("", line.strip(), count=1) for line in lines if line.strip()]
    if num_classes is not None and len(found) != num_classes:
        raise UserError(f"data.names: {names} names {len(found)} classes, the model has {num_classes}")
    return found


def _imported(what: str, table: Callable[[], Sequence[str]]) -> Sequence[str]:
    try:
        return table()
    except (ImportError, UserError) as error:
        reason = error.what if isinstance(error, UserError) else str(error)
        raise UserError(f"{what}: {reason}", fix="pip install 'alignbench[rewards]'") from error
