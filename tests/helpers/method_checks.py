"""What every method owes beyond `alignbench.testing`: checks of the same form, `check(case, folder)`.

Nothing here knows a method by name. A rank is played by a method of its own, freshly built, with every global
generator in the same state: what two processes would really have.
"""

from __future__ import annotations

import random
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
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


def whole_step(case: Case, folder: Path, *, global_seed: int = 0) -> Outcome:
    subject = build(case, folder, global_seed=global_seed)
    return take_step(subject, [subject.batch()])


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
    whole, brought = whole_step(case, folder), Counter[str]()
    # First what each rank brings, then what all ranks get.
    for add in (lambda numbers: brought.update(numbers) or numbers, lambda numbers: brought):
        ranks = []
        for rank in (0, 1):  # each built when it is its turn, as in a process of its own
            subject = build(case, folder)
            ranks.append(take_step(subject, [subject.batch(rank, 2)], add))
        if not brought:
            break
    require_equal(whole, ranks, "at two ranks")


def micro_batches_change_nothing(case: Case, folder: Path) -> None:
    """Pieces of 3, 3 and 2 images give what all 8 give."""
    whole, subject = whole_step(case, folder), build(case, folder)
    pieces = list(subject.batch().split(3))
    assert [len(piece) for piece in pieces] == [3, 3, 2]
    require_equal(whole, [take_step(subject, pieces)], "in micro-batches of 3")


def repetition_gives_the_same_bits(case: Case, folder: Path) -> None:
    """Built again under other global seeds, a step has the same gradients and numbers, bit for bit."""
    first, again = (whole_step(case, folder, global_seed=seed) for seed in (0, 1))
    assert first.numbers == again.numbers
    for name, value in first.gradients.items():
        assert torch.equal(value, again.gradients[name]), f"the gradient of {name} differs"
    drawn, redrawn = (list(_inside(outcome.collected[0].experience, Tensor)) for outcome in (first, again))
    assert len(drawn) == len(redrawn) and all(map(torch.equal, drawn, redrawn))


def collecting_leaves_no_trace(case: Case, folder: Path) -> None:
    """`collect` keeps no graph; neither call touches a global generator or a network's mode."""
    subject = build(case, folder)

    def state() -> tuple[Any, list[bool]]:
        numpy_state = np.random.get_state(legacy=False)["state"]
        generators = (
            torch.get_rng_state().tolist(),
            numpy_state["key"].tolist(),
            numpy_state["pos"],
            random.getstate(),
        )
        networks = [subject.backbone.policy, *_inside(subject.backbone.tokenizer, nn.Module)]
        return generators, [part.training for network in networks for part in network.modules()]

    before = state()
    with torch.no_grad():
        collected = subject.method.collect(subject.batch(), STEP)
    kept = [*_inside(collected.experience, Tensor), *collected.metrics.values()]
    assert kept and not any(value.requires_grad for value in kept), "the experience carries a graph"
    loss = subject.method.loss(collected.experience)
    assert loss.value.shape == () and loss.value.requires_grad, "the loss is no scalar with a gradient"
    assert not any(value.requires_grad for value in loss.metrics.values()), "a metric carries a graph"
    assert all(value.numel() == 1 for value in (*collected.metrics.values(), *loss.metrics.values()))
    after = state()
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
    trained = list(subject.module.parameters())
    ids, places = {id(value) for value in trained}, {value.data_ptr() for value in trained}
    networks = (*_inside(subject.backbone, nn.Module), *_inside(subject.method, nn.Module))
    weights = [value for network in networks for value in (*network.parameters(), *network.buffers())]
    frozen = [value for value in weights if id(value) not in ids]
    before = [value.detach().clone() for value in frozen]
    start = [value.detach().clone() for value in trained]
    kept = {
        (role, name): value.clone()
        for role, state in subject.backbone.export().items()
        for name, value in state.items()
        if value.data_ptr() not in places
    }
    _train(subject, folder, steps=2)
    assert all(value.grad is None for value in frozen), "a gradient reached what does not train"
    assert all(map(torch.equal, before, frozen)), "frozen weights changed"
    for (role, name), value in kept.items():
        assert torch.equal(value, subject.backbone.export()[role][name]), f"{role} {name} changed"
    moved = [not torch.equal(a, b) for a, b in zip(start, trained, strict=True)]
    assert all(moved), f"{moved.count(False)} of {len(moved)} trained parameters did not move"


METHOD_CHECKS = (
    two_ranks_give_what_one_gives,
    micro_batches_change_nothing,
    repetition_gives_the_same_bits,
    collecting_leaves_no_trace,
    counts_are_right,
    only_what_trains_changes,
)


def _train(subject: Subject, folder: Path, *, steps: int) -> None:
    """Train with the driver, a rate that moves every parameter."""
    config = replace(subject.job.plan.config.train, steps=steps, lr=1e-3, schedule="constant")
    optimizer = torch.optim.AdamW(parameter_groups(subject.module, config.weight_decay), lr=config.lr)
    parallel = Parallel("fp32")
    try:
        module, wrapped = parallel.prepare(subject.module), parallel.prepare_optimizer(optimizer)
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


def _inside(thing: Any, kind: type, seen: set[int] | None = None) -> Iterator[Any]:
    """Everything of a kind in attributes, containers, bound methods and closures."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, type | types.ModuleType | str | bytes | int | float):
        return
    seen.add(id(thing))
    if isinstance(thing, kind):
        yield thing
        return
    children: Iterable[Any] = vars(thing).values() if hasattr(thing, "__dict__") else ()
    if isinstance(thing, Mapping):
        children = thing.values()
    elif isinstance(thing, list | tuple | set | frozenset):
        children = thing
    elif isinstance(thing, types.MethodType):
        children = thing.__self__, thing.__func__
    elif isinstance(thing, types.FunctionType):
        children = [cell.cell_contents for cell in thing.__closure__ or ()]
    for child in list(children):
        yield from _inside(child, kind, seen)
