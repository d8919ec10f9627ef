"""The reference of a protocol while it is evaluated: its images, their rows, or statistics alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from alignbench.api import Evaluator, ImageSet, Reference
from alignbench.evaluation.features import FORM, FeatureStore, Unit, units_of
from alignbench.files import code_digest, digest_of


@dataclass(frozen=True)
class References:
    """What all image sets of a protocol are compared with."""

    digest: str | None
    """Identity of images and statistics; None where a protocol has no reference."""
    images: ImageSet | None
    """None where only statistics, or nothing, are there."""
    statistics: Mapping[str, np.ndarray]
    folder: Path
    """Where rows of the reference images are kept."""
    device: torch.device

    def wanting(self, evaluators: Mapping[str, Evaluator]) -> list[str]:
        """Return the evaluators that have not seen all reference images."""
        units = self.units(evaluators)
        return sorted({name for unit in units for name in unit.absent()})

    def units(self, evaluators: Mapping[str, Evaluator]) -> list[Unit]:
        """Return the shards of the reference images."""
        if self.images is None or not evaluators:
            return []
        stores = {name: self._row_store(name, evaluator) for name, evaluator in evaluators.items()}
        return units_of(self.images, evaluators, stores)

    def of(self, name: str, evaluator: Evaluator) -> Reference | None:
        """Return the reference as one evaluator sees it."""
        if self.digest is None:
            return None
        rows = None
        if self.images is not None:
            rows = self._row_store(name, evaluator).rows(len(self.images.shards()))
        return Reference(digest=self.digest, measured=rows, statistics=self.statistics)

    def _row_store(self, name: str, evaluator: Evaluator) -> FeatureStore:
        assert self.images is not None
        store = store_of(self.folder, name, evaluator, self.images, self.device)
        # Its own folder: data sets and networks share the cache.
        return replace(store, folder=self.folder / f"{name}-{store.key[:16]}")


def store_of(
    folder: Path, name: str, evaluator: Evaluator, images: ImageSet, device: torch.device
) -> FeatureStore:
    """Rows depend on the images, their cut, the evaluator and what computes them."""
    made_of = {"form": FORM, "images": images.identity, "shards": len(images.shards())}
    made_of["evaluator"] = evaluator.identity
    return FeatureStore(folder / name, digest_of({**made_of, **computed_by(device)}))


def computed_by(device: torch.device) -> dict[str, str]:
    """What a number may depend on besides what it is computed from."""
    return {"alignbench": code_digest(), "torch": torch.__version__, "device": device.type}
