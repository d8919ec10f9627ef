"""Score sample sets with a protocol's evaluators, one file per result as each finishes.

A result file that exists is not computed again. Results of an untouched model are also kept in the cache
folder, addressed by everything they depend on, so that comparing ten methods evaluates the base once.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignbench import __version__, grid
from alignbench.api import Backbone, Evaluator, ImageSet
from alignbench.config import digest_of
from alignbench.files import write_atomic
from alignbench.progress import Progress, Stage
from alignbench.registry import members
from alignbench.registry.catalogue import Catalogue
from alignbench.registry.schema import ProtocolCard
from alignbench.sampling import ImageDecoder, Sampler, TokenImages, labels_of


@dataclass(frozen=True)
class Score:
    """What one evaluator says of one sample set."""

    evaluator: str
    setting: str
    seed: int
    metrics: dict[str, float | None]
    """None: could not be computed."""
    images: int
    samples_digest: str
    sample_seconds: float
    evaluate_seconds: float


def build_evaluators(
    catalogue: Catalogue, protocol: ProtocolCard, device: torch.device
) -> dict[str, Evaluator]:
    """Build the evaluators a protocol names, with their cards' default options."""
    built = {}
    for name in protocol.evaluators:
        card = catalogue.evaluator(name)
        options = {key: option.default for key, option in card.options.items()}
        built[name] = members.load(catalogue, "evaluators", name)(card, options, device)
        members.require(f"evaluator {name!r}", built[name], members.OBJECT_MEMBERS["evaluators"])
    return built


@dataclass(frozen=True)
class Evaluation:
    """Evaluates one set of weights under one protocol.

    Args:
        subject: `base` or `method`; names the folders.
        weights_digest: identity of the weights.
        backbone: the generator, on `device`.
        protocol: what to sample and how to score.
        protocol_digest: its identity.
        evaluators: built evaluators by name.
        reference: what samples are compared with.
        num_classes: classes labels are drawn from.
        device: where to work.
        folder: run folder.
        cache: folder of results shared between runs, or None.
    """

    subject: str
    weights_digest: str
    backbone: Backbone
    protocol: ProtocolCard
    protocol_digest: str
    evaluators: Mapping[str, Evaluator]
    reference: ImageSet
    num_classes: int
    device: torch.device
    folder: Path
    cache: Path | None

    def samples_folder(self, setting: str, seed: int) -> Path:
        return self.folder / "samples" / self.subject / setting / f"seed-{seed}"

    def images(self, setting: str, seed: int) -> TokenImages:
        """Return a finished sample set."""
        decoder = ImageDecoder(self.backbone, self.protocol, self.device)
        return TokenImages(self.samples_folder(setting, seed), decoder)

    def pictures(self, setting: str, seed: int) -> Tensor:
        """Return a few samples for a grid, uint8 [n, 3, H, W]: the same image ids for every subject."""
        sampler = Sampler(self._sampled_backbone(), self.protocol, self.num_classes, self.device)
        candidates = range(min(200, self.protocol.samples))
        labels = labels_of(self.protocol, self.num_classes, seed, candidates)
        tokens, _ = sampler.generate(self.protocol.settings[setting], seed, grid.choose(labels.tolist()))
        decoder = ImageDecoder(self.backbone, self.protocol, self.device)
        return decoder.decode(torch.from_numpy(tokens).long())

    def run(self, progress: Progress) -> list[Score]:
        """Return the scores of every setting, seed and evaluator, computing those that are missing."""
        sampler = Sampler(self._sampled_backbone(), self.protocol, self.num_classes, self.device)
        sets = [
            (evaluator, setting, seed)
            for evaluator in self.evaluators
            for setting in self.protocol.settings
            for seed in self.protocol.seeds
        ]
        with progress.stage(f"evaluate {self.subject}", len(sets) * len(sampler.shards())) as stage:
            return [self._score(sampler, *address, stage) for address in sets]

    def _score(self, sampler: Sampler, evaluator: str, setting: str, seed: int, stage: Stage) -> Score:
        path = self.folder / "metrics" / f"{self.subject}-{setting}-seed-{seed}-{evaluator}.json"
        shared = self._cache_path(evaluator, setting, seed)
        stored = _read(path) or (_read(shared) if shared else None)
        if stored is not None:
            # The setting's name is not part of its identity: another protocol card may call it otherwise.
            score = replace(stored, setting=setting)
            stage.advance(len(sampler.shards()))
        else:
            score = self._compute(sampler, evaluator, setting, seed, stage)
        text = json.dumps(asdict(score), indent=1) + "\n"
        if _read(path) is None:
            write_atomic(path, text)
        if shared is not None and _read(shared) is None:
            try:
                write_atomic(shared, text)
            except OSError as error:  # only other runs would have gained from it
                stage.say(f"{shared} cannot be written: {error.strerror}")
        return score

    def _compute(self, sampler: Sampler, evaluator: str, setting: str, seed: int, stage: Stage) -> Score:
        folder = self.samples_folder(setting, seed)
        sample_seconds = sampler.fill(folder, self.protocol.settings[setting], seed, stage)
        images = self.images(setting, seed)
        started = time.monotonic()
        metrics = self.evaluators[evaluator].score(images, self.reference)
        return Score(
            evaluator=evaluator,
            setting=setting,
            seed=seed,
            metrics={m.name: m.value if math.isfinite(m.value) else None for m in metrics},
            images=len(images),
            samples_digest=images.digest,
            sample_seconds=sample_seconds,
            evaluate_seconds=time.monotonic() - started,
        )

    def _sampled_backbone(self) -> Backbone:
        """The generator in the protocol's precision; a copy where that is not the training precision."""
        if self.protocol.precision == "fp32":
            return self.backbone
        copy = self.backbone.reference()
        copy.policy.to(torch.bfloat16)
        return copy

    def _cache_path(self, evaluator: str, setting: str, seed: int) -> Path | None:
        """Where a result that depends on nothing but its address is shared between runs."""
        if self.cache is None:
            return None
        address: dict[str, Any] = {
            "evaluator": evaluator,
            "weights": self.weights_digest,
            "protocol": self.protocol_digest,
            "setting": self.protocol.settings[setting].model_dump(mode="json", exclude={"title"}),
            "seed": seed,
            "reference": self.reference.digest,
            "alignbench": __version__,
            "torch": torch.__version__,
            "device": self.device.type,
        }
        return self.cache / f"{digest_of(address)[:32]}.json"


def _read(path: Path) -> Score | None:
    """Read a result file, or None if there is none or it is not whole: then the result is made again."""
    try:
        score = Score(**json.loads(path.read_text(encoding="utf-8")))
        numbers = [value for value in score.metrics.values() if value is not None]
        sound = all(isinstance(value, float | int) and math.isfinite(value) for value in numbers)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return score if sound else None
