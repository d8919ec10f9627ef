"""Trains tiny models in as many processes as torchrun has started, one case after the other.

`python -m tests.training.sharded OUT CASE…`; a case is MODEL:METHOD:KIND, perhaps with :key=value,… and the
folder of a case whose checkpoint it goes on from. Leaves what the first process has, and the tokens drawn.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignbench import api
from alignbench.config.plan import Job, make_plan
from alignbench.config.settings import resolve
from alignbench.data import shapes
from alignbench.progress import Progress
from alignbench.registry.plugins import load_registry
from alignbench.rewards import requests
from alignbench.rewards.functions import reward
from alignbench.training.parallel import Parallel
from alignbench.training.setup import open_training_data, prepared, role_of

STEPS, SAVED = 5, 3
SHORT = (
    f"train.steps={STEPS}", "train.images_per_step=8", "train.micro_batch=1", "train.warmup_steps=0",
    "train.precision=fp32", "train.lr=1e-4", "train.eps=1e-5",
)  # fmt: skip
"""ε above the rounding of gradients: AdamW makes steps of it, and one day other tokens would be drawn."""


@reward
def redness(images: Tensor) -> Tensor:
    """More red than blue."""
    return (images[:, 0] - images[:, 2]).mean(dim=(1, 2))


def made_small() -> None:
    """Few training images, and rewards that take what a decoder of random weights draws."""
    shapes.COUNTS = {**shapes.COUNTS, "pretraining": 60, "train": 60}
    requests.RANGE = (-1e3, 1e3)


@dataclass(frozen=True)
class Sharded:
    """A case."""

    model: str
    method: str
    kind: str
    more: tuple[str, ...] = ()
    begin: str = ""
    """Folder of another case in the root, whose checkpoint of step `SAVED` is where it begins."""

    @classmethod
    def read(cls, text: str) -> Sharded:
        model, method, kind, more, begin = (*text.split(":"), "", "")[:5]
        return cls(model, method, kind, tuple(filter(None, more.split(","))), begin)

    def __str__(self) -> str:
        return ":".join([self.model, self.method, self.kind, ",".join(self.more), self.begin])

    @property
    def name(self) -> str:
        return "-".join(filter(None, [self.model, self.method, self.kind, *self.more, self.begin])).replace(
            "/", "-"
        )

    def folder(self, root: Path, ranks: int) -> Path:
        return root / str(ranks) / self.name

    def job(self, out: Path) -> Job:
        registry = load_registry([redness])
        given = [*SHORT, f"train.shard={self.kind}", *self.more]
        config = resolve(registry, method=self.method, model=self.model, assignments=given)
        plan = make_plan(registry, config, evaluates=False)
        return Job(plan, registry, out, command="", checkpoint_every=SAVED)


def train(case: Sharded, parallel: Parallel, root: Path) -> None:
    """Train one case and save what came of it."""
    out, quiet = case.folder(root, parallel.world_size), Progress(quiet=True)
    if parallel.is_main:
        out.mkdir(parents=True)
        if case.begin:
            shutil.copytree(root / case.begin / "checkpoints", out / "checkpoints")
            shutil.rmtree(out / "checkpoints" / f"step-{STEPS:06d}")
            for log in ("metrics.jsonl", "timing.jsonl"):
                shutil.copy(root / case.begin / log, out / log)
    parallel.barrier()
    job = case.job(out)
    with prepared(job, open_training_data(job, quiet), parallel, quiet) as ready:
        drawn: dict[tuple[int, int], Tensor] = {}
        method: Any = ready.driver.method
        method.collect = remembering(method.collect, drawn)
        totals = ready.driver.train()
        export = parallel.whole(ready.backbone.export()[role_of(job.plan)])
    torch.save(drawn, out / f"drawn-{parallel.rank}.pt")
    if parallel.is_main:
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        torch.save({"export": export, "log": lines, "images": totals.images}, out / "out.pt")
    parallel.release()
    parallel.barrier()


def remembering(
    collect: Callable[[api.Batch, int], api.Collected], drawn: dict[tuple[int, int], Tensor]
) -> Callable[[api.Batch, int], api.Collected]:
    """Keep all tokens of an experience, by step and sample."""

    def collecting(batch: api.Batch, step: int) -> api.Collected:
        made = collect(batch, step)
        (sample,) = batch.index.tolist()
        drawn[step, sample] = torch.cat([found.flatten() for found in tokens_in(made.experience)])
        return made

    return collecting


def tokens_in(experience: object) -> Iterator[Tensor]:
    """What was drawn, read and corrupted; not prompts, whose padding depends on their company."""
    parts = ("draws", "positive", "negative")
    for holder in (experience, *(getattr(experience, part, None) for part in parts)):
        for name in ("tokens", "targets", "context"):
            if isinstance(found := getattr(holder, name, None), Tensor):
                yield found


def load(folder: Path) -> dict[str, Any]:
    """What a case left: export, log, and tokens of all processes by (step, sample)."""
    made: dict[str, Any] = torch.load(folder / "out.pt")
    drawn: dict[tuple[int, int], Tensor] = {}
    for path in folder.glob("drawn-*.pt"):
        drawn |= torch.load(path)
    return {**made, "drawn": drawn}


if __name__ == "__main__":
    torch.set_num_threads(1)
    made_small()
    if "NODES" in os.environ and "WORLD_SIZE" in os.environ:  # as if the processes were on several
        os.environ["LOCAL_WORLD_SIZE"] = str(int(os.environ["WORLD_SIZE"]) // int(os.environ["NODES"]))
    DEVICES = Parallel("fp32")
    for TEXT in sys.argv[2:]:
        train(Sharded.read(TEXT), DEVICES, Path(sys.argv[1]))
    DEVICES.close()
