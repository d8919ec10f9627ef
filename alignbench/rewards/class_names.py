"""Names of classes for rewards that read a text."""

from __future__ import annotations

from collections.abc import Sequence

from alignbench.errors import UserError
from alignbench.registry.lookup import import_target
from alignbench.registry.schema import DatasetCard


def class_names(card: DatasetCard) -> Sequence[str]:
    """Return the names that a dataset card gives or points to, in order of the class id; perhaps none.

    Raises:
        UserError: what it points to is not installed.
    """
    if not isinstance(card.class_names, str):
        return card.class_names
    try:
        names: Sequence[str] = import_target(card.class_names)
    except UserError as error:
        raise UserError(
            f"class names of {card.title}: {error.what}", fix="pip install 'alignbench[rewards]'"
        ) from error
    return names
