"""Stand-ins that several packages' tests use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from alignbench.dealing.pool import OwnBoard, Pool


def alone(units: int) -> Pool:
    """A pool of one process."""
    return Pool(OwnBoard(), "alone", units, 0, 1)


@dataclass
class Memory:
    """Measured columns of one image set (an `api.Measured`), handed out in shards of 5 rows."""

    rows: Mapping[str, np.ndarray]
    digest: str = "sha256:memory"

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def column(self, name: str) -> np.ndarray:
        return self.rows[name]

    def shards(self, name: str) -> Iterator[np.ndarray]:
        for start in range(0, max(1, len(self)), 5):
            yield self.rows[name][start : start + 5]
