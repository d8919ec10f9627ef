"""A plan and how to carry it out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alignbench import hub
from alignbench.plan import Plan
from alignbench.registry.catalogue import Catalogue


@dataclass(frozen=True)
class Job:
    """A plan and how to carry it out; nothing here changes a result."""

    plan: Plan
    catalogue: Catalogue
    out: Path
    """The run folder."""
    command: str
    """What the user typed."""
    checkpoint_every: int = 20
    workers: int = 0
    """Threads that decode images in the background; 0: none."""
    exports: tuple[str, ...] = ()
    """Forms in which the scored images are written as well: `npz`, `png`."""

    @property
    def cache(self) -> Path:
        return hub.cache_root()
