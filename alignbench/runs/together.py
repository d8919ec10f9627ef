"""Processes that evaluate together, without a collective: nobody has to be there for the others to go on.

All image sets of a job are one pool of units (`dealing.pool`). Then the first process scores alone; the
others help it with the distances of resamples, which cost most of the time, until it is through.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from alignbench import record
from alignbench.dealing import pool
from alignbench.dealing.pool import Pool, pause
from alignbench.errors import UserError
from alignbench.evaluation.evaluate import Evaluation, Wanting
from alignbench.evaluation.features import measure
from alignbench.metrics import bootstrap
from alignbench.metrics.arrays import Device
from alignbench.progress import Progress
from alignbench.training.parallel import Parallel
from alignbench.training.process_group import DONE, ENDED, ExchangeBroken, new_board

WORTH = 1e10
"""Multiplications, by the cubes of the eigen-solves, from which on distances are shared."""
PARTING = 60.0
"""Seconds that the first process, which may hold the store, waits in the end for those that are still at a
unit that another one has done."""


class Together:
    """This process's part; all processes make theirs at the same point of a run.

    Args:
        folder: where the first process leaves what the others need to help it; all see it.
    """

    def __init__(self, parallel: Parallel, folder: Path) -> None:
        self.board = new_board()
        self.rank, self.ranks = parallel.rank, parallel.world_size
        self.is_first = parallel.is_main
        self._folder = folder
        self._jobs = 0

    def measure(self, evaluations: Sequence[Evaluation], progress: Progress) -> None:
        """Measure every set of all subjects that has no result yet, and the reference they need: one pool.

        The first process says what that is: another run may put results into the cache meanwhile.
        """
        if self.is_first:
            self.board.set("work", json.dumps(_work_of(evaluations)))
        work = self._hear("work")
        if work is None:  # the first process had done it all
            return
        seen, wanting = json.loads(work)
        units, names = [], []
        for evaluation, wanted in zip(evaluations, wanting, strict=True):
            units += evaluation.units([(name, setting, seed) for name, setting, seed in wanted])
            names += [str(evaluation.subject)] if wanted else []
        if not units:
            return
        first = evaluations[0]
        reference = first.references.units({name: first.evaluators[name] for name in seen})
        units = [*reference, *units]
        title = f"evaluate {', '.join(['reference'] * bool(reference) + names)}"
        with progress.stage(title, len(units)) as stage:
            measure(units, self._pool("measure", len(units)), stage)

    def help(self) -> None:
        """Compute distances for the first process until it has scored everything.

        Raises:
            ExchangeBroken: the first process failed.
        """
        while (job := self._hear(f"job/{self._jobs}")) is not None:
            number, self._jobs = self._jobs, self._jobs + 1
            file, device = json.loads(job)
            with contextlib.suppress(FileNotFoundError):  # done before this process came to it
                with np.load(self._folder / file) as arrays:
                    features, mean, cov, weights = (arrays[name] for name in ("x", "mean", "cov", "w"))
                frechet = bootstrap.WeightedFrechet(features, mean, cov, device=device)
                self._compute(number, frechet, weights)

    def distances(
        self, features: np.ndarray, mean: np.ndarray, cov: np.ndarray, weights: np.ndarray, device: Device
    ) -> list[float]:
        """As `bootstrap.distances_of`, on all processes; equal to the last bit where they are alike."""
        if self.ranks == 1 or len(weights) * float(min(features.shape)) ** 3 < WORTH:
            return bootstrap.distances_of(features, mean, cov, weights, device)
        number, self._jobs = self._jobs, self._jobs + 1
        path = self._folder / f".resamples-{number}.tmp"
        try:
            with path.open("wb") as file:
                np.savez(file, x=features, mean=mean, cov=cov, w=weights)
            where = None if device is None else torch.device(device).type  # the others' of that kind
            self.board.set(f"job/{number}", json.dumps([path.name, where]))
            frechet = bootstrap.WeightedFrechet(features, mean, cov, device=device)
            self._compute(number, frechet, weights)
        finally:
            path.unlink(missing_ok=True)
        texts = self.board.get([f"job/{number}/{k}" for k in range(len(weights))])
        return [  # None: lost with a process between two messages
            frechet.distance(one) if text is None else float.fromhex(text)
            for text, one in zip(texts, weights, strict=True)
        ]

    def _compute(self, number: int, frechet: bootstrap.WeightedFrechet, weights: np.ndarray) -> None:
        def one(k: int) -> bool:
            self.board.set(f"job/{number}/{k}", frechet.distance(weights[k]).hex())
            return True

        pool.work(self._pool(f"distances/{number}", len(weights)), one)

    def _pool(self, name: str, units: int) -> Pool:
        return Pool(self.board, name, units, self.rank, self.ranks)

    def _hear(self, key: str) -> str | None:
        """Wait for what the first process says under a key; None: it is through."""
        while True:
            said, over = self.board.get([key, "over"])
            if said is not None:
                return said
            if over is not None:
                if over != DONE:
                    raise ExchangeBroken(over, explained=over != ENDED)
                return None
            pause(self.ranks)


def _work_of(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[Wanting]]]:
    """Return the evaluators that have to look at the reference, and what each subject wants."""
    wanting = [evaluation.wanting() for evaluation in evaluations]
    first = evaluations[0]
    names = {name for wanted in wanting for name, _, _ in wanted if first.uses_reference(name)}
    compared = {name: evaluator for name, evaluator in first.evaluators.items() if name in names}
    return first.references.wanting(compared) if compared else [], wanting


def _is_complete(folder: Path) -> bool:
    with contextlib.suppress(OSError, UserError):
        return record.read(folder / "run.json").status == "complete"
    return False


@contextlib.contextmanager
def together(parallel: Parallel, folder: Path) -> Iterator[Together]:
    """Evaluate together inside the block, which the first process leaves last.

    Raises:
        ExchangeBroken: the first process failed, or the store is gone.
    """
    group = Together(parallel, folder)
    if not group.is_first:
        try:
            yield group
            group.board.add("left", 1)
        except ExchangeBroken as broken:
            # Late at a unit that others had done: the first process is through, and the store went with it.
            if broken.explained or not _is_complete(folder):
                raise
        return
    word = ENDED
    try:
        with bootstrap.computed_by(group.distances):
            yield group
        word = DONE
    except UserError as error:
        word = f"process 0 said: {error}"
        raise
    finally:
        with contextlib.suppress(ExchangeBroken):
            group.board.set("over", word)
    until = time.monotonic() + PARTING
    while group.board.add("left", 0) < group.ranks - 1 and time.monotonic() < until:
        pause(group.ranks)
