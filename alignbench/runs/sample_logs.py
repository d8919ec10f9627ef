"""Logs of scored images: what their headers say of a run, and the page that shows the worst and the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignbench.config.plan import Job
from alignbench.errors import UserError
from alignbench.evaluation.evaluate import Evaluation
from alignbench.evaluation.protocol import ProtocolEvaluation
from alignbench.evaluation.sample_log import FORM, ImageNotes
from alignbench.progress import Progress
from alignbench.record import Result, Subject
from alignbench.runs.training_rewards import TrainingRewards, names_of


def about_run(run: str, title: str, evaluation: ProtocolEvaluation) -> dict[str, Any]:
    """Return the beginning of a header."""
    protocol = {"name": evaluation.name, "title": evaluation.protocol.title}
    digests = {"digest": evaluation.requirements.digest, "reference": evaluation.references.digest}
    return {"sample-log": FORM, "run": run, "title": title, "protocol": protocol | digests}


def notes_of(
    job: Job, subject: Subject, evaluation: ProtocolEvaluation, rewards: TrainingRewards, progress: Progress
) -> ImageNotes:
    """Return what is noted of a run's images; class names that cannot be read are said and left out."""
    plan = job.plan
    title = plan.model.title
    if subject == "method" and plan.method is not None:
        title = f"{title} + {plan.method.title}"
    names: list[str] = []
    if plan.model.condition == "class":
        try:
            names = names_of(plan, job.registry)
        except UserError as error:
            progress.say(f"the log has no class names: {error}")
    return ImageNotes(about_run(plan.id, title, evaluation), names, rewards)


def write_logs(
    models: Sequence[Evaluation], results: Sequence[Result], shown: int, progress: Progress
) -> None:
    """Write the logs of all subjects and the page with the `shown` worst and best images of each score."""
    for model in models:
        if model.notes and model.notes.rewards:
            for spec, why in model.notes.rewards.left_out.items():
                progress.say(f"the log has no {spec}: {why}")
            break
    paths = [path for model in models for path in model.write_logs(results, progress)]
    progress.say(f"log of samples: {paths[0].parent}, {len(paths)} files")
