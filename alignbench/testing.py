"""Contract checks that every method owes, for our tests and for those of other packages.

Each check takes a `Case` and an empty folder and raises AssertionError with a sentence. They run on the
embedded model in seconds: `for check in METHOD_CHECKS: check(Case(Registry.default(), "vapi"), folder)`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignbench.api import Backbone, Batch, Method
from alignbench.config.plan import Job, make_plan
from alignbench.config.settings import resolve
from alignbench.data.stream import Stream
from alignbench.errors import EXIT_PARTIAL, UserError
from alignbench.progress import Progress, Stage
from alignbench.registry import interfaces
from alignbench.registry.lookup import Registry
from alignbench.runs import run
from alignbench.training import setup

CPU = torch.device("cpu")
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
class _Parts:
    """A method on a fresh model, with one step's images."""

    backbone: Backbone
    method: Method
    module: nn.Module
    """What trains."""
    batch: Batch


def _parts(case: Case, folder: Path) -> _Parts:
    job = case.job(folder)
    backbone = setup.build_model(job.plan, CPU)
    method = setup.build_method(job, backbone, CPU)
    module = setup.trained_module(backbone, method.updates)
    dataset = setup.open_training_data(job, Progress(quiet=True))
    condition = setup.text_conditions(job.plan, backbone)
    with Stream(dataset, seed=0, images_per_step=8, workers=0, text_condition=condition) as stream:
        batch = stream.batch(0, 0, 1)
    return _Parts(backbone, method, module, batch)


def _gradients(parts: _Parts, pieces: list[Batch], step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and {parameter: gradient} of a step whose images come in pieces, as the driver adds them up."""
    parts.module.zero_grad(set_to_none=True)
    total = torch.zeros(())
    with torch.no_grad():
        collected = [parts.method.collect(piece, step) for piece in pieces]
    for piece, part in zip(pieces, collected, strict=True):
        loss = parts.method.loss(part.experience)
        share = loss.value * (len(piece) / len(parts.batch))
        share.backward()
        total += share.detach()
    named = parts.module.named_parameters()
    return total, {name: value.grad.clone() for name, value in named if value.grad is not None}


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
    parts = _parts(case, folder)
    trained = {id(parameter) for parameter in parts.module.parameters()}
    networks = _networks(parts)
    others = {name: value for name, value in networks.items() if id(value) not in trained}
    before = {name: value.detach().clone() for name, value in others.items()}
    loss, gradients = _gradients(parts, [parts.batch])
    assert torch.isfinite(loss), f"the loss is {loss}"
    assert all(torch.isfinite(value).all() for value in gradients.values()), "a gradient is not finite"
    assert any((value != 0).any() for value in gradients.values()), "every gradient is zero"
    torch.optim.AdamW(parts.module.parameters(), lr=1e-3).step()
    for name, value in others.items():
        assert value.grad is None, f"a gradient reached {name}, which does not train"
        assert torch.equal(before[name], value), f"{name} changed, though it does not train"


def _networks(parts: _Parts) -> dict[str, Tensor]:
    """Parameters and buffers of every network that the backbone and the method hold."""
    networks: dict[str, Tensor] = {}
    holders: dict[str, Any] = {"policy": parts.backbone.policy, "tokenizer": parts.backbone.tokenizer}
    holders |= {f"method.{name}": thing for name, thing in vars(parts.method).items()}
    for holder, thing in holders.items():
        if isinstance(thing, nn.Module):
            networks |= {f"{holder}.{name}": value for name, value in thing.named_parameters()}
            networks |= {f"{holder}.{name}": value for name, value in thing.named_buffers()}
    return networks


def numbers_come_from_addresses(case: Case, folder: Path) -> None:
    """All randomness is a function of (seed, step, sample): a step in parts is the step as a whole.

    A generator of the method's own, or torch's global one, would give two devices other numbers than one.
    """
    parts = _parts(case, folder)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    whole_loss, whole = _gradients(parts, [parts.batch])
    assert torch.equal(state, torch.random.get_rng_state()), "torch's global generator was used"
    torch.manual_seed(2)
    halves_loss, halves = _gradients(parts, list(parts.batch.split(len(parts.batch) // 2)))
    # Float sums in another order: compare with the size of the largest gradient.
    scale = max(float(value.abs().max()) for value in whole.values())
    assert torch.allclose(whole_loss, halves_loss, atol=1e-4, rtol=1e-4), "the loss depends on the split"
    assert whole.keys() == halves.keys(), "which parameters get a gradient depends on the split"
    for name, value in whole.items():
        error = float((value - halves[name]).abs().max())
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
    exported = [path.relative_to(whole.out) for path in (whole.out / "export").iterdir()]
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

    def stage(self, name: str, total: int, *, done: int = 0) -> Any:
        return contextlib.nullcontext(_BreakingStage(self, name, total, done))


METHOD_CHECKS: tuple[MethodCheck, ...] = (
    the_card_is_complete,
    gradients_reach_only_what_trains,
    numbers_come_from_addresses,
    a_resumed_run_is_the_same,
)
