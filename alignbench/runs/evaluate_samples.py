"""Score images that somebody else made, under a protocol: plan, folder, record and report as for a run."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from alignbench.config.requirements import requirements_of
from alignbench.config.settings import COMMON_OPTIONS, changes_nothing, known_options, values_of
from alignbench.errors import Problem, UserError
from alignbench.evaluation.protocol import ProtocolEvaluation
from alignbench.evaluation.sample_log import ImageNotes
from alignbench.files import digest_of
from alignbench.hub.verify import Requirements
from alignbench.progress import Progress
from alignbench.record import Change, ModelInfo, Result, RunRecord, now
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import Setting, resolve_protocol
from alignbench.runs import environment
from alignbench.runs.evaluate_models import about_run, write_logs
from alignbench.runs.session import devices, session
from alignbench.runs.together import together
from alignbench.samples.external import SampleImages, open_samples
from alignbench.text import plain_line

GIVEN = "given"
"""The only setting: nothing is sampled."""


@dataclass(frozen=True)
class SamplesPlan:
    """What will be scored, and by what."""

    title: str
    """What the images are called in tables."""
    images: SampleImages
    protocol_name: str
    requirements: Requirements
    """With nothing but `GIVEN` as its setting."""
    options: dict[str, Any]
    """What was given with `--set`."""
    problems: list[Problem]

    @property
    def digest(self) -> str:
        content = {"images": self.images.identity, "protocol": self.requirements.digest}
        return digest_of({**content, "title": self.title})

    @property
    def config(self) -> dict[str, Any]:
        chosen = {"samples": self.images.title, "title": self.title, "protocol": self.protocol_name}
        return {**chosen, "values": self.options}

    @property
    def id(self) -> str:
        return f"samples-{slug(self.title)}-{self.digest[:8]}"

    def as_dict(self) -> dict[str, Any]:
        """The JSON form kept in the folder."""
        return {
            "id": self.id,
            "digest": self.digest,
            "config": self.config,
            "images": len(self.images),
            "protocol": {"name": self.protocol_name, "digest": self.requirements.digest},
            "assets": {
                n: {"path": str(a.path), "sha256": a.sha256} for n, a in self.requirements.assets.items()
            },
            "problems": [asdict(problem) for problem in self.problems],
        }


@dataclass(frozen=True)
class SamplesJob:
    """A plan, and how and where to carry it out."""

    plan: SamplesPlan
    registry: Registry
    out: Path
    workers: int
    """Threads that decode images."""
    log_samples: int = 0
    """As of `config.plan.Job`."""


def slug(text: str) -> str:
    """Make a safe name of a title."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.") or "images"


def make_given_plan(
    registry: Registry, path: Path, *, protocol: str, title: str, assignments: list[str], workers: int
) -> SamplesPlan:
    """Open the images and find what the protocol needs.

    Raises:
        UserError: unknown names, or images that cannot be scored, by name.
    """
    try:
        plain_line(title)
    except ValueError as error:
        raise UserError(f"the images' name {error}", fix="--name with plain words") from error
    options = known_options(registry, sections=["protocol", "assets"])
    values = values_of(
        assignments,
        {key: option for key, option in options.items() if key != "protocol.batch"},
        why="images that are given have no model and no training",
        fix="protocol.samples and assets.NAME can be set",
    )
    section = {key: option.default for key, option in COMMON_OPTIONS["protocol"].items()}
    section |= {key[9:]: value for key, value in values.items() if key.startswith("protocol.")}
    for key in ("seeds", "settings"):
        if section[key]:
            raise changes_nothing(f"protocol.{key}", why="the images are given")
    card = resolve_protocol(registry.protocol(protocol), section)
    if card.task != "generation":
        raise UserError(
            f"protocol {protocol!r} scores reconstructions, which need a tokenizer",
            fix="alignbench evaluate --reconstruction --model NAME",
        )
    paths = {key[7:]: value for key, value in values.items() if key.startswith("assets.")}
    requirements = requirements_of(registry, protocol, card, paths)
    problems = list(requirements.problems)
    prompts = [prompt for prompt in requirements.prompts for _ in range(card.images_per_prompt)]
    images = open_samples(
        path,
        image_size=card.image_size,
        prompts=prompts[: requirements.protocol.samples],
        batch=card.batch,
        workers=workers,
    )
    if len(images) != requirements.protocol.samples:
        what = f"scores {requirements.protocol.samples:,} images, {path} has {len(images):,}"
        fix = f"give that many, or --set protocol.samples={len(images)}: rows compare only with others of "
        problems.append(Problem(f"protocol {protocol}", what, f"{fix}that number"))
    used = requirements.protocol.model_copy(
        update={"settings": {GIVEN: Setting.unsampled(GIVEN, "as given")}, "seeds": [0]}
    )
    return SamplesPlan(title, images, protocol, replace(requirements, protocol=used), values, problems)


def score(job: SamplesJob, command: str, progress: Progress) -> RunRecord:
    """Carry a plan out, or continue it; return its record.

    Raises:
        UserError: not runnable, or interrupted (exit status 3).
    """
    plan = job.plan
    with session(job.out, job.registry, progress, plan) as current:
        finished = current.finished
        if finished is not None and not job.log_samples:
            progress.say(f"{job.out} is complete; nothing to do")
            return finished
        started = now()
        with devices("fp32", folder=job.out) as parallel:
            evaluation = ProtocolEvaluation(
                registry=job.registry,
                name=plan.protocol_name,
                requirements=plan.requirements,
                device=parallel.device,
                folder=job.out,
                workers=job.workers,
            )
            for note in plan.images.notes:
                progress.say(note)
            samples = evaluation.samples(plan.images)
            if job.log_samples:
                about = about_run(plan.id, plan.title, evaluation)
                samples = replace(samples, notes=ImageNotes(about, (), None))
            results = []
            with together(parallel, job.out) as group:
                group.measure([samples], progress)
                if not parallel.is_main:
                    group.help()
                else:
                    results = evaluation.results(samples, progress)
                    if job.log_samples:
                        recorded = finished.results if finished else results
                        write_logs([samples], recorded, job.log_samples, progress)
        return finished or current.finish(_record(plan, results, command, started))


def _record(plan: SamplesPlan, results: list[Result], command: str, started: str) -> RunRecord:
    return RunRecord(
        schema=1,
        status="complete",
        id=plan.id,
        kind="samples",
        command=command,
        method=None,
        model=ModelInfo(
            name=slug(plan.title), title=plan.title, parameters=0, trainable_parameters=0, weights={}
        ),
        recipe=None,
        changed={key: Change(value=value, origin="--set") for key, value in plan.options.items()},
        data=None,
        leaderboard=True,
        train=None,
        exports={},
        results=results,
        environment=environment.describe(),
        started=started,
        finished=now(),
        config=plan.config,
    )
