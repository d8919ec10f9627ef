"""A protocol made ready to evaluate: its evaluators built, its reference opened, its image sets described.

Three kinds of images can be scored: what a model generates, what its tokenizer makes of real images, and
somebody else's images.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from alignbench.api import Backbone, Evaluator, ImageSet
from alignbench.data.dataset import open_dataset
from alignbench.evaluation.evaluate import Evaluation, Sets, build_evaluators
from alignbench.evaluation.real import References, computed_by
from alignbench.evaluation.reference import open_reference
from alignbench.evaluation.score import Score
from alignbench.files import cache_root, digest_of
from alignbench.hub.verify import Requirements
from alignbench.progress import Progress
from alignbench.record import ProtocolRef, Result, Subject
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import ProtocolCard
from alignbench.registry.schema import Scalar
from alignbench.samples.generated import ImageDecoder, Sampler, TokenImages
from alignbench.samples.real import DatasetImages
from alignbench.samples.reconstructed import ReconstructedImages

T = TypeVar("T")
MOMENTS_OF = "inception-2015-12-05"
"""Asset of the network whose moments are in a statistics file; other evaluators look at its images alone."""


@dataclass(frozen=True, kw_only=True)
class ProtocolEvaluation:
    """One protocol on one machine."""

    registry: Registry
    name: str
    """Of the protocol."""
    requirements: Requirements
    device: torch.device
    folder: Path
    """Of the run."""
    workers: int
    """Threads that decode images."""
    num_classes: int | None = None
    """That labels are drawn from; None for text."""
    data: Mapping[str, Scalar] = field(default_factory=dict)
    """Options for the reference data set."""

    @property
    def protocol(self) -> ProtocolCard:
        return self.requirements.protocol

    @cached_property
    def evaluators(self) -> dict[str, Evaluator]:
        """The protocol's evaluators; building them loads their networks."""
        return build_evaluators(self.registry, self.protocol, self.requirements.assets, self.device)

    @cached_property
    def reference_images(self) -> DatasetImages | None:
        """The reference data set; None where the protocol names none."""
        spec = self.protocol.reference
        if spec is None or not spec.dataset:
            return None
        dataset = open_dataset(
            self.registry.dataset(spec.dataset),
            split=spec.split,
            image_size=self.protocol.image_size,
            num_classes=self.num_classes,
            options=self.data,
            workers=self.workers,
            cache_dir=cache_root() / "data",
        )
        return DatasetImages(dataset, workers=self.workers)

    @cached_property
    def references(self) -> References:
        """What image sets are compared with; raises UserError: it does not fit the protocol."""
        spec = self.protocol.reference
        images: ImageSet | None = self.reference_images
        statistics: Mapping[str, Any] = {}
        digest = images.identity if images else None
        if spec is not None and spec.statistics:
            file = self.requirements.assets[spec.statistics]
            others = self.requirements.assets.items()
            networks = {name: other.sha256 for name, other in others if name == MOMENTS_OF}
            side = spec.image_size or self.protocol.image_size
            opened = open_reference(file.path, image_size=side, networks=networks)
            images, statistics, digest = opened.images, opened.statistics, f"sha256:{file.sha256}"
        # Rows of reference images are shared between runs where that is possible.
        folder = writable(cache_root() / "references") or self.folder / "rows" / "reference"
        return References(digest, images, statistics, folder, self.device)

    def model(
        self, subject: Subject, weights: str, backbone: Backbone, *, sampled: Backbone, cache: Path | None
    ) -> Evaluation:
        """Evaluate what a model generates, or reconstructs if that is the protocol's task.

        Args:
            weights: their digest.
            backbone: its tokenizer decodes.
            sampled: the same with the policy in the protocol's precision.
            cache: folder of results shared between runs, or None.
        """
        files = {name: file.sha256 for name, file in self.requirements.assets.items()}
        address = {"weights": weights, "protocol": self.requirements.digest, "assets": files}
        sampler = self.sampler(sampled)
        decoder = ImageDecoder(backbone, self.protocol, self.device)

        def generated(setting: str, seed: int) -> ImageSet:
            chosen = self.protocol.settings[setting]
            numbers = chosen.model_dump(exclude={"name", "title"})
            identity = digest_of({**address, "setting": numbers, "seed": seed, **computed_by(self.device)})
            folder = self.folder / "samples" / subject / setting / f"seed-{seed}"
            return TokenImages(sampler, decoder, folder, chosen, seed, identity)

        def reconstructed(setting: str, seed: int) -> ImageSet:
            assert self.reference_images is not None
            dataset = self.reference_images.dataset
            return ReconstructedImages(
                dataset,
                backbone,
                self.protocol,
                self.device,
                weights_digest=weights,
                seed=seed,
                workers=self.workers,
            )

        task = {"generation": generated, "reconstruction": reconstructed}[self.protocol.task]
        return self._evaluation(subject, task, address, cache)

    def sampler(self, backbone: Backbone) -> Sampler:
        """Return what generates the protocol's tokens."""
        prompts = self.requirements.prompts
        return Sampler(backbone, self.protocol, self.num_classes or 1, self.device, prompts)

    def samples(self, images: ImageSet) -> Evaluation:
        """Evaluate images that somebody else made."""
        address = {"images": images.identity, "protocol": self.requirements.digest}
        return self._evaluation("samples", lambda *_: images, address, None)

    def results(
        self, evaluation: Evaluation, progress: Progress, rewards: Sequence[str] = ()
    ) -> list[Result]:
        """Score what all processes have measured; `rewards` are the networks behind those of the training."""
        protocol, subject = self.protocol, evaluation.subject
        groups: dict[tuple[str, str], list[Score]] = {}
        for score in evaluation.scores(progress):
            groups.setdefault((score.setting, score.evaluator), []).append(score)
        identity = ProtocolRef(
            name=self.name,
            version=protocol.version,
            digest=self.requirements.digest,
            title=protocol.title,
            rank_by=protocol.rank_by,
        )
        return [
            Result(
                subject=subject,
                protocol=identity,
                setting=evaluation.setting_of(setting),
                seeds=[score.seed for score in members],
                n=members[0].images,
                reference=self.references.digest,
                evaluator=evaluator,
                metrics={key: [score.metrics[key] for score in members] for key in members[0].metrics},
                sample_seconds=sum(score.sample_seconds for score in members),
                evaluate_seconds=sum(score.evaluate_seconds for score in members),
                networks_used_as_reward=list(rewards),
                intervals=_by_seed(members[0].metrics, [score.intervals for score in members]),
                resampled=_by_seed(members[0].metrics, [score.resampled for score in members]),
                assets=self._read_by(evaluator),
            )
            for (setting, evaluator), members in groups.items()
        ]

    def _read_by(self, evaluator: str) -> dict[str, str]:
        """Digests of the files behind one evaluator's numbers."""
        card, protocol, assets = self.registry.evaluator(evaluator), self.protocol, self.requirements.assets
        names = list(card.assets)
        names += [protocol.prompts] if "prompts" in card.needs else []
        names += [protocol.reference.statistics] if protocol.reference and "reference" in card.needs else []
        return {name: f"sha256:{assets[name].sha256}" for name in names if name in assets}

    def _evaluation(
        self, subject: Subject, sets: Sets, address: Mapping[str, Any], cache: Path | None
    ) -> Evaluation:
        return Evaluation(
            subject=subject,
            sets=sets,
            address=address,
            protocol=self.protocol,
            evaluators=self.evaluators,
            cards={name: self.registry.evaluator(name) for name in self.protocol.evaluators},
            references=self.references,
            device=self.device,
            folder=self.folder,
            cache=cache,
        )


def _by_seed(metrics: Iterable[str], seeds: Sequence[Mapping[str, T | None]]) -> dict[str, list[T | None]]:
    """{metric: one entry per seed} of the metrics that any seed has an entry for."""
    rows = {metric: [seed.get(metric) for seed in seeds] for metric in metrics}
    return {metric: row for metric, row in rows.items() if any(row)}


def in_precision(backbone: Backbone, protocol: ProtocolCard) -> Backbone:
    """Return the generator with its policy in the protocol's precision; a copy where that is another one."""
    if protocol.precision == "fp32" or protocol.task == "reconstruction":
        return backbone
    copy = backbone.reference()
    copy.policy.to(torch.bfloat16)
    return copy


def writable(folder: Path) -> Path | None:
    """Return the folder, made if need be; None if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
