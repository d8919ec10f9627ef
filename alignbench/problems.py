"""What stops a run before it starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Something that stops the run, and what to do about it."""

    where: str
    what: str
    fix: str = ""
