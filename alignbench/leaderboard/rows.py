"""The rows of one table, before ranking: which results belong together and what their numbers are.

Base rows are measured once per setting; method rows pool the training seeds of one configuration; images
that were given are a row for each set.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from alignbench.leaderboard.table import Cell, Column, Cost, Row, RowKind, Unranked
from alignbench.metrics.intervals import mean_interval, set_interval
from alignbench.record import Result, RunRecord, TrainInfo, dumps
from alignbench.text import LONGEST, cut, one_line

if TYPE_CHECKING:
    from alignbench.registry.protocol import MetricFact, Setting

MACHINE_KEYS = {
    "train.micro_batch", "train.recompute", "train.shard", "model.policy", "model.tokenizer", "data.root",
}  # fmt: skip
"""Configuration keys that say how or from where a run is executed, not what it computes; weights and data
enter a row's identity by their digests."""

Entry = tuple[RunRecord, Result]


def age(record: RunRecord) -> tuple[str, str]:
    """Sort key: later finished is larger."""
    return record.finished or "", dumps(record)  # the text breaks ties the same way on every machine


def identity(record: RunRecord) -> str:
    """Digest of what a method run computes, without its seed: runs that share it are pooled."""
    values = record.config.get("values")
    train = record.train
    content: dict[str, Any] = {
        "config": {
            key: value
            for key, value in record.config.items()
            if key not in {"seed", "recipe", "values", "protocol"}
        },
        "values": {
            key: value for key, value in (values if isinstance(values, dict) else {}).items() if counts(key)
        },
        "method": record.method.model_dump(mode="json", exclude={"title"}) if record.method else None,
        "weights": record.model.weights,
        "data": record.data.model_dump(mode="json", exclude={"skipped"}) if record.data else None,
        "length": [train.steps, train.images_per_step, train.precision] if train else None,
        "optimizer": train.optimizer if train else None,
    }
    if record.plugins:
        content["plugins"] = sorted(plugin.sha256 for plugin in record.plugins)
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def counts(key: str) -> bool:
    """Whether a configuration key belongs to a row: how a run is evaluated is the table's business."""
    return key not in MACHINE_KEYS and not key.startswith("protocol.")


def columns_of(
    entries: Sequence[Entry], facts: Mapping[str, MetricFact], *, detail: bool
) -> tuple[Column, ...]:
    """Columns in the order of the cards; a metric of two evaluator versions gets two of them.

    Without `detail` metrics that are only for a run's own report are left out, unless they rank the table.
    """
    evaluators: dict[str, set[str]] = defaultdict(set)
    for _, result in entries:
        for metric in result.metrics:
            evaluators[metric].add(result.evaluator)
    ranking = {result.protocol.rank_by for _, result in entries}
    columns = []
    for metric, fact in facts.items():
        if fact.detail and not detail and metric not in ranking:
            continue
        versions = sorted(evaluators[metric], key=_version)
        for evaluator in versions:
            title = fact.title if len(versions) == 1 else f"{fact.title} ({cut(one_line(evaluator), 60)})"
            columns.append(Column(metric, evaluator, title, fact))
    return tuple(columns)


def _version(evaluator: str) -> tuple[str, int, str]:
    name, _, version = evaluator.rpartition("@")
    return name, int(version) if version.isdigit() else -1, version


def rank_column_of(columns: Sequence[Column], rank_by: str) -> Column | None:
    """The ranking metric of the newest evaluator version."""
    return next((column for column in reversed(columns) if column.metric == rank_by), None)


def settings_of(entries: Sequence[Entry]) -> list[Setting]:
    """Settings in the order of the record with the most of them; the first is the table's default."""
    orders: dict[str, dict[Hashable, Setting]] = defaultdict(dict)
    for record, result in entries:
        orders[record.id].setdefault(result.setting.identity, result.setting)
    merged: dict[Hashable, Setting] = {}
    for _, order in sorted(orders.items(), key=lambda item: (-len(item[1]), item[0])):
        for sampling, setting in order.items():
            merged.setdefault(sampling, setting)
    return list(merged.values())


def changed_of(entries: Sequence[Entry]) -> dict[str, object]:
    """{key: value} of samples and seeds given instead of those of the protocol's card; rows share them."""
    return {
        key: record.changed[key].value
        for record, result in entries
        if record.config.get("protocol") == result.protocol.name  # not of one it was evaluated under later
        for key in ("protocol.samples", "protocol.seeds")
        if key in record.changed
    }


def _at(entries: Sequence[Entry], subject: str, setting: Setting) -> list[Entry]:
    wanted = subject, setting.identity
    return [(record, x) for record, x in entries if (x.subject, x.setting.identity) == wanted]


# --- cells ----------------------------------------------------------------------------------------


def values_of(result: Result, column: Column) -> tuple[float, ...]:
    """All values of one column, or nothing if the result lacks any of them."""
    if result.evaluator != column.evaluator:
        return ()
    values = [value for value in result.metrics.get(column.metric, []) if value is not None]
    return tuple(values) if len(values) == len(result.seeds) else ()


def cell_of(results: Sequence[Result], column: Column, *, rewarded: bool = False) -> Cell:
    """Return the number of one column from results that all have it, one for each training seed."""
    cell = Cell.of([values_of(x, column) for x in results], rewarded=rewarded)
    if len(results) > 1:
        return cell
    (result,) = results
    if len(cell.values) > 1:
        return replace(cell, seeds=tuple(result.seeds)) if result.subject != "samples" else cell
    bounds = result.intervals.get(column.metric, [None])[0]
    drawn = result.resampled.get(column.metric, [None])[0] if result.subject != "samples" else None
    interval = set_interval(cell.values[0], bounds) if bounds else cell.interval
    return replace(cell, interval=interval, drawn=tuple(drawn or ()))


# --- rows -----------------------------------------------------------------------------------------


def base_rows(
    entries: Sequence[Entry], columns: Sequence[Column], settings: Sequence[Setting], notes: list[str]
) -> list[Row]:
    """One row per setting, from one measurement of the many that runs may have made; base runs first."""
    rows = []
    for position, setting in enumerate(settings):
        measured = sorted(
            _at(entries, "base", setting),
            key=lambda entry: (entry[0].kind != "base", entry[0].finished or "", entry[0].id),
        )
        cells: dict[tuple[str, str], Cell] = {}
        sources: set[str] = set()
        for column in columns:
            having = [(record.id, x) for record, x in measured if values_of(x, column)]
            if not having:
                continue
            source, result = having[0]
            cells[column.key] = cell_of([result], column)
            sources.add(source)
            means = [mean_interval(values_of(x, column)).mean for _, x in having]
            low, high = column.text(min(means)), column.text(max(means))
            if low != high:
                notes.append(
                    f"base at {setting.title} was measured by {len(means)} runs: {column.title} from "
                    f"{low} to {high}; shown is {source}"
                )
        if cells:
            kind: RowKind = "control" if position else "base"
            runs = tuple(sorted(sources))
            rows.append(Row(kind=kind, title="base", setting=setting, cells=cells, runs=runs))
    return rows


def sample_rows(
    entries: Sequence[Entry], columns: Sequence[Column], settings: Sequence[Setting]
) -> list[Row]:
    """One row for each set of images that was given."""
    rows = []
    for setting in settings:
        measured = _at(entries, "samples", setting)
        for record in {record.id: record for record, _ in measured}.values():
            results = [x for other, x in measured if other is record]
            cells = {c.key: cell_of([x], c) for c in columns for x in results if values_of(x, c)}
            known: dict[str, Any] = {"runs": (record.id,), "identity": record.id}
            rows.append(Row(kind="samples", title=record.model.title, setting=setting, cells=cells, **known))
    return rows


def method_rows(
    entries: Sequence[Entry], columns: Sequence[Column], settings: Sequence[Setting], notes: list[str]
) -> tuple[list[Row], list[Unranked]]:
    """One row for each configuration and setting; of runs with one training seed the latest counts."""
    pools: dict[str, dict[int, RunRecord]] = defaultdict(dict)
    left_out = []
    digest = entries[0][1].protocol.digest
    records = {record.id: record for record, x in entries if x.subject == "method"}
    for record in sorted(records.values(), key=age, reverse=True):
        seed = record.train.seed if record.train else 0
        rival = pools[identity(record)].setdefault(seed, record)
        if rival is not record:  # the same seed twice is one observation, not two
            reason = f"same configuration and training seed {seed} as {rival.id}, which finished later"
            left_out.append(Unranked(record.id, reason, (digest,)))
    rows = []
    for name, pool in sorted(pools.items()):
        for setting in settings:
            measured = _at(entries, "method", setting)
            members = [
                (record, results)
                for _, record in sorted(pool.items())
                if (results := [x for other, x in measured if other is record])
            ]
            if members:
                rows.append(_method_row(name, members, columns, setting, notes))
    return rows, left_out


def _method_row(
    name: str,
    members: Sequence[tuple[RunRecord, Sequence[Result]]],
    columns: Sequence[Column],
    setting: Setting,
    notes: list[str],
) -> Row:
    records = [record for record, _ in members]
    title = records[0].method.title if records[0].method else ""
    networks = {name for _, results in members for x in results for name in x.networks_used_as_reward}
    cells: dict[tuple[str, str], Cell] = {}
    for column in columns:
        runs = [x for _, results in members for x in results if values_of(x, column)]
        if len(runs) == len(members):
            cells[column.key] = cell_of(runs, column, rewarded=column.fact.was_reward(networks))
        elif runs:  # never a mean over what happens to exist
            notes.append(
                f"{title} at {setting.title}: {column.title} is blank, only {len(runs)} of "
                f"{len(members)} runs have it"
            )
    return Row(
        kind="method",
        title=title,
        detail=detail_of(records[0]),
        setting=setting,
        cells=cells,
        training=tuple(record.train for record in records if record.train),
        cost=_cost(records),
        runs=tuple(record.id for record in records),
        identity=name,
    )


def detail_of(record: RunRecord) -> str:
    """Recipe and changed keys, as a label: one line, and no value in its whole length."""
    changed = [
        f"{key} = {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in sorted((key, change.value) for key, change in record.changed.items())
        if counts(key) and key.rpartition(".")[2] != "seed"
    ]
    shown = [cut(one_line(text), LONGEST) for text in changed]
    return "; ".join([record.recipe.name if record.recipe else "no recipe", *shown])


def _cost(records: Sequence[RunRecord]) -> Cost | None:
    trains = [record.train for record in records if record.train]
    if not trains:
        return None
    peaks = [x.peak_memory_gib for x in trains if x.peak_memory_gib is not None]
    return Cost(
        seconds=tuple(x.seconds for x in trains),
        sequences=tuple(x.sequences for x in trains),
        devices=tuple(sorted({device_of(x) for x in trains})),
        peak_memory_gib=max(peaks) if len(peaks) == len(trains) else None,
        trainable_parameters=records[0].model.trainable_parameters,
    )


def device_of(train: TrainInfo) -> str:
    """`2 × NVIDIA H200`, or the name alone."""
    device = cut(one_line(train.device), LONGEST)
    return f"{train.world_size} × {device}" if train.world_size > 1 else device
