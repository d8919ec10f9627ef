"""`report.md` of one run: what changed, what it cost, what it was made of, how to make it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from alignbench.leaderboard import cells
from alignbench.leaderboard.board import build
from alignbench.leaderboard.markdown import bullets, grid, provenance, section, text_of
from alignbench.leaderboard.ranking import better, cell_difference
from alignbench.leaderboard.rows import device_of
from alignbench.leaderboard.summary import sentences
from alignbench.leaderboard.table import Column, Row, Table, number, short
from alignbench.leaderboard.warnings import warnings_of_run
from alignbench.record import RunRecord, TrainInfo
from alignbench.text import fenced, markdown

if TYPE_CHECKING:
    from alignbench.registry.protocol import AssetCard, MetricFact


def report_markdown(
    record: RunRecord,
    facts: Mapping[str, MetricFact],
    assets: Mapping[str, AssetCard] = MappingProxyType({}),
    pictures: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return the text of `report.md`.

    Args:
        record, facts, assets: as for `board.build`.
        pictures: {file beside the report: caption}.
    """
    lines = [f"# {markdown(title(record))}", "", f"`{record.id}` · {_status(record)}", ""]
    evaluated = build([record], facts, assets=assets, sift=False).tables
    for table in evaluated:
        lines += _results(table)
    if not evaluated:
        lines += ["Not evaluated.", ""]
    lines += section("Warnings", bullets(markdown(x.text) for x in warnings_of_run(record, evaluated)))
    if evaluated and record.kind != "samples":
        lines += section("Samples", ["![samples](samples.png)"])
    shown = [
        line
        for name, caption in pictures.items()
        for line in (f"![{name}]({name})", "", markdown(caption), "")
    ]
    lines += section("Pictures", shown[:-1])
    if record.train is not None:
        lines += section("Cost", _cost(record.train, record))
    lines += section("How it was made", _making(record))
    return text_of([*lines, *section("Make it again", fenced(record.command))])


def title(record: RunRecord) -> str:
    return f"{record.method.title} on {record.model.title}" if record.method else record.model.title


def _status(record: RunRecord) -> str:
    if record.status != "complete":
        return f"**{record.status}**: numbers may be missing"
    return "complete" if record.leaderboard else "complete; not for leaderboards"


# --- results --------------------------------------------------------------------------------------


def _results(given: Table) -> list[str]:
    rows = [replace(x, title=markdown(x.title), detail=markdown(x.detail)) for x in given.rows]
    table = replace(given, rows=tuple(rows), notes=tuple(map(markdown, given.notes)))
    main = [column for column in table.columns if not column.fact.detail]
    detail = [column for column in table.columns if column.fact.detail]
    title = f"{table.protocol.title}: {table.label}" if table.label else table.protocol.title
    lines = [f"## {markdown(title)}", ""]
    if main:
        lines += [*_grid(table, main), ""]
    if detail:
        lines += section("Details", _grid(table, detail), level=3)
    trained = any(row.kind == "method" for row in table.rows)
    lines += [*bullets([provenance(table), *_notes(table, trained=trained), *table.notes]), ""]
    said = bullets(sentences(table)) if trained else []
    return [*lines, *said, ""] if said else lines


def _grid(table: Table, columns: Sequence[Column]) -> list[str]:
    """Before and after, setting by setting."""
    before = {row.setting.name: row for row in table.rows if row.kind != "method"}
    after = {row.setting.name: row for row in table.rows if row.kind == "method"}
    lines = []
    for name in dict.fromkeys([*before, *after]):
        base, method = before.get(name), after.get(name)
        for row, other in ((base, method), (method, base)):
            if row is not None:
                texts = [_metric(row, other, column) for column in columns]
                lines.append([markdown(row.setting.title), row.title, *texts])
    metrics = list(map(markdown, cells.heads(columns)))
    return grid(["setting", "model", *metrics], lines, right=metrics)


def _metric(row: Row, other: Row | None, column: Column) -> str:
    cell, rival = row.cells.get(column.key), other.cells.get(column.key) if other else None
    if cell is None or rival is None:
        return cells.metric(row, column, bold=False)
    wins = cell_difference(cell, rival).tested and better(cell, rival, column)
    return cells.metric(row, column, bold=wins)


def _notes(table: Table, *, trained: bool) -> list[str]:
    notes = cells.intervals(
        table, "the sampling seeds of this one run; it holds no difference between training seeds"
    )
    if trained:
        test = cells.criterion(table)
        notes.append(f"Bold: significantly better than the other row of the same setting ({test}).")
    if cells.rewarded(table):
        notes.append("†: a network behind this metric was also a training reward.")
    return notes


# --- cost and making ------------------------------------------------------------------------------


def _cost(train: TrainInfo, record: RunRecord) -> list[str]:
    failed = {name: f" ({count:,} without a score)" for name, count in train.reward_failures.items()}
    called = sorted(train.reward_calls.items())
    calls = ", ".join(f"{name} {count:,}{failed.get(name, '')}" for name, count in called)
    sampling = sum(result.sample_seconds for result in record.results)
    scoring = sum(result.evaluate_seconds for result in record.results)
    peak, model = train.peak_memory_gib, record.model
    rows = [
        ["device", device_of(train)],
        ["training", f"{number(train.seconds, 1)} s, {train.optimizer_steps:,} optimiser steps"],
        ["evaluation", f"{number(sampling, 1)} s of sampling, {number(scoring, 1)} s of scoring"],
        ["images read", f"{train.images:,}"],
        ["sequences drawn", f"{train.sequences:,}"],
        ["tokens drawn one by one", f"{train.tokens:,}"],
        ["images scored by rewards", calls or "none"],
        ["peak memory", "unknown" if peak is None else f"{number(peak, 2)} GiB"],
        ["trained parameters", f"{model.trainable_parameters:,} (policy: {model.parameters:,})"],
    ]
    return grid(["what", "how much"], [[what, markdown(text)] for what, text in rows])


def _making(record: RunRecord) -> list[str]:
    model, data, train, made = record.model, record.data, record.train, record.environment
    rows = [
        ["images", markdown(f"{model.title}, given")] if record.kind == "samples" else ["model", model.name]
    ]
    rows += [[markdown(f"weights: {role}"), f"`{digest}`"] for role, digest in sorted(model.weights.items())]
    if model.random_weights:
        rows.append(["weights", "random"])
    if record.recipe:
        rows.append(["recipe", markdown(f"{record.recipe.name} ({record.recipe.source})")])
    rows += [
        [markdown(f"changed: {key}"), markdown(f"{change.value} ({change.origin})")]
        for key, change in record.changed.items()
    ]
    if data:
        skipped = f", {data.skipped:,} unreadable files left out" if data.skipped else ""
        digest = f", `{short(data.digest)}`" if data.digest else ""
        split = markdown(f"{data.name}, {data.split}")
        rows.append(["data", f"{split}: {data.count:,} images{skipped}{digest}"])
    if train:
        resumed = f", resumed {train.resumed} times" if train.resumed else ""
        rows.append(["training seed", f"{train.seed}{resumed}"])
    used = {name: digest for result in record.results for name, digest in result.assets.items()}
    rows += [[markdown(f"asset: {name}"), f"`{digest}`"] for name, digest in sorted(used.items())]
    rows += [[markdown(f"export: {role}"), f"`{digest}`"] for role, digest in sorted(record.exports.items())]
    dirty = ", with uncommitted changes" if made.git_dirty else ""
    commit = f", commit {made.git_commit[:12]}{dirty}" if made.git_commit else ""
    rows += [
        ["alignbench", markdown(f"{made.alignbench}{commit}")],
        ["torch, Python", markdown(f"{made.torch}, {made.python}")],
        ["machine", markdown(f"{made.platform}; {made.device}; {made.threads} CPU threads")],
        ["time", f"{record.started} to {record.finished or 'unfinished'}"],
    ]
    return grid(["what", "which"], rows)
