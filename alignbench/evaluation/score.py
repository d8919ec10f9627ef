"""What one evaluator says of one image set, and the file it is kept in."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from alignbench.files import read_json, write_json


@dataclass(frozen=True)
class Score:
    """What one evaluator says of one image set."""

    evaluator: str
    setting: str
    seed: int
    metrics: dict[str, float | None]
    """None: could not be computed."""
    images: int
    samples_digest: str
    """Of the pixels."""
    sample_seconds: float
    """Making or reading the images, over all processes."""
    evaluate_seconds: float
    intervals: dict[str, list[float] | None] = field(default_factory=dict)
    """95 % sampling error of this one set, of the metrics that have one."""
    resampled: dict[str, list[float]] = field(default_factory=dict)
    """Values on resamples of the images, of the metrics that have them; see `api.Metric`."""


def write_score(path: Path, score: Score, address: str) -> None:
    """Keep a score with the digest of everything that decides it; raises OSError."""
    write_json(path, {"address": address, **asdict(score)})


def read_score(path: Path, address: str) -> Score | None:
    """Read a score; None if there is none, it changed since, or is of another address: it is made again."""
    try:
        content = read_json(path)
        return Score(**content) if content.pop("address") == address else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
