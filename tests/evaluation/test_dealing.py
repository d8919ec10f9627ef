"""Units are claimed one by one over the real board; dead and slow processes hold nobody up."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from torch._C._distributed_c10d import HashStore

from alignbench.dealing import pool, simulation
from alignbench.dealing.pool import DONE, WAIT, OwnBoard, Pool
from alignbench.dealing.simulation import GENEVAL, IMAGENET, simulate, uneven, units_of
from alignbench.errors import RunFailed
from alignbench.evaluation import features
from alignbench.evaluation.features import measure
from alignbench.metrics import bootstrap
from alignbench.runs import together as shared
from alignbench.runs.together import together
from alignbench.training.process_group import ExchangeBroken, StoreBoard
from tests.conftest import ROOT
from tests.evaluation.test_features import STAGE, Images, Mean, run, store

TABLE = ROOT / "docs" / "results" / "dealing.md"


# --- the rules, on simulated time ------------------------------------------------------------------


def pools(units: int, ranks: int) -> list[Pool]:
    board = OwnBoard()
    return [Pool(board, "test", units, rank, ranks) for rank in range(ranks)]


def test_units_go_to_whoever_is_free_and_all_are_done_in_the_end() -> None:
    fast, slow = pools(4, 2)
    assert (slow.take(0), fast.take(0)) == (0, 1)
    for now, unit in ((1, 2), (2, 3)):
        fast.finish(unit - 1, now)
        assert fast.take(now) == unit
    fast.finish(3, 3)
    assert fast.take(3) == 0, "the slow one is late by now"
    assert slow.take(3) == WAIT, "it would be a third copy"
    fast.finish(0, 4)
    assert slow.is_done(0) and (fast.take(4), slow.take(4)) == (DONE, DONE)


def test_nobody_claims_again_what_is_not_late() -> None:
    one, other = pools(2, 2)
    one.take(0), other.take(0)
    one.finish(0, 10)
    assert one.take(10) == WAIT and one.take(14.9) == WAIT
    assert one.take(15.1) == 1


@pytest.mark.parametrize("dead", [1, 3])
def test_units_of_dead_processes_are_taken_over_even_twice(dead: int) -> None:
    """Some die at their first unit; the others, one of which dies as it takes over, finish all."""
    crew = pools(6, 5)
    for one in crew[:dead]:
        one.take(0.0)
    taken: list[int | str] = []
    clock = itertools.count(1)
    living, died = crew[dead:], False
    while living and taken[-1:] != [DONE]:
        one, now = living[0], float(next(clock))
        assert now < 10_000
        unit = one.take(now)
        taken.append(unit)
        if isinstance(unit, int) and unit < dead and not died:
            living, died = living[1:], True  # in the midst of somebody else's unit
        elif isinstance(unit, int):
            one.finish(unit, now + 0.5)
            living = [*living[1:], one]
    assert all(crew[-1].is_done(unit) for unit in range(6))


def test_one_that_dies_between_counter_and_claim_is_not_waited_for_for_ever() -> None:
    lost, other = pools(2, 2)
    lost._show(pool.Hold(None, 0, 0.5, None))
    lost.board.add("test/dealt", 1)
    assert other.take(1) == 1
    other.finish(1, 2)
    assert other.take(3) == WAIT and other.take(2 + 60) == DONE and not other.is_done(0)


# --- over the process group's store ----------------------------------------------------------------


@dataclass
class Crew:
    """Threads that share a store as processes do."""

    ranks: int
    store: HashStore = field(default_factory=HashStore)
    raised: list[BaseException] = field(default_factory=list)

    def board(self) -> StoreBoard:
        return StoreBoard(self.store, "board")

    def run(self, work: Callable[[int], None]) -> None:
        def quietly(rank: int) -> None:
            try:
                work(rank)
            except (RunFailed, SystemExit) as error:
                self.raised.append(error)

        threads = [threading.Thread(target=quietly, args=(rank,)) for rank in range(self.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: Any) -> None:
    monkeypatch.setattr(pool, "PAUSE", 0.01)
    monkeypatch.setattr(pool, "SOONEST", 0.1)
    monkeypatch.setattr(pool, "UNKNOWN", 0.5)
    monkeypatch.setattr(shared, "PARTING", 0.5)


@pytest.mark.parametrize("dies", [False, True])
def test_processes_share_all_units_and_the_rows_are_those_of_one(tmp_path: Path, dies: bool) -> None:
    crew, images = Crew(3), [Images() for _ in range(3)]
    rows = [store(tmp_path / str(number)) for number in range(4)]

    class Dead(Mean):
        def measure(self, batch: Any) -> Any:
            raise SystemExit

    def work(rank: int) -> None:
        evaluator = Dead() if dies and rank == 1 else Mean()
        units = [
            unit
            for stored in rows
            for unit in features.units_of(images[rank], {"mean": evaluator}, {"mean": stored})
        ]
        measure(units, Pool(crew.board(), "m", len(units), rank, 3), STAGE)

    crew.run(work)
    assert len(crew.raised) <= dies
    alone = run(Images(), Mean(), tmp_path / "alone").rows(3)
    for stored in rows:
        assert stored.rows(3).digest == alone.digest
        assert (stored.rows(3).column("level") == alone.column("level")).all()


def test_what_was_done_meanwhile_is_not_written_again(tmp_path: Path) -> None:
    slow, fast = pools(1, 2)
    rows = store(tmp_path)

    class Overtaken(Mean):
        def measure(self, batch: Any) -> Any:
            fast.finish(0, 0.0)
            return super().measure(batch)

    units = features.units_of(Images(), {"mean": Overtaken()}, {"mean": rows})
    measure(units[:1], Pool(slow.board, "test", 1, 1, 2), STAGE)
    assert not rows.has(0), "the other one's rows may be scored and cut down by now"


@pytest.mark.parametrize("dies", [False, True])
def test_resamples_are_spread_and_equal_those_of_one_process(
    tmp_path: Path, monkeypatch: Any, dies: bool
) -> None:
    monkeypatch.setattr(shared, "WORTH", 0)
    numbers = np.random.default_rng(0)
    x, real = numbers.standard_normal((40, 5)), numbers.standard_normal((90, 5))
    moments = real.mean(axis=0), np.cov(real.T)
    plain = bootstrap.frechet_bootstrap(x, *moments, replicates=20, seed=3)
    infinity = bootstrap.frechet_at_infinity(x, *moments, seed=3)
    crew, found, worked = Crew(3), list[Any](), set[int]()
    whole = bootstrap.WeightedFrechet.distance

    def distance(self: Any, weights: np.ndarray) -> float:
        rank = int(threading.current_thread().name)
        worked.add(rank)
        if rank == 2 and dies:
            raise SystemExit
        threading.Event().wait(0.02)
        return whole(self, weights)

    monkeypatch.setattr(bootstrap.WeightedFrechet, "distance", distance)
    monkeypatch.setattr("alignbench.runs.together.new_board", crew.board)

    def work(rank: int) -> None:
        threading.current_thread().name = str(rank)
        parallel = SimpleNamespace(rank=rank, world_size=3, is_main=rank == 0)
        with together(cast("Any", parallel), tmp_path) as group:
            if rank:
                group.help()
            else:
                found.append(bootstrap.frechet_bootstrap(x, *moments, replicates=20, seed=3))
                found.append(bootstrap.frechet_at_infinity(x, *moments, seed=3))

    crew.run(work)
    assert found == [plain, infinity] and worked == {0, 1, 2} and len(crew.raised) == dies
    assert not list(tmp_path.iterdir())


def test_the_others_hear_that_the_first_failed(tmp_path: Path, monkeypatch: Any) -> None:
    crew = Crew(2)
    monkeypatch.setattr("alignbench.runs.together.new_board", crew.board)

    def work(rank: int) -> None:
        parallel = SimpleNamespace(rank=rank, world_size=2, is_main=rank == 0)
        with together(cast("Any", parallel), tmp_path) as group:
            if rank == 0:
                raise RunFailed("no rows")
            group.help()

    crew.run(work)
    assert {type(error) for error in crew.raised} == {RunFailed, ExchangeBroken}
    assert any("process 0 said: no rows" in str(error) for error in crew.raised)


# --- how well processes are filled -----------------------------------------------------------------


@pytest.mark.parametrize(("job", "wanted"), [(IMAGENET, 0.9), (GENEVAL, 0.7)])
def test_sixty_four_uneven_processes_are_filled(job: tuple[int, int, int, int], wanted: float) -> None:
    for seed in range(simulation.TRIALS):
        speeds = uneven(64, seed=seed)
        usual = simulate(units_of(job), speeds, seed=seed)
        slow = simulate(units_of(job), [speeds[0] / 10, *speeds[1:]], seed=seed)
        assert usual.efficiency >= wanted
        assert slow.makespan <= 1.1 * usual.makespan


def test_the_committed_table_is_what_the_simulation_gives() -> None:
    """Of 8 and 64 processes; `python -m alignbench.dealing.simulation` makes it whole, in minutes."""
    committed = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if "| 512 |" not in line]
    assert set(simulation.table((8, 64)).splitlines()) <= set(committed)
