"""Evaluate a run's models, before and after training, and draw both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from alignbench.api import Backbone
from alignbench.backbones.load import load_export
from alignbench.config.plan import Job, Plan, weights_digest
from alignbench.errors import UserError, out_of_memory_as, smaller_batch
from alignbench.evaluation.evaluate import Evaluation
from alignbench.evaluation.export import export_images
from alignbench.evaluation.extremes import Group, extremes, facts_of
from alignbench.evaluation.protocol import ProtocolEvaluation, in_precision, writable
from alignbench.evaluation.sample_log import FORM, ImageNotes
from alignbench.evaluation.shown import fit, pictures_of
from alignbench.files import write_atomic
from alignbench.html.samples import FILE_NAME, page
from alignbench.progress import Progress
from alignbench.record import Result, Subject
from alignbench.registry.lookup import Registry
from alignbench.registry.reward_spec import parse_terms, resolve
from alignbench.runs.recorder import RunRecorder
from alignbench.runs.sample_grids import draw_grid
from alignbench.runs.together import together
from alignbench.samples import grid
from alignbench.training.parallel import Parallel
from alignbench.training.reward_parts import TrainingRewards
from alignbench.training.setup import build_model, names_of

SUBJECTS: tuple[Subject, Subject] = ("base", "method")
Picture = Callable[[], tuple[str, torch.Tensor]]
"""Draws a caption's images."""


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
    evaluation = _evaluation(job, parallel, folder)
    with parallel.main_process_first():  # as of the training data
        _ = evaluation.reference_images
    # A log is of images that were scored here: another CPU rounds otherwise.
    shared = None if plan.random_weights or job.log_samples else _shared_results(job, progress)
    first_time = not recorder.results
    rewards = TrainingRewards(plan, job.registry, parallel.device) if job.log_samples else None
    models, pictures = [], []
    for subject in SUBJECTS if plan.method else SUBJECTS[:1]:
        backbone = build_model(plan, parallel.device)
        weights = dict(recorder.weights)
        if subject == "method":
            load_export(job.out, backbone)
            weights |= recorder.exports
        sampled = in_precision(backbone, plan.protocol)
        cache = shared if subject == "base" else None
        model = evaluation.model(subject, weights_digest(weights), backbone, sampled=sampled, cache=cache)
        if rewards is not None:
            model = replace(model, notes=_notes_of(job, subject, evaluation, rewards, progress))
        models.append(model)
        pictures.append(partial(_picture, job, evaluation, model, backbone, sampled))
    with together(parallel, folder) as group:
        group.measure(models, progress)
        if not parallel.is_main:
            group.help()
            return
        drawn = _drawn(plan, pictures) if first_time else []
        found: list[Result] = []
        for model in models:
            networks = _reward_networks(plan, job.registry) if model.subject == "method" else ()
            results = evaluation.results(model, progress, networks)
            found += results
            yield results
            export_images(model, job.exports, progress)
        if job.log_samples:
            recorded = [x for x in recorder.results if x.protocol.digest == plan.protocol_digest] or found
            write_logs(models, recorded, job.log_samples, progress)
        if first_time:
            grid.write_grid(folder / "samples.png", [*drawn, *_real(evaluation)])


def _drawn(plan: Plan, pictures: Sequence[Picture]) -> list[tuple[str, torch.Tensor]]:
    with out_of_memory_as("out of memory while drawing sample images", smaller_batch(plan.protocol.batch)):
        return [picture() for picture in pictures]


def _evaluation(job: Job, parallel: Parallel, folder: Path) -> ProtocolEvaluation:
    plan = job.plan
    spec = plan.protocol.reference
    same = spec is not None and spec.dataset == plan.config.dataset
    return ProtocolEvaluation(
        registry=job.registry,
        name=plan.config.protocol,
        requirements=plan.requirements,
        device=parallel.device,
        folder=folder,
        workers=job.workers,
        num_classes=plan.model.num_classes,
        data=plan.config.section("data") if same and plan.protocol.task == "reconstruction" else {},
    )


def about_run(run: str, title: str, evaluation: ProtocolEvaluation) -> dict[str, Any]:
    """Return the beginning of a header."""
    protocol = {"name": evaluation.name, "title": evaluation.protocol.title}
    digests = {"digest": evaluation.requirements.digest, "reference": evaluation.references.digest}
    return {"sample-log": FORM, "run": run, "title": title, "protocol": protocol | digests}


def _notes_of(
    job: Job, subject: Subject, evaluation: ProtocolEvaluation, rewards: TrainingRewards, progress: Progress
) -> ImageNotes:
    """Return what is noted of a run's images; class names that cannot be read are said and left out."""
    plan = job.plan
    title = plan.model.title
    if subject == "method" and plan.method is not None:
        title = f"{title} + {plan.method.title}"
    names: Sequence[str] = ()
    if plan.model.condition == "class":
        try:
            names = names_of(plan, job.registry)
        except UserError as error:
            progress.say(f"the log has no class names: {error}")
    return ImageNotes(about_run(plan.id, title, evaluation), names, rewards)


def write_logs(
    models: Sequence[Evaluation], results: Sequence[Result], shown: int, progress: Progress
) -> None:
    """Write the logs of all subjects, and the page with the `shown` worst and best images of each score."""
    folders, sets = set(), []
    groups: list[Group] = []
    for model in models:
        paths = model.write_logs(results, progress)
        for setting in model.protocol.settings:
            own = [paths[model.addresses.index((setting, seed))] for seed in model.protocol.seeds]
            group = extremes(own, shown)
            groups.append(group)
            images = [model.sets(setting, seed) for seed in model.protocol.seeds]
            sets.append(pictures_of(group, images, [path.name for path in own]))
        folders.add(paths[0].parent)
    header = groups[0].headers[0]
    for spec, why in header["rewards_left_out"].items():
        progress.say(f"the log has no {spec}: it {why}")
    count = fit(sets, shown)
    about = {
        "run": header["run"], "protocol": header["protocol"]["title"], "wanted": shown, "shown": count,
        "digest": header["protocol"]["digest"][7:15], "left_out": header["rewards_left_out"],
        "small": all(picture["small"] for one in sets for picture in one["pictures"]),
    }  # fmt: skip
    (folder,) = folders
    write_atomic(folder / FILE_NAME, page(sets, facts_of(header), about))
    progress.say(f"log of samples: {folder / FILE_NAME}")


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
    config = job.plan.config
    title = config.model if model.subject == "base" else f"{config.model} + {config.method}"
    caption = f"{title}, {setting.title}"
    if protocol.task == "reconstruction":
        return caption, model.sets(name, protocol.seeds[0]).load(0).images[: grid.MOST]
    return caption, draw_grid(evaluation.sampler(sampled), backbone)


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
    texts = plan.method.rewards_in_use(plan.config.section("method")).values()
    specs = [spec for text in texts for spec, _ in parse_terms(text)]
    return sorted({network for spec in specs for network in resolve(spec, registry).networks})
