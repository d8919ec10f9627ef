"""What exists and what came of it: cards, leaderboards, comparisons. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.errors import UserError, suggest
from alignbench.registry.lookup import Registry
from alignbench.registry.plugins import load_registry
from alignbench.registry.schema import Card

if TYPE_CHECKING:
    from alignbench.leaderboard.audit import Audit
    from alignbench.leaderboard.compare import Comparison
    from alignbench.leaderboard.export import Leaderboard
    from alignbench.leaderboard.table import Board
    from alignbench.record import RunRecord, Tell


def board(
    runs: Iterable[RunRecord | str | os.PathLike[str]],
    *,
    plugins: Sequence[Any] = (),
    tell: Tell | None = None,
) -> Leaderboard:
    """Make the tables of runs: `.markdown()`, `.latex()`, `.csv()`, `.json()`, `.rows()` and `.frame()`.

    Args:
        runs: records, run folders, record files, or folders of either.
        plugins: what brings the cards of metrics that are not built in; a metric without a card is not shown.
        tell: called for a record that cannot be read, which is left out; None: it is an error.

    Raises:
        UserError: a path that holds no record, or a broken record.
    """
    from alignbench.leaderboard.board import collect
    from alignbench.leaderboard.export import Leaderboard
    from alignbench.record import RunRecord

    runs = list(runs)
    records = [run for run in runs if isinstance(run, RunRecord)]
    paths = [Path(run) for run in runs if not isinstance(run, RunRecord)]
    registry = load_registry(plugins)
    made = _built([*records, *collect(paths, tell)], registry)
    return Leaderboard(made.tables)


def _built(records: Iterable[RunRecord], registry: Registry) -> Board:
    from alignbench.leaderboard.board import build

    assets, rewards = registry.asset_cards(), registry.reward_cards()
    return build(records, registry.metric_facts(), assets=assets, rewards=rewards)


def audit(runs: Iterable[str | os.PathLike[str]], *, tell: Tell | None = None) -> Audit:
    """Hold measured rows against published ones of the same model, method and setting.

    Args:
        runs: run folders, record files, or folders of either.
        tell: called for a record that cannot be read, which is left out; None: it is an error.

    Raises:
        UserError: a path that holds no record, or a broken record.
    """
    from alignbench.leaderboard import audit
    from alignbench.leaderboard.board import collect

    registry = Registry.default()
    return audit.audit(_built(collect(map(Path, runs), tell), registry), registry.published_cards())


def cards(kind: str) -> dict[str, Card]:
    """Return what exists of one kind (`models`, `methods`, `rewards`, …): {name: card}.

    Raises:
        UserError: no such kind.
    """
    registry = Registry.default()
    if kind not in registry.locations:
        raise UserError(f"no kind {kind!r}.{suggest(kind, registry.locations)}")
    return registry.usable(kind)[0]


def compare(a: str, b: str, metrics: Sequence[str] = (), *, plugins: Sequence[Any] = ()) -> Comparison:
    """Compare two evaluations of one protocol, metric by metric; differences are b minus a.

    Args:
        a: a run folder or record file; `RUN:base`, `RUN:method` or `RUN:samples` to choose.
        b: the other one.
        metrics: only these; default: all that both have.
        plugins: as for `board`.

    Raises:
        UserError: they were not made under one protocol, or a metric that neither has.
    """
    from alignbench.leaderboard.compare import compare, read_evaluated

    facts = load_registry(plugins).metric_facts()
    return compare(read_evaluated(a), read_evaluated(b), facts, metrics=metrics)
