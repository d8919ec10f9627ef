"""Which images are drawn. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ImageChoice:
    """What is drawn from each model."""

    images: int = 400
    """From each model, for statistics of them; a contact sheet draws what it shows."""
    seed: int = 0
    """Of sampling."""
    setting: str = ""
    """Name or title of a sampling setting; empty: the protocol's first."""
    classes: Sequence[int] = ()
    """Ids; empty: all up to ten, or the first eight."""
    prompts: Sequence[str] = ()
    """Empty: the first of each task of the protocol's."""
