"""What every method owes beyond `alignbench.testing`: checks of the same form, `check(case, folder)`.

Nothing here knows a method by name. A rank is played by a method of its own, freshly built, with every global
generator in the same state: what two processes would really have.
"""

from __future__ import annotations

import random
import types
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alignbench.progress import Progress
from alignbench.testing import IMAGES, STEP, Case, Outcome, Subject, take_step
from alignbench.training.driver import Driver, parameter_groups
from alignbench.training.parallel import Parallel

TOLERANCE = 1e-6
"""Of a gradient or a loss in another order of summation, relative to the largest gradient or to 1."""
ROUNDED = 1e-5
"""Of logged numbers, which may be differences of large ones."""


def build(case: Case, folder: Path, *, global_seed: int = 0) -> Subject:
    """Build a subject after setting every global generator."""
    torch.manual_seed(global_seed)
    np.random.seed(global_seed)
    random.seed(global_seed)
    return Subject.build(case, folder)


def require_equal(whole: Outcome, parts: list[Outcome], what: str) -> None:
    """Require that parts add up to the whole."""
    assert whole.gradients, "no gradient at all"
    scale = max(1.0, *(float(value.abs().max()) for value in whole.gradients.values()))
    for name, value in whole.gradients.items():
        added = torch.stack([part.gradients[name] for part in parts]).sum(dim=0)
        error = float((value - added).abs().max())
        assert error <= TOLERANCE * scale, f"{what}: the gradient of {name} is off by {error:.1e}"
    for name, number in whole.numbers.items():
        added_number = sum(part.numbers[name] for part in parts)
        allowed = ROUNDED * max(1.0, abs(number))
        assert abs(number - added_number) <= allowed, f"{what}: {name} is {added_number}, not {number}"


def two_ranks_give_what_one_gives(case: Case, folder: Path) -> None:
    """Gradients and logged numbers of two half steps, each in a process of its own, add up to the whole."""
    subject = build(case, folder)
    whole = take_step(subject, [subject.batch()])
    ranks = []
    for rank in (0, 1):
        other = build(case, folder)
        ranks.append(take_step(other, [other.batch(rank, 2)]))
    require_equal(whole, ranks, "at two ranks")


def micro_batches_change_nothing(case: Case, folder: Path) -> None:
    """Pieces of 3, 3 and 2 images give what all 8 give."""
    subject = build(case, folder)
    whole = take_step(subject, [subject.batch()])
    pieces = list(subject.batch().split(3))
    assert [len(piece) for piece in pieces] == [3, 3, 2]
    require_equal(whole, [take_step(build(case, folder), pieces)], "in micro-batches of 3")


def repetition_gives_the_same_bits(case: Case, folder: Path) -> None:
    """Built again under other global seeds, a step has the same gradients and numbers, bit for bit."""
    outcomes = []
    for global_seed in (0, 1):
        subject = build(case, folder, global_seed=global_seed)
        outcomes.append(take_step(subject, [subject.batch()]))
    first, again = outcomes
    assert first.numbers == again.numbers
    for name, value in first.gradients.items():
        assert torch.equal(value, again.gradients[name]), f"the gradient of {name} differs"
    drawn, redrawn = (list(tensors(outcome.collected[0].experience)) for outcome in outcomes)
    assert len(drawn) == len(redrawn) and all(torch.equal(a, b) for a, b in zip(drawn, redrawn, strict=True))


def collecting_leaves_no_trace(case: Case, folder: Path) -> None:
    """`collect` keeps no graph; neither call touches a global generator or a network's mode."""
    subject = build(case, folder)
    networks = [subject.backbone.policy, *modules(subject.backbone.tokenizer)]
    before = _global_state(), [part.training for network in networks for part in network.modules()]
    with torch.no_grad():
        collected = subject.method.collect(subject.batch(), STEP)
    kept = [*tensors(collected.experience), *collected.metrics.values()]
    assert kept and not any(value.requires_grad for value in kept), "the experience carries a graph"
    loss = subject.method.loss(collected.experience)
    assert loss.value.shape == () and loss.value.requires_grad, "the loss is no scalar with a gradient"
    assert not any(value.requires_grad for value in loss.metrics.values()), "a metric carries a graph"
    assert all(value.numel() == 1 for value in (*collected.metrics.values(), *loss.metrics.values()))
    after = _global_state(), [part.training for network in networks for part in network.modules()]
    assert before[0] == after[0], "a global random generator was used"
    assert before[1] == after[1], "a network was left in another mode"


def counts_are_right(case: Case, folder: Path) -> None:
    """Images, sequences, tokens and reward calls: as the card says, and additive over pieces."""
    subject = build(case, folder)
    plan, registry = subject.job.plan, subject.job.registry
    card = registry.method(case.method)
    with torch.no_grad():
        whole = subject.method.collect(subject.batch(), STEP)
        pieces = [subject.method.collect(piece, STEP) for piece in subject.batch().split(3)]
    sequences = IMAGES * plan.sequences_per_image
    assert whole.images == IMAGES
    # Without a group option a method may also draw nothing at all.
    assert whole.sequences in ({sequences} if card.group_option else {0, sequences})
    assert whole.tokens in (0, whole.sequences * subject.backbone.num_tokens)
    assert bool(whole.reward_calls) == ("rewards" in card.needs), "rewards are counted if they are needed"
    for name, calls in whole.reward_calls.items():
        assert name.partition("|")[0].partition("(")[0] in registry.names("rewards"), f"no reward {name!r}"
        assert calls == whole.sequences, f"{name} scored {calls} images of {whole.sequences}"
    for attribute in ("images", "sequences", "tokens"):
        added = sum(getattr(piece, attribute) for piece in pieces)
        assert added == getattr(whole, attribute), attribute
    calls_added = sum((Counter(piece.reward_calls) for piece in pieces), Counter())
    assert calls_added == Counter(whole.reward_calls)


def only_what_trains_changes(case: Case, folder: Path) -> None:
    """After two steps of the real driver every other weight is bit-identical, and what trains has moved."""
    subject = build(case, folder)
    trained = {id(value) for value in subject.module.parameters()}
    frozen = [value for value in _weights(subject) if id(value) not in trained]
    before = [value.detach().clone() for value in frozen]
    start = [value.detach().clone() for value in subject.module.parameters()]
    exported = {role: dict(state) for role, state in subject.backbone.export().items()}
    kept = {
        (role, name): value.clone()
        for role, state in exported.items()
        for name, value in state.items()
        if value.data_ptr() not in {weight.data_ptr() for weight in subject.module.parameters()}
    }
    _train(subject, folder, steps=2)
    assert all(value.grad is None for value in frozen), "a gradient reached what does not train"
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True)), "frozen weights changed"
    for (role, name), value in kept.items():
        assert torch.equal(value, subject.backbone.export()[role][name]), f"{role} {name} changed"
    moved = [not torch.equal(a, b) for a, b in zip(start, subject.module.parameters(), strict=True)]
    assert all(moved), f"{moved.count(False)} of {len(moved)} trained parameters did not move"


METHOD_CHECKS = (
    two_ranks_give_what_one_gives,
    micro_batches_change_nothing,
    repetition_gives_the_same_bits,
    collecting_leaves_no_trace,
    counts_are_right,
    only_what_trains_changes,
)


# --- helpers --------------------------------------------------------------------------------------


def _train(subject: Subject, folder: Path, *, steps: int) -> None:
    """Train with the driver, a rate that moves every parameter."""
    config = subject.job.plan.config.train
    config = type(config)(**{**vars(config), "steps": steps, "lr": 1e-3, "schedule": "constant"})
    parallel = Parallel("fp32")
    try:
        optimizer = torch.optim.AdamW(parameter_groups(subject.module, config.weight_decay), lr=config.lr)
        module, wrapped = parallel.wrap(subject.module, optimizer)
        with subject.stream() as stream:
            Driver(
                config,
                method=subject.method,
                module=module,
                optimizer=wrapped,
                stream=stream,
                parallel=parallel,
                folder=folder,
                progress=Progress(quiet=True),
                checkpoint_every=steps,
            ).train()
    finally:
        parallel.close()


def _global_state() -> tuple[Any, ...]:
    numpy_state = np.random.get_state()
    return torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2], random.getstate()


def _weights(subject: Subject) -> list[Tensor]:
    """Parameters and buffers of every network in reach of backbone and method, rewards included."""
    found: dict[int, Tensor] = {}
    for network in (*modules(subject.backbone), *modules(subject.method)):
        found |= {id(value): value for value in (*network.parameters(), *network.buffers())}
    return list(found.values())


def tensors(thing: object) -> Iterator[Tensor]:
    """Every tensor inside an experience."""
    yield from _inside(thing, Tensor, set())


def modules(thing: object) -> Iterator[nn.Module]:
    """Every network that an object holds."""
    yield from _inside(thing, nn.Module, set())


def _inside(thing: object, kind: type, seen: set[int]) -> Iterator[Any]:
    """Walk attributes, containers, bound methods and closures."""
    if id(thing) in seen or isinstance(thing, type | types.ModuleType | str | bytes | int | float):
        return
    seen.add(id(thing))
    if isinstance(thing, kind):
        yield thing
        return
    for child in _children(thing):
        yield from _inside(child, kind, seen)


def _children(thing: Any) -> list[Any]:
    if isinstance(thing, Mapping):
        return list(thing.values())
    if isinstance(thing, list | tuple | set | frozenset):
        return list(thing)
    if isinstance(thing, types.MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, types.FunctionType):
        return [cell.cell_contents for cell in thing.__closure__ or ()]
    if is_dataclass(thing):
        return [getattr(thing, field.name) for field in fields(thing)]
    return list(vars(thing).values()) if hasattr(thing, "__dict__") else []
