"""The images behind pictures: of a starting model, of what runs made of it, real ones; each drawn once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from alignbench.api import ImageBatch, ImageSet
from alignbench.backbones.load import load_export
from alignbench.config.plan import Plan, default_workers, make_plan, weights_digest
from alignbench.evaluation.protocol import ProtocolEvaluation, in_precision
from alignbench.figures.choice import ImageChoice
from alignbench.figures.picture import BASE, REAL
from alignbench.figures.samples import Sheet
from alignbench.figures.source import NotDrawnError, Run, at_most, configurations, plural
from alignbench.files import cache_root
from alignbench.hub.locate import assets_of
from alignbench.leaderboard.cells import MOST
from alignbench.registry.class_names import class_names
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import Setting
from alignbench.runs.draw import draw
from alignbench.runs.evaluate_run import config_of, unchanged_weights
from alignbench.samples.generated import ImageDecoder
from alignbench.samples.pixels import channels_last
from alignbench.samples.real import DatasetImages
from alignbench.training.parallel import Parallel, choose_threads
from alignbench.training.setup import build_model

ALL_CLASSES, FIRST = 10, 8
"""A model with no more classes shows all; others so many of the first, as of prompts without tasks."""


@dataclass(frozen=True)
class Drawn:
    """A model to draw from."""

    plan: Plan
    run: Path | None
    """Folder whose export replaces the model's weights."""
    seeds: int = 1
    """Training seeds of the configuration; the lowest one is drawn."""


def models_of(runs: Sequence[Run], registry: Registry) -> dict[str, Drawn]:
    """Return the runs' one starting model as `BASE`, and {label: model} of each configuration's lowest seed.

    Raises:
        NotDrawnError: runs of several models or protocols, or of none; no folder of a finished run.
        UserError: files are missing, or weights are not what a record says.
    """
    runs = [run for run in runs if run.record.kind != "samples"]
    trained = [run for run in runs if run.record.method is not None]
    groups = configurations(trained) if trained else {}
    at_most(MOST, len(groups), "configurations")
    starts = {(run.record.model.name, weights_digest(run.record.model.weights)) for run in runs}
    if len(starts) != 1:
        names = ", ".join(sorted({name for name, _ in starts})) or "none"
        raise NotDrawnError(
            f"images are of one starting model, the runs are of {names}; name the runs of one"
        )
    made = {label: _drawn(members[0], registry, len(members)) for label, members in groups.items()}
    base = next(iter(made.values()), None) or _drawn(runs[0], registry)
    if len({drawn.plan.protocol_digest for drawn in made.values()}) > 1:
        raise NotDrawnError("the runs were made for several protocols; name the runs of one")
    return {BASE: replace(base, run=None), **made}


def _drawn(run: Run, registry: Registry, seeds: int = 1) -> Drawn:
    record, folder = run.record, run.folder
    if folder is None or record.status != "complete":
        what = "is a record alone" if folder is None else f"is {record.status}"
        raise NotDrawnError(f"{record.id} {what}: images are drawn from the folder of a finished run")
    config = replace(config_of(folder, registry), method=None, recipe=None)
    text = registry.model(config.model).text
    read = {*assets_of(registry, registry.protocol(config.protocol)), text.asset if text else ""}
    # Files of the rewards are nothing to what is left of the run.
    kept = {key: x for key, x in config.values.items() if not key.startswith("assets.") or key[7:] in read}
    plan = make_plan(registry, replace(config, values=kept))
    if lacking := [problem for problem in plan.problems if problem not in plan.requirements.problems]:
        raise NotDrawnError(f"{record.id}: {'; '.join(map(str, lacking))}")
    unchanged_weights(plan, record, folder)
    return Drawn(plan, folder, seeds)


class Gallery:
    """Images of a starting model and of the configurations trained from it; raises as `models_of`."""

    def __init__(self, runs: Sequence[Run], registry: Registry, choice: ImageChoice) -> None:
        self.registry, self.choice = registry, choice
        self.models = models_of(runs, registry)
        self.plan = self.models[BASE].plan
        self._rows: dict[str, dict[str, Mapping[str, np.ndarray]]] = {}

    @property
    def setting(self) -> Setting:
        """The chosen sampling setting; raises NotDrawnError: the protocol has none of that name."""
        protocol, wanted = self.plan.protocol, self.choice.setting
        if protocol.task != "generation":
            raise NotDrawnError(f"{protocol.title} scores reconstructions, for which nothing is sampled")
        for name, setting in protocol.settings.items():
            if wanted in ("", name, setting.title):
                return setting
        raise NotDrawnError(f"{protocol.title} has no setting {wanted!r}, but {', '.join(protocol.settings)}")

    @property
    def _subject(self) -> str:
        several = any(model.seeds > 1 for model in self.models.values())
        lowest = " (of several training seeds the lowest)" if several else ""
        return f"{self.plan.model.title} and what runs made of it{lowest}"

    @property
    def _how(self) -> str:
        return f"at {self.setting.title}, sampling seed {self.choice.seed}"

    def titles(self) -> dict[int, str]:
        """{class id: name} of the classes that are shown; raises UserError: the names cannot be read."""
        config, count = self.plan.config, self.plan.model.num_classes or 1
        given = str(config.section("data").get("names", ""))
        names = dict(enumerate(class_names(self.registry.dataset(config.dataset), given, count)))
        shown = self.choice.classes or range(count if count <= ALL_CLASSES else FIRST)
        return {number: names.get(number, f"class {number}") for number in shown}

    def _prompts(self) -> Sequence[str]:
        """Texts that are shown: the given ones, or the first of each task of the protocol."""
        self._require_protocol()
        first: dict[str, str] = {}
        for prompt in self.plan.prompts:
            first.setdefault(prompt.tag or prompt.text, prompt.text)
        tasks = any(prompt.tag for prompt in self.plan.prompts)
        return list(first.values())[: MOST if tasks else FIRST]

    def _require_protocol(self) -> None:
        if self.plan.requirements.problems:
            raise NotDrawnError("; ".join(map(str, self.plan.requirements.problems)))

    def sheet(self) -> Sheet:
        """Draw one image of each class or prompt from every model, at the model's own size.

        Raises:
            NotDrawnError: no such setting, too many classes or prompts, or the protocol's cannot be read.
            UserError: classes the model does not have, prompts for classes or the reverse.
        """
        text, choice = self.plan.model.condition == "text", self.choice
        prompts = choice.prompts or (self._prompts() if text else ())
        classes = choice.classes if text else list(self.titles())
        count = len(prompts) if text else len(classes)
        at_most(MOST, count, "columns of images")
        sampling = self.setting.sampling()
        drawn = {
            label: draw(model.plan, run=model.run, number=count, seed=choice.seed, classes=classes,
                        prompts=prompts, sampling=sampling)
            for label, model in self.models.items()
        }  # fmt: skip
        numbers: dict[str, Sequence[int]] = dict.fromkeys(drawn, range(count))
        real = None if text or self.plan.requirements.problems else self._first_real(classes)
        if real is not None:
            drawn, numbers[REAL] = {REAL: real.images, **drawn}, real.ids
        caption = (
            f"{self._subject}, {self._how}: a column has one {'prompt' if text else 'class'}, one image "
            "number and the same random numbers. No image was chosen by eye."
            f"{' Real images are the first of their class.' if real is not None else ''}"
        )
        rows = {label: channels_last(images) for label, images in drawn.items()}
        return Sheet(list(prompts) if text else list(self.titles().values()), rows, numbers, caption)

    def _first_real(self, classes: Sequence[int]) -> ImageBatch | None:
        """Return the first real image of each class; None where there is not one of each."""
        labels = _labels(self._real) if self._real is not None else None
        if self._real is None or labels is None or not set(classes) <= set(labels.tolist()):
            return None
        return _pick(self._real, [int((labels == number).argmax()) for number in classes])

    @cached_property
    def evaluation(self) -> ProtocolEvaluation:
        """The runs' protocol; raises NotDrawnError: something that it needs is missing."""
        self._require_protocol()
        parallel = Parallel("fp32")
        return ProtocolEvaluation(
            registry=self.registry,
            name=self.plan.config.protocol,
            requirements=self.plan.requirements,
            device=parallel.device,
            folder=cache_root() / "figures",
            workers=default_workers(self.plan.protocol.image_size),
            num_classes=self.plan.model.num_classes,
        )

    @property
    def _real(self) -> ImageSet | None:
        return self.evaluation.references.images

    @cached_property
    def sets(self) -> dict[str, ImageBatch]:
        """{label: images} of real ones, where there are any, the base, and every configuration.

        They are drawn as the protocol does: labels, precision, size and rounding are its own.
        """
        wanted, protocol = self.choice.images, self.plan.protocol
        # Neighbours of a prompt file are of one task, of a data set's folder of one class.
        ids = _spread(protocol.samples, wanted) if protocol.labels == "prompts" else range(wanted)
        made = {label: self._sample(model, ids) for label, model in self.models.items()}
        if self._real is None:
            return made
        return {REAL: _pick(self._real, _spread(len(self._real), wanted)), **made}

    @torch.no_grad()
    def _sample(self, model: Drawn, ids: Sequence[int]) -> ImageBatch:
        evaluation, setting = self.evaluation, self.setting
        choose_threads(model.plan.model.policy.parameters)
        backbone = build_model(model.plan, evaluation.device)
        if model.run is not None:
            load_export(model.run, backbone)
        sampler = evaluation.sampler(in_precision(backbone, evaluation.protocol))
        tokens, labels = sampler.generate(setting, self.choice.seed, ids)
        decoder = ImageDecoder(backbone, evaluation.protocol, evaluation.device)
        images, prompts = decoder.decode(torch.from_numpy(tokens).long()), sampler.prompts_of(labels)
        classes = None if prompts else torch.from_numpy(labels)
        return ImageBatch(ids=ids, images=images, labels=classes, prompts=prompts)

    def pixels(self) -> dict[str, np.ndarray]:
        """Return {label: uint8 [n, 3, H, W]}."""
        return {label: batch.images.numpy() for label, batch in self.sets.items()}

    def what(self) -> str:
        """Say which images the sets are: the beginning of a caption."""
        real = f", and {plural(len(self.sets[REAL]), 'real image')}" if REAL in self.sets else ""
        count = plural(len(self.sets[BASE]), "image")
        return (
            f"{self._subject}: {count} each, drawn as {self.plan.protocol.title} does {self._how}, the same "
            f"image numbers from all models{real}."
        )

    def rows(self, columns: Sequence[str], what: str) -> tuple[str, str, dict[str, Mapping[str, np.ndarray]]]:
        """Return (evaluator, column, {label: its rows}) of the first evaluator that has one of the columns.

        Args:
            what: such an evaluator does, for the reason why there is no picture.

        Raises:
            NotDrawnError: no evaluator of the protocol has.
        """
        first = self.sets[BASE]
        labels = None if first.labels is None else first.labels[:1]
        one = ImageBatch(ids=first.ids[:1], images=first.images[:1], labels=labels, prompts=first.prompts[:1])
        for name, evaluator in self.evaluation.evaluators.items():
            kept = evaluator.measure(one)  # not all images: what some evaluators do is slow
            for column in columns:
                if column in kept:
                    if name not in self._rows:
                        self._rows[name] = {label: evaluator.measure(x) for label, x in self.sets.items()}
                    return name, column, self._rows[name]
        raise NotDrawnError(f"no evaluator of {self.plan.protocol.title} {what}")


def _spread(count: int, wanted: int) -> list[int]:
    """Return so many of the first `count` numbers, from all over, in order; all if they are fewer."""
    return sorted({i * count // wanted for i in range(wanted)})


def _labels(images: ImageSet) -> np.ndarray | None:
    """Return the class of every image, [N] int64; None where they have none."""
    found = images.labels() if isinstance(images, DatasetImages) else getattr(images, "labels", None)
    return None if found is None else np.asarray(found)


def _pick(images: ImageSet, ids: Sequence[int]) -> ImageBatch:
    """Load some images of a set; of a data set no others are decoded."""
    if isinstance(images, DatasetImages):
        images = replace(images, batch=1)
    size, labels = len(images.shards()[0]), _labels(images)
    loaded = {number: images.load(number).images for number in sorted({i // size for i in ids})}
    return ImageBatch(
        ids=ids,
        images=torch.stack([loaded[i // size][i % size] for i in ids]),
        labels=None if labels is None else torch.from_numpy(labels[list(ids)]),
    )
