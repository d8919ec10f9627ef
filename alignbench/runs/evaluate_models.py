"""Evaluate a run's models, before and after training, and draw both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from alignbench.api import Backbone
from alignbench.backbones.load import load_export
from alignbench.config.plan import Job, Plan, weights_digest
from alignbench.errors import out_of_memory_as, smaller_batch
from alignbench.evaluation.evaluate import Evaluation
from alignbench.evaluation.export import export_images
from alignbench.evaluation.protocol import ProtocolEvaluation, in_precision, writable
from alignbench.progress import Progress
from alignbench.record import Result, Subject
from alignbench.registry.lookup import Registry
from alignbench.registry.reward_spec import parse_terms, resolve
from alignbench.runs.recorder import RunRecorder
from alignbench.runs.together import together
from alignbench.samples import grid
from alignbench.samples.generated import ImageDecoder, labels_of
from alignbench.training.parallel import Parallel
from alignbench.training.setup import build_model

SUBJECTS: tuple[Subject, Subject] = ("base", "method")


def evaluate_models(
    recorder: RunRecorder, parallel: Parallel, progress: Progress, folder: Path
) -> Iterator[list[Result]]:
    """Measure on all processes, score on the first one.

    Args:
        recorder: knows the plan, the run folder, whose export is what `method` is, and the weights' digests.
        folder: where samples, rows and metrics are kept.

    Yields:
        The results of a subject, on the first process; all other work is done between them.

    Raises:
        UserError: what the protocol needs does not fit.
    """
    job, plan = recorder.job, recorder.job.plan
    spec = plan.protocol.reference
    same = spec is not None and spec.dataset == plan.config.dataset
    evaluation = ProtocolEvaluation(
        registry=job.registry,
        name=plan.config.protocol,
        requirements=plan.requirements,
        device=parallel.device,
        folder=folder,
        workers=job.workers,
        num_classes=plan.model.num_classes,
        data=plan.config.section("data") if same and plan.protocol.task == "reconstruction" else {},
    )
    with parallel.main_process_first():  # as of the training data
        _ = evaluation.reference_images
    shared = None if plan.random_weights else _shared_results(job, progress)
    models = []
    pictures = []
    for subject in SUBJECTS if plan.method else SUBJECTS[:1]:
        backbone = build_model(plan, parallel.device)
        weights = dict(recorder.weights)
        if subject == "method":
            load_export(job.out, backbone)
            weights |= recorder.exports
        sampled = in_precision(backbone, plan.protocol)
        cache = shared if subject == "base" else None
        model = evaluation.model(subject, weights_digest(weights), backbone, sampled=sampled, cache=cache)
        models.append(model)
        pictures.append(partial(_picture, job, evaluation, model, backbone, sampled))
    with together(parallel, folder) as group:
        group.measure(models, progress)
        if not parallel.is_main:
            group.help()
            return
        batch = plan.protocol.batch
        with out_of_memory_as("out of memory while drawing sample images", smaller_batch(batch)):
            drawn = [picture() for picture in pictures]
        for model in models:
            rewards = _reward_networks(plan, job.registry) if model.subject == "method" else ()
            yield evaluation.results(model, progress, rewards)
            export_images(model, job.exports, progress)
        grid.write_grid(folder / "samples.png", [*drawn, *_real(evaluation)])


def _shared_results(job: Job, progress: Progress) -> Path | None:
    """Folder where results of untouched models are kept for other runs; None if it cannot be written."""
    shared = job.cache / "evaluations"
    if writable(shared) is None:
        progress.say(
            f"{shared} cannot be written: every run scores the base anew "
            "→ set ALIGNBENCH_CACHE to a folder you can write to"
        )
        return None
    return shared


def _picture(
    job: Job, evaluation: ProtocolEvaluation, model: Evaluation, backbone: Backbone, sampled: Backbone
) -> tuple[str, torch.Tensor]:
    """A few images at the first setting and seed; the same image ids for every subject."""
    protocol = evaluation.protocol
    name, setting = next(iter(protocol.settings.items()))
    seed = protocol.seeds[0]
    config = job.plan.config
    title = config.model if model.subject == "base" else f"{config.model} + {config.method}"
    caption = f"{title}, {setting.title}"
    if protocol.task == "reconstruction":
        return caption, model.sets(name, seed).load(0).images[: grid.MOST]
    candidates = range(min(200, protocol.samples))
    ids: Sequence[int] = candidates[:: protocol.images_per_prompt][: grid.MOST]  # one image of each prompt
    if protocol.labels != "prompts":
        ids = grid.choose(labels_of(protocol, evaluation.num_classes or 1, seed, candidates).tolist())
    tokens, _ = evaluation.sampler(sampled).generate(setting, seed, ids)
    decoder = ImageDecoder(backbone, protocol, evaluation.device)
    return caption, decoder.decode(torch.from_numpy(tokens).long())


def _real(evaluation: ProtocolEvaluation) -> list[tuple[str, torch.Tensor]]:
    """The same number of real images, where the protocol knows any."""
    images = evaluation.references.images
    if images is None:
        return []
    first = images.load(0)
    if evaluation.protocol.task == "reconstruction" or first.labels is None:
        return [("real images", first.images[: grid.MOST])]
    return [("real images", first.images[grid.choose(first.labels.tolist())])]


def _reward_networks(plan: Plan, registry: Registry) -> list[str]:
    if plan.method is None:
        return []
    texts = [str(plan.config.section("method")[option]) for option in plan.method.reward_options]
    specs = [spec for text in texts if text != "none" for spec, _ in parse_terms(text)]
    return sorted({network for spec in specs for network in resolve(spec, registry).networks})
