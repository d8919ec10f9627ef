"""The table of a sweep: each configuration's mean and interval over seeds, and which is best."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignbench import __version__
from alignbench.files import digest_of, write_atomic
from alignbench.leaderboard import cells
from alignbench.leaderboard.markdown import bullets, grid
from alignbench.leaderboard.ranking import cell_difference
from alignbench.leaderboard.table import Cell, Column, grouped
from alignbench.record import RunRecord
from alignbench.registry.protocol import MetricFact
from alignbench.runs.sweep import Configuration, Sweep, SweepRun, text


@dataclass(frozen=True)
class Line:
    """One configuration, measured."""

    configuration: Configuration
    runs: tuple[SweepRun, ...]
    seeds: tuple[int, ...]
    """Training seeds that are complete."""
    values: Mapping[str, list[list[float]]]
    """{metric: one list for each of these seeds, one value per sampling seed}."""
    train_seconds: float | None
    best: bool = False
    tied: bool = False
    """Not the best, but the best does not beat it significantly (Welch's t, 95 %)."""

    @property
    def complete(self) -> bool:
        return len(self.seeds) == len(self.runs)

    @property
    def cells(self) -> dict[str, Cell]:
        """{metric: mean and interval}; without metrics that a seed lacks."""
        return {metric: Cell.of(values) for metric, values in self.values.items()}


def measure(sweep: Sweep, facts: Mapping[str, MetricFact]) -> list[Line]:
    """Read the records of a sweep and mark the best configurations; unfinished ones are never best."""
    lines = []
    for configuration in sweep.configurations:
        runs = tuple(run for run in sweep.runs if run.configuration is configuration)
        records = {run.seed: record for run in runs if (record := run.finished())}
        measured = [_metrics(record, "method", sweep.card.setting) for record in records.values()]
        shared = set.intersection(*map(set, measured)) if measured else set()
        values = {metric: [one[metric] for one in measured] for metric in facts if metric in shared}
        seconds = [record.train.seconds for record in records.values() if record.train]
        mean = sum(seconds) / len(seconds) if seconds else None
        lines.append(Line(configuration, runs, tuple(records), values, mean))
    metric = sweep.card.metric
    groups = grouped(
        (line.configuration.row if sweep.card.choose == "row" else "", (index, line.cells[metric]))
        for index, line in enumerate(lines)
        if line.complete and metric in line.values
    )
    for candidates in groups.values():
        top = max((cell for _, cell in candidates), key=_column(metric, facts).score)
        for index, cell in candidates:
            change = cell_difference(cell, top)  # single values cannot be tested
            tied = cell is not top and change.tested and not change.significant
            lines[index] = replace(lines[index], best=cell is top, tied=tied)
    return lines


def _column(metric: str, facts: Mapping[str, MetricFact]) -> Column:
    return Column(metric, "", facts[metric].title, facts[metric])


def _metrics(record: RunRecord, subject: str, setting: str) -> dict[str, list[float]]:
    """{metric: one value per sampling seed} at one setting; metrics with a missing value are left out."""
    return {
        metric: [value for value in values if value is not None]
        for result in record.results
        if result.subject == subject and result.setting.name == setting
        for metric, values in result.metrics.items()
        if None not in values
    }


def base(sweep: Sweep) -> dict[str, list[float]]:
    """The untouched model at the same setting, from the first finished run; empty if there is none."""
    record = next(filter(None, (run.finished() for run in sweep.runs)), None)
    return _metrics(record, "base", sweep.card.setting) if record else {}


# --- files ----------------------------------------------------------------------------------------


def write(sweep: Sweep, facts: Mapping[str, MetricFact], failures: Mapping[str, str]) -> None:
    """Write `sweep.md` and `sweep.json` into the sweep's folder."""
    lines = measure(sweep, facts)
    write_atomic(sweep.out / "sweep.md", markdown(sweep, lines, facts, failures))
    content = as_dict(sweep, lines, failures)
    write_atomic(sweep.out / "sweep.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def as_dict(sweep: Sweep, lines: Sequence[Line], failures: Mapping[str, str]) -> dict[str, Any]:
    card = sweep.card
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
        "base": base(sweep),
        "configurations": [_line_dict(line) for line in lines],
        "failures": dict(failures),
    }


def _line_dict(line: Line) -> dict[str, Any]:
    intervals = {}
    for metric, cell in line.cells.items():
        one = cell.interval
        intervals[metric] = {"mean": one.mean, "low": one.low, "high": one.high, "n": one.n, "over": one.kind}
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
        "intervals": intervals,
    }


def markdown(
    sweep: Sweep, lines: Sequence[Line], facts: Mapping[str, MetricFact], failures: Mapping[str, str]
) -> str:
    untouched = {metric: Cell.of([values]) for metric, values in base(sweep).items()}
    shown = [metric for metric in facts if metric in untouched or any(metric in x.values for x in lines)]
    shown.sort(key=lambda metric: metric != sweep.card.metric)
    columns = [_column(metric, facts) for metric in shown]
    rows = [["*base*", *_texts(untouched, columns), "–", "–"]] if untouched else []
    for line in lines:
        seconds = "" if line.train_seconds is None else f"{line.train_seconds:.1f}"
        name = line.configuration.title or line.configuration.method
        name = f"**{name}**" if line.best else f"{name} =" if line.tied else name
        seeds = f"{len(line.seeds)} of {len(line.runs)}"
        rows.append([name, *_texts(line.cells, columns), seeds, seconds])
    header = ["configuration", *cells.heads(columns), "seeds", "train s"]
    table = grid(header, rows, right=header[1:])
    notes = bullets(_notes(sweep, lines, failures))
    return "\n".join([*_header(sweep, facts), "", *table, "", *notes]) + "\n"


def _texts(measured: Mapping[str, Cell], columns: Sequence[Column]) -> list[str]:
    held = ((column, measured.get(column.metric)) for column in columns)
    return [column.shown(cell.interval) if cell else "" for column, cell in held]


def _header(sweep: Sweep, facts: Mapping[str, MetricFact]) -> list[str]:
    card, plan = sweep.card, sweep.runs[0].plan
    metric = facts[card.metric].title if card.metric in facts else card.metric
    setting = plan.protocol.settings[card.setting].title
    changes = [word for key, value in sweep.given.items() for word in ("--set", f"{key}={value}")]
    command = ["alignbench", "sweep", sweep.name, *changes]
    return [
        f"# {card.title}",
        "",
        *([card.summary, ""] if card.summary else []),
        f"Source: {card.source}. Model {plan.model.title}; protocol {sweep.protocol} @ "
        f"{plan.protocol_digest[7:15]}, {plan.protocol.samples:,} images, sampling seeds "
        f"{', '.join(map(str, plan.protocol.seeds))}, shown at {setting}; chosen by {metric}.",
        "",
        f"Made by `{shlex.join(command)}`. ± is a 95 % Student interval over training seeds, or over "
        "sampling seeds where there is one training seed. Bold is the best mean "
        f"{'of its row' if card.choose == 'row' else 'of all'}, = a configuration that it does not beat "
        "significantly (95 %; Student's t over pairs of equal sampling seeds, else Welch's; no correction "
        "for the number of comparisons; single values are not tested).",
    ]


def _notes(sweep: Sweep, lines: Sequence[Line], failures: Mapping[str, str]) -> list[str]:
    notes = list(sweep.card.notes)
    if sweep.card.choose == "row":
        trials = Counter(line.configuration.row for line in lines)
        counts = ", ".join(f"{row} {count}" for row, count in trials.items())
        if len(set(trials.values())) == 1:
            counts = f"{trials.most_common()[0][1]} each"
        notes.append(f"Configurations tried: {counts}.")
        for line in (line for line in lines if line.best):
            point = ", ".join(f"{key} = {text(value)}" for key, value in line.configuration.point.items())
            edge = ", ".join(_edges(line, lines))
            remark = f", at the edge of what was tried ({edge})" if edge else ""
            notes.append(f"Chosen for {line.configuration.row}: {point}{remark}.")
    return [*notes, *(f"Failed: {name}: {reason}" for name, reason in failures.items())]


def _edges(best: Line, lines: Sequence[Line]) -> list[str]:
    """Numeric axes of its row on which a line is the smallest or largest: a wider grid might do better."""
    row = [line.configuration.point for line in lines if line.configuration.row == best.configuration.row]
    edges = []
    for key, value in best.configuration.point.items():
        tried = {point[key] for point in row if key in point}
        numeric = all(isinstance(one, int | float) and not isinstance(one, bool) for one in tried)
        if numeric and len(tried) > 1 and value in (min(tried), max(tried)):
            edges.append(key)
    return edges
