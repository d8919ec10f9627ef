"""Stand-ins that several packages' tests use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """One process of several, where only its number matters (a `features.Rank`)."""

    rank: int
    world_size: int
