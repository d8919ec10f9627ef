"""Time and memory of the parts of a run on this machine: training steps, sampling, evaluators.

The parts are those of a real run, with random weights and random images unless others are named. Nothing is
kept; what is measured is what a run of the same plan would spend.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from alignbench import randomness
from alignbench.api import Method, Prompt
from alignbench.config.plan import Job, Plan
from alignbench.data.prompts import read_prompts
from alignbench.data.synthetic import SyntheticText
from alignbench.errors import out_of_memory_as, smaller_batch
from alignbench.evaluation.protocol import in_precision
from alignbench.hub.locate import locate_asset
from alignbench.hub.verify import verify_asset
from alignbench.progress import Progress
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import Setting
from alignbench.runs import environment
from alignbench.runs.session import devices
from alignbench.samples.generated import ImageDecoder, Sampler
from alignbench.training.parallel import choose_threads, local_device
from alignbench.training.setup import build_model, open_training_data, prepared
from alignbench.training.totals import peak_memory_gib

WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Figure:
    """One measured number."""

    name: str
    value: float
    unit: str
    note: str = ""


@dataclass(frozen=True)
class Timing:
    """What was measured, where, and with what."""

    title: str
    figures: tuple[Figure, ...]
    facts: dict[str, str] = field(default_factory=dict)
    """What was timed: sizes and options."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, with the environment."""
        where = environment.describe().model_dump(mode="json")
        return {**asdict(self), "environment": where}


class Clock:
    """Wall time of blocks, the device's work included, and the peak of memory since the clock was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.laps: list[float] = []
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Time the block, or each call of the function that it is put around."""
        self._synchronise()
        started = time.monotonic()
        yield
        self._synchronise()
        self.laps.append(time.monotonic() - started)

    def peak(self, name: str = "peak memory") -> Figure:
        return Figure(name, peak_memory_gib(self._device), "GiB")

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def time_training(plan: Plan, registry: Registry, *, workers: int, progress: Progress) -> Timing:
    """Take the optimiser steps, two or more, of a method's plan; the first is a warm-up and not counted.

    Raises:
        UserError: the plan cannot be carried out.
        RunFailed: out of memory, or a loss that is not finite.
    """
    train = plan.config.train
    assert plan.method is not None and train.steps >= 2
    with (
        devices(train.precision, plan.model.policy.parameters) as parallel,
        tempfile.TemporaryDirectory() as folder,
    ):
        clock = Clock(parallel.device)
        job = Job(plan, registry, Path(folder), command="", checkpoint_every=0, workers=workers)
        with prepared(job, open_training_data(job, progress), parallel, progress) as ready:
            method = ready.driver.method
            timed = SimpleNamespace(collect=clock.lap()(method.collect), loss=method.loss)
            ready.driver.method = cast("Method", timed)
            totals = ready.driver.train()
        lines = (Path(folder) / "timing.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [float(json.loads(line)["seconds"]) for line in lines][1:]
    collecting = np.reshape(clock.laps, (train.steps, plan.accumulation)).sum(axis=1)[1:]
    step, images = statistics.median(steps), train.images_per_step
    figures = [
        Figure("step", step, "s", spread(steps)),
        Figure("collecting", float(np.median(collecting)), "s", "tokenise, draw, decode, reward"),
        Figure("images", images / step, "1/s"),
        Figure("sequences", totals.sequences / train.steps / step, "1/s"),
        Figure("peak memory", totals.peak_memory_gib, "GiB"),
        Figure("estimate", plan.estimate.train_gib, "GiB", "of the plan, before anything was run"),
    ]
    facts = {
        "images per step": str(images),
        "sequences per image": str(plan.sequences_per_image),
        "micro-batch": str(train.micro_batch),
        "precision": train.precision,
        "recompute": str(train.recompute).lower(),
        "trainable": f"{ready.trainable:,}",
        "devices": str(plan.world_size),
    }
    title = f"training step, {plan.config.method} on {plan.config.model}"
    # Some methods draw no sequences.
    return Timing(title, tuple(f for f in figures if f.name != "sequences" or f.value), facts)


def time_sampling(plan: Plan, registry: Registry, *, repeats: int, progress: Progress) -> list[Timing]:
    """Draw and decode `repeats` batches, after a short warm-up, under every setting of the plan's protocol.

    Raises:
        UserError: the model does not fit its files.
        RunFailed: out of memory.
    """
    choose_threads(plan.model.policy.parameters)
    device, protocol = local_device(), plan.protocol
    backbone = build_model(plan, device)
    prompts = _prompts(plan, registry, repeats * protocol.batch)
    sampler = Sampler(
        in_precision(backbone, protocol), protocol, plan.model.num_classes or 1, device, prompts
    )
    decoder = ImageDecoder(backbone, protocol, device)
    timings = []
    for name, setting in protocol.settings.items():
        progress.say(f"sampling at {setting.title}")
        shortage = f"out of memory while generating {protocol.batch} images together"
        with out_of_memory_as(shortage, smaller_batch(protocol.batch)):
            figures = _time_setting(sampler, decoder, setting, repeats)
        facts = {
            "setting": setting.title,
            "batch": str(protocol.batch),
            "tokens per image": str(backbone.num_tokens),
            "precision": protocol.precision,
        }
        timings.append(Timing(f"sampling from {plan.config.model}, {name}", figures, facts))
    return timings


def _time_setting(
    sampler: Sampler, decoder: ImageDecoder, setting: Setting, repeats: int
) -> tuple[Figure, ...]:
    protocol, device = sampler.protocol, sampler.device
    _warm_up(sampler, setting)
    drawing, decoding = Clock(device), Clock(device)
    for number in range(repeats):
        ids = range(number * protocol.batch, (number + 1) * protocol.batch)
        with drawing.lap():
            tokens, _ = sampler.generate(setting, protocol.seeds[0], ids)
        with decoding.lap():
            decoder.decode(torch.from_numpy(tokens).long())
    draw = statistics.median(drawing.laps)
    # The first batch also prepares the decoder.
    decode = statistics.median(decoding.laps[1:] or decoding.laps)
    per_image = (draw + decode) / protocol.batch
    total = protocol.samples * len(protocol.seeds)
    return (
        Figure("batch drawn", draw, "s", spread(drawing.laps)),
        Figure("tokens", protocol.batch * sampler.backbone.num_tokens / draw, "1/s"),
        Figure("batch decoded", decode, "s"),
        Figure("images", 1 / per_image, "1/s"),
        Figure(f"{total:,} images", per_image * total / 3600, "h", "by extrapolation"),
        drawing.peak(),
    )


def _prompts(plan: Plan, registry: Registry, count: int) -> tuple[Prompt, ...]:
    """The protocol's prompts in turn for a model that wants a text; random words where they are not here."""
    if plan.model.condition != "text":
        return ()
    name = plan.protocol.prompts
    card = registry.asset(name)
    status = locate_asset(name, card, str(plan.config.section("assets").get(name, "")))
    if status.ok:
        return tuple(itertools.islice(itertools.cycle(read_prompts(verify_asset(status).path)), count))
    made = SyntheticText(split="bench", image_size=1, count=count, seed=0)
    return tuple(Prompt(caption) for caption in made.captions)


def _warm_up(sampler: Sampler, setting: Setting) -> None:
    """Draw a few tokens: kernels are loaded and memory is reserved."""
    ids = range(sampler.protocol.batch)
    uniforms = torch.from_numpy(randomness.uniforms(0, "bench", 0, ids, (WARM_UP_TOKENS,)))
    condition = sampler.condition(np.zeros(len(ids), dtype=np.int64))
    sampler.backbone.generate(condition, uniforms.to(sampler.device), setting.sampling())


def spread(seconds: Sequence[float]) -> str:
    """Say what a median is of."""
    if len(seconds) == 1:
        return "measured once"
    return f"median of {len(seconds)}, {min(seconds):.3g} to {max(seconds):.3g} s"
