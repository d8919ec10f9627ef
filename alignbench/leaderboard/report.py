"""`report.md` of one run: what changed, what it cost, what it was made of, how to make it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from alignbench.leaderboard import cells
from alignbench.leaderboard.board import tables
from alignbench.leaderboard.markdown import bullets, grid, provenance
from alignbench.leaderboard.ranking import better, cell_difference
from alignbench.leaderboard.summary import verdict
from alignbench.leaderboard.table import Column, Row, Table, number, short
from alignbench.record import RunRecord, TrainInfo

if TYPE_CHECKING:
    from alignbench.registry.protocol import AssetCard, MetricFact

SAMPLES = "samples.png"


def report_markdown(
    record: RunRecord,
    facts: Mapping[str, MetricFact],
    *,
    samples: str | None = SAMPLES,
    assets: Mapping[str, AssetCard] = MappingProxyType({}),
) -> str:
    """Return the text of `report.md`.

    Args:
        record: the run.
        facts: {metric: how it is shown}, in the order of the columns.
        samples: picture of samples beside the report, or None if there is none.
        assets: {asset: card}, to tell the official files from a user's own.
    """
    lines = [f"# {_title(record)}", "", f"`{record.id}` · {_status(record)}", ""]
    found = tables([record], facts, assets=assets)
    if not found:
        lines += ["Not evaluated.", ""]
    for table in found:
        lines += _results(table)
    if samples is not None and found:
        lines += ["## Samples", "", f"![samples]({samples})", ""]
    if record.train is not None:
        lines += ["## Cost", "", *_cost(record.train, record), ""]
    lines += ["## How it was made", "", *_making(record), ""]
    lines += ["## Make it again", "", "```", record.command, "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _title(record: RunRecord) -> str:
    return f"{record.method.title} on {record.model.title}" if record.method else record.model.title


def _status(record: RunRecord) -> str:
    if record.status != "complete":
        return f"**{record.status}**: numbers may be missing"
    return "complete" if record.leaderboard else "complete; not for leaderboards"


# --- results --------------------------------------------------------------------------------------


def _results(table: Table) -> list[str]:
    main = [column for column in table.columns if not column.fact.detail]
    detail = [column for column in table.columns if column.fact.detail]
    title = f"{table.protocol.title}: {table.label}" if table.label else table.protocol.title
    lines = [f"## {title}", ""]
    for name, columns in (("", main), ("### Details", detail)):
        if columns:
            lines += [*([name, ""] if name else []), *_grid(table, columns), ""]
    lines += [*bullets([provenance(table), *_notes(table), *table.notes]), ""]
    said = bullets(verdict(table)) if any(row.kind == "method" for row in table.rows) else []
    return [*lines, *said, ""] if said else lines


def _grid(table: Table, columns: Sequence[Column]) -> list[str]:
    header = ["setting", "model", *(f"{column.title} {column.arrow}" for column in columns)]
    return grid(header, _pairs(table, columns), numeric=[False, False, *[True] * len(columns)])


def _notes(table: Table) -> list[str]:
    """How to read the numbers."""
    sets = cells.one_set(table)
    notes = []
    if cells.over_seeds(table) or not sets:
        notes.append(
            "± is half of a 95 % Student-t interval over the sampling seeds of this one run; "
            "it holds no difference between training seeds."
        )
    if sets:
        notes.append(cells.SET_NOTE)
    if any(row.kind == "method" for row in table.rows):
        test = (
            "95 %; Welch over seeds; single sets ‡ by common resamples, else normal"
            if sets
            else "Welch, 95 %"
        )
        notes.append(f"Bold: significantly better than the other row of the same setting ({test}).")
    if any(cell.rewarded for row in table.rows for cell in row.cells.values()):
        notes.append("†: a network behind this metric was also a training reward.")
    return notes


def _pairs(table: Table, columns: Sequence[Column]) -> list[list[str]]:
    """Before and after, setting by setting."""
    before = {row.setting.name: row for row in table.rows if row.kind != "method"}
    after = {row.setting.name: row for row in table.rows if row.kind == "method"}
    lines = []
    for name in dict.fromkeys([*before, *after]):
        base, method = before.get(name), after.get(name)
        for row, other in ((base, method), (method, base)):
            if row is not None:
                texts = [_metric(row, other, column) for column in columns]
                lines.append([row.setting.title, row.title, *texts])
    return lines


def _metric(row: Row, other: Row | None, column: Column) -> str:
    text = cells.metric(row, column)
    cell, rival = row.cells.get(column.key), other.cells.get(column.key) if other else None
    if cell is None or rival is None or not cell_difference(cell, rival).tested:
        return text
    return f"**{text}**" if better(cell, rival, column) else text


# --- cost and making ------------------------------------------------------------------------------


def _cost(train: TrainInfo, record: RunRecord) -> list[str]:
    devices = f"{train.world_size} × {train.device}" if train.world_size > 1 else train.device
    calls = ", ".join(f"{name} {count:,}" for name, count in sorted(train.reward_calls.items()))
    sampling = sum(result.sample_seconds for result in record.results)
    scoring = sum(result.evaluate_seconds for result in record.results)
    peak = train.peak_memory_gib
    rows = [
        ["device", devices],
        ["training", f"{number(train.seconds, 1)} s, {train.optimizer_steps:,} optimiser steps"],
        ["evaluation", f"{number(sampling, 1)} s of sampling, {number(scoring, 1)} s of scoring"],
        ["images read", f"{train.images:,}"],
        ["sequences drawn", f"{train.sequences:,}"],
        ["tokens drawn one by one", f"{train.tokens:,}"],
        ["images scored by rewards", calls or "none"],
        ["peak memory", "unknown" if peak is None else f"{number(peak, 2)} GiB"],
        [
            "trained parameters",
            f"{record.model.trainable_parameters:,} (policy: {record.model.parameters:,})",
        ],
    ]
    return grid(["what", "how much"], rows, numeric=[False, False])


def _making(record: RunRecord) -> list[str]:
    given = record.kind == "samples"
    rows = [["images", f"{record.model.title}, given"] if given else ["model", record.model.name]]
    rows += [[f"weights: {role}", f"`{digest}`"] for role, digest in sorted(record.model.weights.items())]
    if record.model.random_weights:
        rows.append(["weights", "random"])
    if record.recipe:
        rows.append(["recipe", f"{record.recipe.name} ({record.recipe.source})"])
    rows += [
        [f"changed: {key}", f"{change.value} ({change.origin})"] for key, change in record.changed.items()
    ]
    rows += _data_rows(record)
    if record.train:
        resumed = f", resumed {record.train.resumed} times" if record.train.resumed else ""
        rows.append(["training seed", f"{record.train.seed}{resumed}"])
    used = {name: digest for result in record.results for name, digest in result.assets.items()}
    rows += [[f"asset: {name}", f"`{digest}`"] for name, digest in sorted(used.items())]
    rows += [[f"export: {role}", f"`{digest}`"] for role, digest in sorted(record.exports.items())]
    return grid(["what", "which"], [*rows, *_place_rows(record)], numeric=[False, False])


def _data_rows(record: RunRecord) -> Sequence[list[str]]:
    data = record.data
    if data is None:
        return []
    skipped = f", {data.skipped:,} unreadable files left out" if data.skipped else ""
    digest = f", `{short(data.digest)}`" if data.digest else ""
    return [["data", f"{data.name}, {data.split}: {data.count:,} images{skipped}{digest}"]]


def _place_rows(record: RunRecord) -> list[list[str]]:
    place = record.environment
    dirty = ", with uncommitted changes" if place.git_dirty else ""
    commit = f", commit {place.git_commit[:12]}{dirty}" if place.git_commit else ""
    return [
        ["alignbench", f"{place.alignbench}{commit}"],
        ["torch, Python", f"{place.torch}, {place.python}"],
        ["machine", f"{place.platform}; {place.device}; {place.threads} CPU threads"],
        ["time", f"{record.started} to {record.finished or 'unfinished'}"],
    ]
