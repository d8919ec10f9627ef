"""Contract checks that every method owes, for our tests and for those of other packages.

Each check takes a `Case` and an empty folder and raises AssertionError with a sentence. They run on the
embedded model in seconds: `for check in METHOD_CHECKS: check(Case(Registry.default(), "vapi"), folder)`.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignbench.api import Backbone, Batch, Collected, Method
from alignbench.config.plan import Job, make_plan
from alignbench.config.settings import resolve
from alignbench.data.dataset import ImageDataset
from alignbench.data.stream import Stream
from alignbench.errors import EXIT_PARTIAL, UserError
from alignbench.progress import Progress, Stage
from alignbench.registry import interfaces
from alignbench.registry.lookup import Registry
from alignbench.runs import run
from alignbench.training import setup, totals
from alignbench.training.sums import Sum

CPU = torch.device("cpu")
IMAGES = 8
"""Of a step."""
STEP = 3
"""Not 0, so that a method that forgets the step is caught."""
SHORT = ("steps=4", "images_per_step=8", "micro_batch=4", "warmup_steps=0", "precision=fp32")


@dataclass(frozen=True)
class Case:
    """A method to be checked."""

    registry: Registry
    method: str
    model: str = "llamagen-tiny"
    assignments: tuple[str, ...] = ()
    """Further `key=value` settings."""

    def job(self, out: Path) -> Job:
        """A very short run into `out`, without evaluation."""
        config = resolve(
            self.registry,
            method=self.method,
            model=self.model,
            assignments=[*(f"train.{text}" for text in SHORT), *self.assignments],
        )
        plan = make_plan(self.registry, config, evaluates=False)
        return Job(plan, self.registry, out, command="alignbench.testing", checkpoint_every=1)


MethodCheck = Callable[[Case, Path], None]


@dataclass(frozen=True)
class Subject:
    """A method, freshly built, with the training images."""

    job: Job
    backbone: Backbone
    method: Method
    module: nn.Module
    """What trains."""
    dataset: ImageDataset

    @classmethod
    def build(cls, case: Case, folder: Path) -> Subject:
        """Build model and method as `alignbench run` does."""
        job = case.job(folder)
        backbone = setup.build_model(job.plan, CPU)
        module, _ = setup.prepare_trained(job.plan, backbone)
        dataset = setup.open_training_data(job, quiet := Progress(quiet=True))
        method = setup.build_method(job, backbone, CPU, setup.training_images(job, dataset, quiet))
        return cls(job, backbone, method, module, dataset)

    def stream(self) -> Stream:
        return setup.open_stream(self.job.plan, self.backbone, self.dataset, workers=0)

    def batch(self, rank: int = 0, ranks: int = 1) -> Batch:
        """Return the share of one of several devices in the images of step `STEP`."""
        with self.stream() as stream:
            return stream.batch(STEP, rank, ranks)


@dataclass(frozen=True)
class Outcome:
    """What a step came to: sums over its images, divided by `IMAGES`."""

    gradients: dict[str, Tensor]
    numbers: dict[str, float]
    """Loss and everything logged."""
    collected: list[Collected]


def take_step(
    subject: Subject,
    pieces: list[Batch],
    add: Callable[[Mapping[str, Sum]], Mapping[str, Sum]] = dict,
) -> Outcome:
    """Collect all pieces, then sum the gradients of their losses, as the driver does; `add` is over ranks."""
    subject.module.zero_grad(set_to_none=True)
    with torch.no_grad():
        collected = [subject.method.collect(piece, STEP) for piece in pieces]
    collected = totals.complete(subject.method, collected, add)
    numbers: defaultdict[str, float] = defaultdict(float)
    for piece, part in zip(pieces, collected, strict=True):
        loss = subject.method.loss(part.experience)
        share = len(piece) / IMAGES
        (loss.value * share).backward()
        for name, value in {"loss": loss.value, **part.metrics, **loss.metrics}.items():
            numbers[name] += float(value.detach()) * share
    named = subject.module.named_parameters()
    gradients = {name: value.grad.clone() for name, value in named if value.grad is not None}
    return Outcome(gradients, dict(numbers), collected)


def the_card_is_complete(case: Case, folder: Path) -> None:
    """The card can be read, says what the method is, and agrees with the class."""
    card = case.registry.method(case.method)
    interfaces.load(case.registry, "methods", case.method)
    assert card.summary.endswith("."), "the card's summary is not a sentence"
    for name, option in card.options.items():
        assert option.doc.endswith("."), f"option {name} of the card has no sentence"
    for name in filter(None, [card.group_option, *card.reward_options]):
        assert name in card.options, f"the card names {name!r}, which is no option of it"


def gradients_reach_only_what_trains(case: Case, folder: Path) -> None:
    """The loss is finite, moves what the method says it trains, and nothing else."""
    subject = Subject.build(case, folder)
    trained = {id(parameter) for parameter in subject.module.parameters()}
    networks = _networks(subject)
    others = {name: value for name, value in networks.items() if id(value) not in trained}
    before = {name: value.detach().clone() for name, value in others.items()}
    outcome = take_step(subject, [subject.batch()])
    gradients, loss = outcome.gradients.values(), outcome.numbers["loss"]
    assert math.isfinite(loss), f"the loss is {loss}"
    assert all(torch.isfinite(value).all() for value in gradients), "a gradient is not finite"
    assert any((value != 0).any() for value in gradients), "every gradient is zero"
    torch.optim.AdamW(subject.module.parameters(), lr=1e-3).step()
    for name, value in others.items():
        assert value.grad is None, f"a gradient reached {name}, which does not train"
        assert torch.equal(before[name], value), f"{name} changed, though it does not train"


def _networks(subject: Subject) -> dict[str, Tensor]:
    """Parameters and buffers of every network that the backbone and the method hold."""
    tensors: dict[str, Tensor] = {}
    holders: dict[str, Any] = {"policy": subject.backbone.policy, "tokenizer": subject.backbone.tokenizer}
    holders |= {f"method.{name}": thing for name, thing in vars(subject.method).items()}
    for holder, thing in holders.items():
        if isinstance(thing, nn.Module):
            named = (*thing.named_parameters(), *thing.named_buffers())
            tensors |= {f"{holder}.{name}": value for name, value in named}
    return tensors


def numbers_come_from_addresses(case: Case, folder: Path) -> None:
    """All randomness is a function of (seed, step, sample): a step in parts is the step as a whole.

    A generator of the method's own, or torch's global one, would give two devices other numbers than one.
    """
    subject = Subject.build(case, folder)
    batch = subject.batch()
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    whole = take_step(subject, [batch])
    assert torch.equal(state, torch.random.get_rng_state()), "torch's global generator was used"
    torch.manual_seed(2)
    halves = take_step(subject, list(batch.split(len(batch) // 2)))
    # Float sums in another order: compare with the size of the largest gradient.
    scale = max(float(value.abs().max()) for value in whole.gradients.values())
    losses = [outcome.numbers["loss"] for outcome in (whole, halves)]
    assert math.isclose(*losses, abs_tol=1e-4, rel_tol=1e-4), "the loss depends on the split"
    assert whole.gradients.keys() == halves.gradients.keys(), (
        "which parameters get a gradient depends on the split"
    )
    for name, value in whole.gradients.items():
        error = float((value - halves.gradients[name]).abs().max())
        assert error <= 1e-3 * scale, f"the gradient of {name} depends on how a step is split: {error:.1e}"


def a_resumed_run_is_the_same(case: Case, folder: Path) -> None:
    """A run broken off after two steps and taken up again ends in the same bytes as an unbroken one."""
    whole, broken = case.job(folder / "whole"), case.job(folder / "broken")
    run.run(whole, Progress(quiet=True))
    try:
        run.run(broken, _Breaking())
    except UserError as error:
        assert error.exit_code == EXIT_PARTIAL, str(error)
    else:
        raise AssertionError("the run could not be broken off")
    run.run(broken, Progress(quiet=True))
    exported = [path.relative_to(whole.out) for path in (whole.out / "export").rglob("*.*")]
    for name in [Path("metrics.jsonl"), *exported]:
        same = (whole.out / name).read_bytes() == (broken.out / name).read_bytes()
        assert same, f"{name} differs after an interruption"


class _BreakingStage(Stage):
    def advance(self, count: int = 1, numbers: Any = None) -> None:
        super().advance(count, numbers)
        if self._done == 2:
            raise KeyboardInterrupt


class _Breaking(Progress):
    """Breaks a run off after its second step."""

    def __init__(self) -> None:
        super().__init__(quiet=True)

    @contextlib.contextmanager
    def stage(self, name: str, total: int, *, done: int = 0) -> Iterator[Stage]:
        with super().stage(name, total, done=done):
            yield _BreakingStage(self, name, total, done)


METHOD_CHECKS: tuple[MethodCheck, ...] = (
    the_card_is_complete,
    gradients_reach_only_what_trains,
    numbers_come_from_addresses,
    a_resumed_run_is_the_same,
)
