"""`report.md` of one run: what changed, what it cost, what it was made of, how to make it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from alignbench.leaderboard import tables
from alignbench.ranking import better
from alignbench.record import RunRecord, TrainInfo
from alignbench.render import cells
from alignbench.render.markdown import bullets, grid
from alignbench.tables import Column, Row, Table, number, short
from alignbench.verdict import verdict

if TYPE_CHECKING:
    from alignbench.registry.schema import MetricFact

SAMPLES = "samples.png"


def report_markdown(
    record: RunRecord, facts: Mapping[str, MetricFact], *, samples: str | None = SAMPLES
) -> str:
    """Return the text of `report.md`.

    Args:
        record: the run.
        facts: {metric: how it is shown}, in the order of the columns.
        samples: picture of samples beside the report, or None if there is none.
    """
    lines = [f"# {_title(record)}", "", f"`{record.id}` · {_status(record)}", ""]
    found = tables([record], facts)
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
    protocol = table.protocol
    seeds = ", ".join(map(str, table.seeds))
    header = ["setting", "model", *(f"{column.title} {column.arrow}" for column in table.columns)]
    numeric = [False, False, *[True] * len(table.columns)]
    notes = [
        f"Protocol `{protocol.name}` version {protocol.version}, digest `{short(protocol.digest)}`; "
        f"{table.n:,} images for each sampling seed ({seeds}); reference `{short(table.reference)}`.",
        "± is half of a 95 % Student-t interval over the sampling seeds of this one run; "
        "it holds no difference between training seeds.",
        "Bold: significantly better than the other row of the same setting (Welch, 95 %).",
    ]
    if any(cell.rewarded for row in table.rows for cell in row.cells.values()):
        notes.append("†: a network behind this metric was also a training reward.")
    lines = [f"## {protocol.title}", "", *grid(header, _pairs(table), numeric=numeric), ""]
    lines += [*bullets([*notes, *table.notes]), ""]
    said = bullets(verdict(table)) if any(row.kind == "method" for row in table.rows) else []
    return [*lines, *said, ""] if said else lines


def _pairs(table: Table) -> list[list[str]]:
    """Before and after, setting by setting."""
    before = {row.setting.name: row for row in table.rows if row.kind != "method"}
    after = {row.setting.name: row for row in table.rows if row.kind == "method"}
    lines = []
    for name in dict.fromkeys([*before, *after]):
        base, method = before.get(name), after.get(name)
        for row, other in ((base, method), (method, base)):
            if row is not None:
                texts = [_metric(row, other, column) for column in table.columns]
                lines.append([row.setting.title, row.title, *texts])
    return lines


def _metric(row: Row, other: Row | None, column: Column) -> str:
    text = cells.metric(row, column)
    cell, rival = row.cells.get(column.key), other.cells.get(column.key) if other else None
    tested = cell and rival and min(len(cell.values), len(rival.values)) > 1
    return f"**{text}**" if tested and cell and rival and better(cell, rival, column) else text


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
    rows = [["model", record.model.name]]
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
