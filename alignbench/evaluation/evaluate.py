"""Evaluate image sets under a protocol: measure every shard once, then turn rows into metrics.

All processes measure (`runs.together`), the first one scores. A result file that exists is not computed
again. Results of an untouched model are also kept in the cache folder, addressed by everything they depend
on, so that comparing ten methods evaluates the base once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from alignbench import run_folder
from alignbench.api import Evaluator, ImageSet, Metric
from alignbench.errors import RunFailed, UserError, failure_of
from alignbench.evaluation.features import FeatureStore, Unit, units_of
from alignbench.evaluation.real import References, computed_by, store_of
from alignbench.evaluation.sample_log import FOLDER, NOTES, ImageNotes, SampleLog, columns_of, recorded
from alignbench.evaluation.score import Score, read_score, write_score
from alignbench.files import digest_of
from alignbench.hub.verify import AssetFile
from alignbench.progress import Progress, Stage
from alignbench.record import Result, Subject
from alignbench.registry import interfaces
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import EvaluatorCard, ProtocolCard, Setting

Sets = Callable[[str, int], ImageSet]
"""(setting, sampling seed) → images; must be cheap to call."""
Wanting = tuple[str, str, int]
"""(evaluator, setting, sampling seed) without a result; or `NOTES` for the rows of a log."""


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
    notes: ImageNotes | None = None
    """What a log of the samples says besides; None: none is wanted."""

    def wanting(self) -> list[Wanting]:
        """Return what has no result yet, and the sets whose log is wanted and not there."""
        found: list[Wanting] = []
        for address in self.addresses:
            pending = [name for name in self.evaluators if self._stored(name, *address) is None]
            found += [(name, *address) for name in pending]
            if self.notes and (pending or not self._is_logged(*address)):
                found.append((NOTES, *address))
        return found

    def units(self, wanting: Sequence[Wanting]) -> list[Unit]:
        """Return the shards to be measured for what is wanting."""
        units = []
        for address in dict.fromkeys((setting, seed) for _, setting, seed in wanting):
            images = self.sets(*address)
            stores = self._log_rows(images, *address) if (NOTES, *address) in wanting else {}
            names = [name for name in self.evaluators if (name, *address) in wanting]
            stores |= {name: self._rows(name, images, *address) for name in names}
            units += units_of(images, {name: self._measuring(name) for name in stores}, stores)
        return units

    def uses_reference(self, name: str) -> bool:
        """Whether an evaluator compares with the reference."""
        return name != NOTES and "reference" in self.cards[name].needs

    def scores(self, progress: Progress) -> list[Score]:
        """Return the scores of every evaluator, setting and seed; all shards must have been measured."""
        sets = [(name, *address) for name in self.evaluators for address in self.addresses]
        with progress.stage(f"score {self.subject}", len(sets)) as stage:
            return [self._score(*address, stage) for address in sets]

    def write_logs(self, results: Sequence[Result], progress: Progress) -> list[Path]:
        """Write the log of every image set that has none yet; return the files of all.

        Raises:
            RunFailed: rows are missing or do not give the metrics of the results.
        """
        paths = []
        addresses = self.addresses
        with progress.stage(f"log {self.subject}", len(addresses)) as stage:
            for setting, seed in addresses:
                images = self.sets(setting, seed)
                log = self._log(images, setting, seed)
                if not log.is_written():
                    stores = self._log_rows(images, setting, seed)
                    log.write(stores, images.shards(), recorded(results, self.subject, setting, seed))
                    for name, store in stores.items():
                        store.reduce(len(images.shards()), self.cards[name].kept if name != NOTES else ())
                paths.append(log.path)
                stage.advance()
        return paths

    def setting_of(self, name: str) -> Setting:
        """Return a setting as records have it: without numbers where nothing is sampled."""
        setting = self.protocol.settings[name]
        sampled = self.subject != "samples" and self.protocol.task == "generation"
        return setting if sampled else Setting.unsampled(name, setting.title)

    def _is_logged(self, setting: str, seed: int) -> bool:
        """Whether no log is wanted or it is there; the set has been scored."""
        return self.notes is None or self._log(self.sets(setting, seed), setting, seed).is_written()

    def _log(self, images: ImageSet, setting: str, seed: int) -> SampleLog:
        assert self.notes is not None
        columns, rewards = columns_of(self.cards), self.notes.rewards
        scores = filter(None, (self._stored(name, setting, seed) for name in self.evaluators))
        header = {
            **self.notes.about,
            "subject": self.subject,
            "setting": self.setting_of(setting).model_dump(mode="json"),
            "seed": seed,
            "images": len(images),
            "image_set": images.identity,
            "pixels": [score.samples_digest for score in scores][:1],
            "evaluators": {name: evaluator.identity for name, evaluator in self.evaluators.items()},
            "scores": {name: meaning for name, (_, _, meaning) in columns.items()},
            "rewards": dict(rewards.facts) if rewards else {},
            "rewards_left_out": dict(rewards.left_out) if rewards else {},
            "notes": self.notes.identity,
        }
        path = self.folder / FOLDER / f"{self.subject}-{setting}-seed-{seed}.jsonl"
        return SampleLog(path, header, self.notes, columns)

    def _log_rows(self, images: ImageSet, setting: str, seed: int) -> dict[str, FeatureStore]:
        names = [name for name in self.evaluators if self.cards[name].kept]
        stores = {name: self._rows(name, images, setting, seed) for name in [*names, NOTES]}
        return {name: replace(store, reduced=True) for name, store in stores.items()}

    def _measuring(self, name: str) -> Evaluator:
        if name != NOTES:
            return self.evaluators[name]
        assert self.notes is not None
        return self.notes

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [(setting, seed) for setting in self.protocol.settings for seed in self.protocol.seeds]

    def _rows(self, name: str, images: ImageSet, setting: str, seed: int) -> FeatureStore:
        folder = run_folder.row_folder(self.folder, self.subject, setting, seed)
        return store_of(folder, name, self._measuring(name), images, self.device)

    def _stored(self, name: str, setting: str, seed: int) -> Score | None:
        address = self._address(name, setting, seed)
        shared = self._shared(address)
        own = read_score(self._path(name, setting, seed), address)
        stored = own or (read_score(shared, address) if shared else None)
        # The setting's name is not part of its identity: another protocol card may call it otherwise.
        return replace(stored, setting=setting) if stored else None

    def _score(self, name: str, setting: str, seed: int, stage: Stage) -> Score:
        score = self._stored(name, setting, seed) or self._compute(name, setting, seed)
        address = self._address(name, setting, seed)
        path, shared = self._path(name, setting, seed), self._shared(address)
        if read_score(path, address) is None:
            write_score(path, score, address)
        if shared is not None and read_score(shared, address) is None:
            try:
                write_score(shared, score, address)
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
        write_score(self._path(name, setting, seed), score, self._address(name, setting, seed))
        store.reduce(len(images.shards()), self.cards[name].kept)
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
