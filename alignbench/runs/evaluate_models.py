"""Evaluate a run's models, before and after training, and draw both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from alignbench.api import Backbone
from alignbench.backbones.load import load_export
from alignbench.config import plan as plan_
from alignbench.config.plan import Job
from alignbench.evaluation.evaluate import Evaluation, Score
from alignbench.evaluation.export import export_images
from alignbench.evaluation.protocol import Judge, in_precision, writable
from alignbench.progress import Progress
from alignbench.samples import grid
from alignbench.samples.generated import ImageDecoder, labels_of
from alignbench.training.parallel import Parallel
from alignbench.training.setup import build_model

Subject = Literal["base", "method"]


Note = Callable[[Subject, list[Score], str | None], None]
"""Told about each subject's scores and the digest of the reference."""


def evaluate_models(
    job: Job,
    *,
    weights: Mapping[str, str],
    exports: Mapping[str, str],
    parallel: Parallel,
    progress: Progress,
    note: Note,
    folder: Path,
) -> None:
    """Measure on all processes, score on the first one.

    Args:
        job: plan and run folder; the folder's export is what `method` is.
        weights: {role: digest} of the files the run starts from.
        exports: {role: digest} of the exported ones.
        parallel: the processes.
        progress: told what happens.
        note: called on the first process, subject by subject.
        folder: where samples, rows and metrics are kept.

    Raises:
        UserError: what the protocol needs does not fit.
    """
    judge = judge_of(job, parallel, folder)
    shared = None if job.plan.random_weights else _shared_results(job, progress)
    subjects: tuple[Subject, ...] = ("base", "method") if job.plan.method else ("base",)
    evaluations: dict[Subject, Evaluation] = {}
    pictures = []
    for subject in subjects:
        backbone = build_model(job.plan, parallel.device)
        digests = dict(weights)
        if subject == "method":
            load_export(job.out, backbone)
            digests |= exports
        sampled = in_precision(backbone, judge.protocol)
        evaluations[subject] = judge.model(
            subject,
            plan_.weights_digest(digests),
            backbone,
            sampled=sampled,
            cache=shared if subject == "base" else None,
        )
        evaluations[subject].measure(progress)
        if parallel.is_main:
            pictures += _pictures(job, judge, subject, backbone, sampled)
    parallel.barrier()
    if not parallel.is_main:
        return
    for subject, evaluation in evaluations.items():
        note(subject, evaluation.scores(progress), judge.references.digest)
        export_images(evaluation, job.exports, progress)
    if pictures:
        grid.write_grid(folder / "samples.png", [*pictures, *_real(judge)])


def judge_of(job: Job, parallel: Parallel, folder: Path) -> Judge:
    """Make the plan's protocol ready."""
    plan = job.plan
    spec = plan.protocol.reference
    same = spec is not None and spec.dataset == plan.config.dataset
    return Judge(
        registry=job.registry,
        protocol=plan.protocol,
        digest=plan.protocol_digest,
        assets=plan.assets,
        data=plan.config.section("data") if same and plan.protocol.task == "reconstruction" else {},
        num_classes=plan.model.num_classes,
        prompts=plan.prompts,
        device=parallel.device,
        place=parallel,
        folder=folder,
        cache=job.cache,
        workers=job.workers,
    )


def _shared_results(job: Job, progress: Progress) -> Path | None:
    """Folder where results of untouched models are kept for other runs; None if it cannot be written."""
    place = job.cache / "evaluations"
    found = writable(place)
    if found is None:
        progress.say(
            f"{place} cannot be written: every run scores the base anew "
            "→ set ALIGNBENCH_CACHE to a folder you can write to"
        )
    return found


def _pictures(
    job: Job, judge: Judge, subject: Subject, backbone: Backbone, sampled: Backbone
) -> list[tuple[str, torch.Tensor]]:
    """A few images at the first setting and seed; the same image ids for every subject."""
    protocol = judge.protocol
    name, setting = next(iter(protocol.settings.items()))
    seed = protocol.seeds[0]
    model, method = job.plan.config.model, job.plan.config.method
    caption = f"{model if subject == 'base' else f'{model} + {method}'}, {setting.title}"
    if protocol.task == "reconstruction":
        images = judge.model(subject, "", backbone, sampled=sampled, cache=None).sets(name, seed)
        return [(caption, images.load(0).images[: grid.MOST])]
    candidates = range(min(200, protocol.samples))
    ids: Sequence[int] = candidates[:: protocol.images_per_prompt][: grid.MOST]  # one image of each prompt
    if protocol.labels != "prompts":
        ids = grid.choose(labels_of(protocol, judge.num_classes or 1, seed, candidates).tolist())
    tokens, _ = judge.sampler(sampled).generate(setting, seed, ids)
    decoder = ImageDecoder(backbone, protocol, judge.device)
    return [(caption, decoder.decode(torch.from_numpy(tokens).long()))]


def _real(judge: Judge) -> list[tuple[str, torch.Tensor]]:
    """The same number of real images, where the protocol knows any."""
    images = judge.references.images
    if images is None:
        return []
    first = images.load(0)
    if judge.protocol.task == "reconstruction" or first.labels is None:
        return [("real images", first.images[: grid.MOST])]
    return [("real images", first.images[grid.choose(first.labels.tolist())])]
