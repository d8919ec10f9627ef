"""The rows of one table, before ranking: which results belong together and what their numbers are.

Base rows are measured once per setting; method rows pool the training seeds of one configuration; images
that were given are a row for each set.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alignbench.leaderboard.table import Cell, Column, Cost, Row, RowKind, Unranked
from alignbench.metrics.intervals import mean_interval, set_interval, units
from alignbench.record import Result, RunRecord, dumps

if TYPE_CHECKING:
    from alignbench.registry.protocol import MetricFact, Setting

MACHINE_KEYS = {"train.micro_batch", "train.recompute", "model.policy", "model.tokenizer", "data.root"}
"""Configuration keys that say how or from where a run is executed, not what it computes; weights and data
enter a row's identity by their digests."""

Entry = tuple[RunRecord, Result]


def age(record: RunRecord) -> tuple[str, str]:
    """Sort key: later finished is larger."""
    return record.finished or "", dumps(record)  # the text breaks ties the same way on every machine


def identity(record: RunRecord) -> str:
    """Digest of what a method run computes, without its seed: runs that share it are pooled."""
    values = record.config.get("values")
    flat = values if isinstance(values, dict) else {}
    rest = {key: value for key, value in record.config.items() if key not in {"seed", "recipe", "values"}}
    rest.pop("protocol", None)  # how a run is evaluated is the table's business
    content: dict[str, Any] = {
        "config": rest,
        "values": {
            key: value
            for key, value in flat.items()
            if key not in MACHINE_KEYS and not key.startswith("protocol.")
        },
        "method": record.method.model_dump(mode="json", exclude={"title"}) if record.method else None,
        "weights": record.model.weights,
        "data": record.data.model_dump(mode="json", exclude={"skipped"}) if record.data else None,
        "length": [record.train.steps, record.train.images_per_step, record.train.precision]
        if record.train
        else None,
        "optimizer": record.train.optimizer if record.train else None,
    }
    if record.plugins:
        content["plugins"] = sorted(plugin.sha256 for plugin in record.plugins)
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def columns_of(
    entries: Sequence[Entry], facts: Mapping[str, MetricFact], *, detail: bool = True
) -> tuple[Column, ...]:
    """Columns in the order of the cards; a metric of two evaluator versions gets two of them.

    Args:
        entries: results of one table.
        facts: {metric: how it is shown}.
        detail: also the metrics that are only for a run's own report; the ranking metric is always there.
    """
    seen = {(metric, result.evaluator) for _, result in entries for metric in result.metrics}
    ranking = {result.protocol.rank_by for _, result in entries}
    columns = []
    for metric, fact in facts.items():
        if fact.detail and not detail and metric not in ranking:
            continue
        versions = sorted((evaluator for name, evaluator in seen if name == metric), key=_version)
        for evaluator in versions:
            title = fact.title if len(versions) == 1 else f"{fact.title} ({evaluator})"
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


def base_rows(
    entries: Sequence[Entry], columns: Sequence[Column], settings: Sequence[Setting], notes: list[str]
) -> list[Row]:
    """One row per setting, from one measurement of the many that runs may have made; base runs first."""
    rows = []
    for position, setting in enumerate(settings):
        found = [
            (record, x)
            for record, x in entries
            if x.subject == "base" and x.setting.identity == setting.identity
        ]
        found.sort(key=lambda entry: (entry[0].kind != "base", entry[0].finished or "", entry[0].id))
        cells: dict[tuple[str, str], Cell] = {}
        sources: set[str] = set()
        for column in columns:
            measured = [(record.id, x) for record, x in found if values_of(x, column)]
            if not measured:
                continue
            source, result = measured[0]
            cells[column.key] = cell_of([result], column)
            sources.add(source)
            means = [mean_interval(values_of(other, column)).mean for _, other in measured]
            if column.text(min(means)) != column.text(max(means)):
                notes.append(
                    f"base at {setting.title} was measured by {len(means)} runs: {column.title} from "
                    f"{column.text(min(means))} to {column.text(max(means))}; shown is {source}"
                )
        if cells:
            kind: RowKind = "base" if position == 0 else "control"
            runs = tuple(sorted(sources))
            rows.append(Row(kind=kind, title="base", detail="", setting=setting, cells=cells, runs=runs))
    return rows


def values_of(result: Result, column: Column) -> tuple[float, ...]:
    """All values of one column, or nothing if the result lacks any of them."""
    if result.evaluator != column.evaluator:
        return ()
    values = [value for value in result.metrics.get(column.metric, []) if value is not None]
    return tuple(values) if len(values) == len(result.seeds) else ()


def cell_of(results: Sequence[Result], column: Column, *, rewarded: bool = False) -> Cell:
    """Return the number of one column from results that all have it, one for each training seed."""
    pooled, kind = units([values_of(x, column) for x in results])
    if len(pooled) > 1:
        return Cell(mean_interval(pooled, kind=kind), tuple(pooled), rewarded=rewarded)
    (result,) = results
    bounds = result.intervals.get(column.metric, [None])[0]
    interval = set_interval(pooled[0], bounds) if bounds else mean_interval(pooled, kind=kind)
    drawn = result.resampled.get(column.metric, [None])[0] if result.subject != "samples" else None
    return Cell(interval, tuple(pooled), rewarded=rewarded, drawn=tuple(drawn or ()))


def sample_rows(
    entries: Sequence[Entry], columns: Sequence[Column], settings: Sequence[Setting]
) -> list[Row]:
    """One row for each set of images that was given."""
    results: dict[tuple[str, int], list[Result]] = defaultdict(list)
    titles = {record.id: record.model.title for record, _ in entries}
    places = [setting.identity for setting in settings]
    for record, x in entries:
        if x.subject == "samples":
            results[record.id, places.index(x.setting.identity)].append(x)
    rows = []
    for (name, place), found in sorted(results.items()):
        cells = {
            column.key: cell_of([x], column) for column in columns for x in found if values_of(x, column)
        }
        rows.append(
            Row(
                kind="samples",
                title=titles[name],
                detail="",
                setting=settings[place],
                cells=cells,
                runs=(name,),
                identity=name,
            )
        )
    return rows


def method_rows(
    entries: Sequence[Entry], columns: Sequence[Column], settings: Sequence[Setting], notes: list[str]
) -> tuple[list[Row], list[Unranked]]:
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
            results: dict[str, list[Result]] = defaultdict(list)
            for record, x in entries:
                chosen = record.train is not None and pool.get(record.train.seed) is record
                if chosen and x.subject == "method" and x.setting.identity == setting.identity:
                    results[record.id].append(x)
            members = [pool[seed] for seed in sorted(pool) if pool[seed].id in results]
            if members:
                rows.append(_method_row(name, members, results, columns, setting, notes))
    return rows, left_out


def _method_row(
    name: str,
    members: Sequence[RunRecord],
    results: Mapping[str, Sequence[Result]],
    columns: Sequence[Column],
    setting: Setting,
    notes: list[str],
) -> Row:
    title = members[0].method.title if members[0].method else ""
    cells: dict[tuple[str, str], Cell] = {}
    for column in columns:
        runs = [x for record in members for x in results[record.id] if values_of(x, column)]
        if len(runs) < len(members):  # never a mean over what happens to exist
            if runs:
                notes.append(
                    f"{title} at {setting.title}: {column.title} is blank, only {len(runs)} of "
                    f"{len(members)} runs have it"
                )
            continue
        networks = {n for record in members for x in results[record.id] for n in x.networks_used_as_reward}
        rewarded = not networks.isdisjoint(column.fact.networks)
        cells[column.key] = cell_of(runs, column, rewarded=rewarded)
    return Row(
        kind="method",
        title=title,
        detail=_detail(members[0]),
        setting=setting,
        cells=cells,
        training_seeds=tuple(record.train.seed for record in members if record.train),
        cost=_cost(members),
        runs=tuple(record.id for record in members),
        identity=name,
    )


def _detail(record: RunRecord) -> str:
    """Recipe and changed keys, as a label."""
    changed = [
        f"{key} = {_text(change.value)}"
        for key, change in sorted(record.changed.items())
        if key not in MACHINE_KEYS and not key.startswith("protocol.") and key.rpartition(".")[2] != "seed"
    ]
    recipe = record.recipe.name if record.recipe else "no recipe"
    return "; ".join([recipe, *changed])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cost(members: Sequence[RunRecord]) -> Cost | None:
    trains = [record.train for record in members if record.train]
    if not trains:
        return None
    devices = {f"{x.world_size} × {x.device}" if x.world_size > 1 else x.device for x in trains}
    peaks = [x.peak_memory_gib for x in trains]
    known = [peak for peak in peaks if peak is not None]
    return Cost(
        seconds=tuple(x.seconds for x in trains),
        sequences=tuple(x.sequences for x in trains),
        devices=tuple(sorted(devices)),
        peak_memory_gib=max(known) if len(known) == len(peaks) else None,
        trainable_parameters=members[0].model.trainable_parameters,
    )
