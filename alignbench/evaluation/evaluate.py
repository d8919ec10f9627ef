"""Evaluate image sets under a protocol: measure every shard once, then turn rows into metrics.

All processes measure (`runs.together`), the first one scores. A result file that exists is not computed
again. Results of an untouched model are also kept in the cache folder, addressed by everything they depend
on, so that comparing ten methods evaluates the base once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignbench import run_folder
from alignbench.api import Evaluator, ImageSet, Metric, Reference
from alignbench.errors import RunFailed, UserError, failure_of
from alignbench.evaluation import features
from alignbench.evaluation.features import FeatureStore, Unit, units_of
from alignbench.files import code_digest, digest_of, read_json, write_json
from alignbench.hub.verify import AssetFile
from alignbench.progress import Progress, Stage
from alignbench.record import Subject
from alignbench.registry import interfaces
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import EvaluatorCard, ProtocolCard

Sets = Callable[[str, int], ImageSet]
"""(setting, sampling seed) → images; must be cheap to call."""
Wanting = tuple[str, str, int]
"""(evaluator, setting, sampling seed) without a result."""


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


def build_evaluators(
    registry: Registry, protocol: ProtocolCard, assets: Mapping[str, AssetFile], device: torch.device
) -> dict[str, Evaluator]:
    """Build a protocol's evaluators; raises UserError: one lacks a member, or refuses its files."""
    built: dict[str, Evaluator] = {}
    for name in protocol.evaluators:
        card = registry.evaluator(name)
        options = {key: option.default for key, option in card.options.items()}
        options |= protocol.options.get(name, {})
        files = {asset: assets[asset] for asset in card.assets}
        target = interfaces.load(registry, "evaluators", name)
        with failure_of(f"evaluator {name!r}"):
            built[name] = target(card, options=options, assets=files, device=device)
        interfaces.require(f"evaluator {name!r}", built[name], interfaces.OBJECT_MEMBERS["evaluators"])
    return built


def _store(
    folder: Path, name: str, evaluator: Evaluator, images: ImageSet, device: torch.device
) -> FeatureStore:
    """Rows depend on the images, their cut, the evaluator and what computes them."""
    made_of = {"form": features.FORM, "images": images.identity, "shards": len(images.shards())}
    made_of["evaluator"] = evaluator.identity
    return FeatureStore(folder / name, digest_of({**made_of, **computed_by(device)}))


def computed_by(device: torch.device) -> dict[str, str]:
    """What a number may depend on besides what it is computed from."""
    return {"alignbench": code_digest(), "torch": torch.__version__, "device": device.type}


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
        if self.images is None:
            return []
        numbers = range(len(self.images.shards()))
        stores = {name: self._row_store(name, evaluator) for name, evaluator in evaluators.items()}
        return [name for name, store in stores.items() if not all(map(store.has, numbers))]

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
        store = _store(self.folder, name, evaluator, self.images, self.device)
        # Its own folder: data sets and networks share the cache.
        return replace(store, folder=self.folder / f"{name}-{store.key[:16]}")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluates the image sets of one subject under one protocol."""

    subject: Subject
    """Names the folders."""
    sets: Sets
    address: Mapping[str, Any]
    """Whatever decides the images, as plain data; with the evaluator it is a result's address."""
    protocol: ProtocolCard
    evaluators: Mapping[str, Evaluator]
    cards: Mapping[str, EvaluatorCard]
    references: References
    device: torch.device
    folder: Path
    """Of the run."""
    cache: Path | None
    """Folder of results shared between runs, or None."""

    def wanting(self) -> list[Wanting]:
        """Return what has no result yet."""
        return [
            (name, setting, seed)
            for setting, seed in self._addresses()
            for name in self.evaluators
            if self._stored(name, setting, seed) is None
        ]

    def units(self, wanting: Sequence[Wanting]) -> list[Unit]:
        """Return the shards to be measured for results that are wanting."""
        units = []
        for setting, seed in dict.fromkeys((setting, seed) for _, setting, seed in wanting):
            images = self.sets(setting, seed)
            names = [n for n in self.evaluators if (n, setting, seed) in wanting]
            stores = {name: self._rows(name, images, setting, seed) for name in names}
            units += units_of(images, {name: self.evaluators[name] for name in names}, stores)
        return units

    def uses_reference(self, name: str) -> bool:
        """Whether an evaluator compares with the reference."""
        return "reference" in self.cards[name].needs

    def scores(self, progress: Progress) -> list[Score]:
        """Return the scores of every evaluator, setting and seed; all shards must have been measured."""
        sets = [(name, *address) for name in self.evaluators for address in self._addresses()]
        with progress.stage(f"score {self.subject}", len(sets)) as stage:
            return [self._score(*address, stage) for address in sets]

    def _addresses(self) -> list[tuple[str, int]]:
        return [(setting, seed) for setting in self.protocol.settings for seed in self.protocol.seeds]

    def _rows(self, name: str, images: ImageSet, setting: str, seed: int) -> FeatureStore:
        folder = run_folder.row_folder(self.folder, self.subject, setting, seed)
        return _store(folder, name, self.evaluators[name], images, self.device)

    def _stored(self, name: str, setting: str, seed: int) -> Score | None:
        address = self._address(name, setting, seed)
        shared = self._shared(address)
        own = _read(self._path(name, setting, seed), address)
        stored = own or (_read(shared, address) if shared else None)
        # The setting's name is not part of its identity: another protocol card may call it otherwise.
        return replace(stored, setting=setting) if stored else None

    def _score(self, name: str, setting: str, seed: int, stage: Stage) -> Score:
        score = self._stored(name, setting, seed) or self._compute(name, setting, seed)
        address = self._address(name, setting, seed)
        path, shared = self._path(name, setting, seed), self._shared(address)
        if _read(path, address) is None:
            _write(path, score, address)
        if shared is not None and _read(shared, address) is None:
            try:
                _write(shared, score, address)
            except OSError as error:  # only other runs would have gained from it
                stage.say(f"{shared} cannot be written: {error.strerror}")
        stage.advance()
        return score

    def _compute(self, name: str, setting: str, seed: int) -> Score:
        images = self.sets(setting, seed)
        store = self._rows(name, images, setting, seed)
        rows = store.rows(len(images.shards()))
        evaluator = self.evaluators[name]
        started = time.monotonic()
        try:
            reference = self.references.of(name, evaluator) if self.uses_reference(name) else None
            with failure_of(f"evaluator {name!r}"):
                metrics = _checked(evaluator.score(rows, reference), self.cards[name])
        except UserError as error:
            what = f"{name}, {self.subject} at {setting}: {error.what}"
            if isinstance(error, RunFailed):
                raise RunFailed(what, fix=error.fix) from error
            raise UserError(what, fix=error.fix, exit_code=error.exit_code) from error
        seconds = time.monotonic() - started
        score = Score(
            evaluator=name,
            setting=setting,
            seed=seed,
            metrics={m.name: m.value if math.isfinite(m.value) else None for m in metrics},
            images=len(rows),
            samples_digest=rows.digest,
            sample_seconds=rows.load_seconds,
            evaluate_seconds=rows.seconds + seconds,
            intervals={
                m.name: list(m.interval)
                for m in metrics
                if m.interval is not None and all(map(math.isfinite, m.interval))
            },
            resampled={m.name: list(m.resampled) for m in metrics if m.resampled},
        )
        # The result first: without it the rows would have to be measured again.
        _write(self._path(name, setting, seed), score, self._address(name, setting, seed))
        card = self.cards[name]
        columns = {fact.column for fact in card.metrics.values() if fact.column}
        store.reduce(len(images.shards()), sorted(columns.union(card.keep)))
        return score

    def _path(self, name: str, setting: str, seed: int) -> Path:
        return self.folder / "metrics" / f"{self.subject}-{setting}-seed-{seed}-{name}.json"

    def _shared(self, address: str) -> Path | None:
        """Where a result that depends on nothing but its address is shared between runs."""
        return self.cache / f"{address[:32]}.json" if self.cache else None

    def _address(self, name: str, setting: str, seed: int) -> str:
        """Digest of everything that decides a result; kept with it, so that no other is taken for it."""
        address = {
            **self.address,
            "evaluator": name,
            "identity": self.evaluators[name].identity,
            "setting": self.protocol.settings[setting].model_dump(mode="json", exclude={"name", "title"}),
            "seed": seed,
            "reference": self.references.digest,
            **computed_by(self.device),
        }
        return digest_of(address)


def _checked(metrics: Sequence[Metric], card: EvaluatorCard) -> list[Metric]:
    """Return them; raises TypeError or ValueError unless they are different metrics of the card."""
    seen: set[str] = set()
    for metric in metrics:
        if not isinstance(metric, Metric):
            raise TypeError(f"score returned {type(metric).__name__}, not Metric")
        if metric.name not in card.metrics or metric.name in seen:
            raise ValueError(f"score returned {metric.name!r} twice, or the card lacks it")
        if metric.interval is not None and len(metric.interval) != 2:
            raise ValueError(f"the interval of {metric.name!r} has not two ends")
        for value in (metric.value, metric.n, *(metric.interval or ()), *metric.resampled):
            math.isfinite(value)  # TypeError: no number
        seen.add(metric.name)
    return list(metrics)


def _write(path: Path, score: Score, address: str) -> None:
    write_json(path, {"address": address, **asdict(score)})


def _read(path: Path, address: str) -> Score | None:
    """Read a result; None if there is none, it changed since, or is of another address: it is made again."""
    try:
        content = read_json(path)
        return Score(**content) if content.pop("address") == address else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
