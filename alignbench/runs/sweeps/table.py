"""The table of a sweep: each configuration's mean and interval over seeds, and which is best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from alignbench import __version__
from alignbench.files import digest_of
from alignbench.leaderboard import cells
from alignbench.leaderboard.ranking import cell_difference
from alignbench.leaderboard.rows import cell_of
from alignbench.leaderboard.table import Cell, Column, grouped
from alignbench.record import Result, RunRecord, Subject
from alignbench.registry.protocol import MetricFact
from alignbench.registry.schema import RewardCard
from alignbench.runs.sweeps import claims
from alignbench.runs.sweeps.sweep import Configuration, Sweep, SweepRun

Measured = Mapping[str, Mapping[str, Cell]]
"""{setting: {metric: mean and interval}}, the sweep's own setting first."""


@dataclass(frozen=True)
class Line:
    """One configuration, measured."""

    configuration: Configuration
    runs: tuple[SweepRun, ...]
    seeds: tuple[int, ...]
    """Training seeds that are complete."""
    values: Mapping[str, list[list[float | None]]]
    """{metric: one list for each of these seeds, one value per sampling seed}, at the sweep's setting."""
    measured: Measured
    train_seconds: float | None
    external: str = ""
    """Whether rewards came from outside the image; see `cells.external`."""
    best: bool = False
    tied: bool = False
    """Not the best, but the best does not beat it significantly (Welch's t, 95 %)."""

    @property
    def complete(self) -> bool:
        return len(self.seeds) == len(self.runs)

    @property
    def cells(self) -> Mapping[str, Cell]:
        """{metric: mean and interval} at the sweep's setting; without metrics that a seed lacks."""
        return next(iter(self.measured.values()))


def measure(
    sweep: Sweep,
    facts: Mapping[str, MetricFact],
    rewards: Mapping[str, RewardCard] = MappingProxyType({}),
) -> list[Line]:
    """Read the records of a sweep and mark the best configurations; unfinished ones are never best."""
    lines = []
    for configuration in sweep.configurations:
        runs = tuple(run for run in sweep.runs if run.configuration is configuration)
        records = {run.seed: record for run in runs if (record := run.finished())}
        found = {setting: _shared(records.values(), "method", setting, facts) for setting in settings(sweep)}
        trains = [record.train for record in records.values() if record.train]
        called = {name for train in trains for name in train.reward_calls}
        lines.append(
            Line(
                configuration,
                runs,
                tuple(records),
                {metric: [x.metrics[metric] for x in xs] for metric, xs in found[sweep.card.setting].items()},
                {setting: _cells(results, facts) for setting, results in found.items()},
                sum(train.seconds for train in trains) / len(trains) if trains else None,
                cells.external(called, rewards) if trains else "",
            )
        )
    metric = sweep.card.metric
    groups = grouped(
        (line.configuration.row if sweep.card.choose == "row" else "", (index, line.cells[metric]))
        for index, line in enumerate(lines)
        if line.complete and metric in line.cells
    )
    for candidates in groups.values():
        top = max((cell for _, cell in candidates), key=column_of(metric, facts).score)
        for index, cell in candidates:
            change = cell_difference(cell, top)  # single values cannot be tested
            tied = cell is not top and change.tested and not change.significant
            lines[index] = replace(lines[index], best=cell is top, tied=tied)
    return lines


def settings(sweep: Sweep) -> list[str]:
    """The settings that its table or its claims read, its own first."""
    card = sweep.card
    claimed = [claim.setting for claim in card.claims if claim.setting]
    return list(dict.fromkeys([card.setting, *card.groups.values(), *claimed]))


def column_of(metric: str, facts: Mapping[str, MetricFact], evaluator: str = "") -> Column:
    return Column(metric, evaluator, facts[metric].title, facts[metric])


def _shared(
    records: Iterable[RunRecord], subject: Subject, setting: str, facts: Mapping[str, MetricFact]
) -> dict[str, list[Result]]:
    """{metric: its result in every record} at one setting; metrics with a missing value are left out."""
    found = [
        {
            metric: result
            for result in record.results
            if result.subject == subject and result.setting.name == setting
            for metric, values in result.metrics.items()
            if None not in values
        }
        for record in records
    ]
    shared = set.intersection(*map(set, found)) if found else set()
    return {metric: [one[metric] for one in found] for metric in facts if metric in shared}


def _cells(results: Mapping[str, Sequence[Result]], facts: Mapping[str, MetricFact]) -> dict[str, Cell]:
    made = {}
    for metric, xs in results.items():
        column, used = column_of(metric, facts, xs[0].evaluator), set(xs[0].networks_used_as_reward)
        made[metric] = cell_of(xs, column, rewarded=column.fact.was_reward(used))
    return made


def base(sweep: Sweep, facts: Mapping[str, MetricFact]) -> Measured:
    """The untouched model, from the first finished run; no metrics if there is none."""
    record = next(filter(None, (run.finished() for run in sweep.runs)), None)
    found = {x: _shared([record] if record else [], "base", x, facts) for x in settings(sweep)}
    return {setting: _cells(results, facts) for setting, results in found.items()}


def as_dict(
    sweep: Sweep, lines: Sequence[Line], facts: Mapping[str, MetricFact], failures: Mapping[str, str]
) -> dict[str, Any]:
    card, untouched = sweep.card, base(sweep, facts)
    return {
        "schema": 1,
        "alignbench": __version__,
        "name": sweep.name,
        "title": card.title,
        "source": card.source,
        "digest": "sha256:" + digest_of(card.model_dump(mode="json")),
        "model": card.model,
        "protocol": {"name": sweep.protocol, "digest": sweep.runs[0].plan.protocol_digest},
        "setting": card.setting,
        "metric": card.metric,
        "choose": card.choose,
        "given": dict(sweep.given),
        "base": {metric: list(cell.values) for metric, cell in untouched[card.setting].items()},
        "claims": [vars(one) for one in claims.decided(card, all_measured(lines, untouched), facts)],
        "configurations": [_line_dict(line) for line in lines],
        "failures": dict(failures),
    }


def _line_dict(line: Line) -> dict[str, Any]:
    return {
        "title": line.configuration.title,
        "row": line.configuration.row,
        "method": line.configuration.method,
        "recipe": line.runs[0].plan.config.recipe,
        "point": dict(line.configuration.point),
        "values": dict(line.configuration.values),
        "best": line.best,
        "tied": line.tied,
        "train_seconds": line.train_seconds,
        "runs": {str(run.seed): run.plan.id for run in line.runs},
        "finished_seeds": list(line.seeds),
        "measured": line.values,
        "intervals": _intervals(line.cells),
        "other_settings": {name: _intervals(found) for name, found in list(line.measured.items())[1:]},
    }


def _intervals(measured: Mapping[str, Cell]) -> dict[str, dict[str, Any]]:
    spans = {metric: cell.interval for metric, cell in measured.items()}
    return {
        metric: {"mean": one.mean, "low": one.low, "high": one.high, "n": one.n, "over": one.kind}
        for metric, one in spans.items()
    }


def all_measured(lines: Sequence[Line], untouched: Measured) -> dict[str, Measured]:
    """{configuration: what is measured of it}, the base and complete configurations."""
    whole = {line.configuration.name: line.measured for line in lines if line.complete}
    return {"base": untouched, **whole}
