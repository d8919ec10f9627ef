"""From run records to tables: gather, sift, group by protocol, pool seeds, rank.

Rows are compared only within one table: one protocol digest, reference, assets, sample size, seeds and
starting weights. Given images have tables of their own. A missing number stays blank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from alignbench.errors import RunFailed, UserError
from alignbench.files import write_atomic
from alignbench.leaderboard import audit, cells, markdown
from alignbench.leaderboard.cells import distinct
from alignbench.leaderboard.ranking import in_order, labelled, mark_best, own_assets, rank
from alignbench.leaderboard.rows import (
    Entry,
    age,
    base_rows,
    changed_of,
    columns_of,
    method_rows,
    rank_column_of,
    sample_rows,
    settings_of,
)
from alignbench.leaderboard.table import Board, Table, Unranked, grouped
from alignbench.record import FILE_NAME, Result, RunRecord, Tell, dumps, read, read_all

if TYPE_CHECKING:
    from alignbench.registry.protocol import AssetCard, MetricFact
    from alignbench.registry.schema import RewardCard
    from alignbench.registry.tables import PublishedCard


# --- gather and sift ------------------------------------------------------------------------------


def collect(paths: Iterable[Path], tell: Tell | None = None) -> list[RunRecord]:
    """Read records, as `record_files` finds them; one per id, by id; of two with one id the later finished.

    Raises:
        UserError: as `read_all`.
    """
    return latest(record for _, record in read_all(record_files(paths), tell))


def record_files(paths: Iterable[Path]) -> list[Path]:
    """Return the record files of run folders, of record files and of folders that hold either.

    Sub-folders without a `run.json` (unfinished runs) are passed over; a folder without any record stands
    for itself, and `read` says what it lacks.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir() or (path / FILE_NAME).exists():
            files.append(path / FILE_NAME if path.is_dir() else path)
        else:
            files += sorted(path.glob(f"*/{FILE_NAME}")) or sorted(path.glob("*.json")) or [path]
    return list(dict.fromkeys(files))


def latest(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Keep one record per id, the later finished one, in the order of ids."""
    kept: dict[str, RunRecord] = {}
    for record in records:
        rival = kept.get(record.id)
        if rival is None or age(record) > age(rival):
            kept[record.id] = record
    return [kept[name] for name in sorted(kept)]


def build(
    records: Iterable[RunRecord],
    facts: Mapping[str, MetricFact],
    *,
    assets: Mapping[str, AssetCard] = MappingProxyType({}),
    rewards: Mapping[str, RewardCard] = MappingProxyType({}),
    sift: bool = True,
) -> Board:
    """Make the tables.

    Args:
        records: in any order.
        facts: {metric: how it is shown and ranked}, in the order of the columns.
        assets: {asset: card}, to tell the official files from a user's own.
        rewards: {reward: card}, to tell rewards from outside the image from those of the image itself.
        sift: leave out incomplete runs, those that may not be ranked, and metrics that are mere detail; False
            for one run's own report.
    """
    ordered = latest(records)
    external = {x.id: cells.external(x.train.reward_calls, rewards) for x in ordered if x.train}
    unranked: set[Unranked] = set()
    entries: list[tuple[tuple[Any, ...], Entry]] = []
    for record in ordered:
        if sift and (reason := _unrankable(record)):
            digests = sorted({result.protocol.digest for result in record.results})
            unranked.add(Unranked(record.id, reason, tuple(digests)))
            continue
        for result in record.results:
            if unknown := sorted(set(result.metrics) - set(facts)):
                reason = f"no evaluator card describes {', '.join(unknown)} (other metrics are shown)"
                unranked.add(Unranked(record.id, reason, (result.protocol.digest,)))
            entries.append((_table_key(record, result), (record, result)))
    made = []
    for _, members in sorted(grouped(entries).items()):
        table, left_out = _table(members, facts, assets, detail=not sift)
        rows = [replace(x, external="✗" if x.is_base else external.get(x.runs[0], "")) for x in table.rows]
        made.append(replace(table, rows=tuple(rows)))
        unranked.update(left_out)
    left = sorted(unranked, key=lambda item: (item.id, item.reason, item.protocols))
    return Board(tuple(labelled(made, assets)), tuple(left), tuple(ordered))


def _unrankable(record: RunRecord) -> str:
    if record.status != "complete":
        return f"the run is {record.status}"
    if record.model.random_weights:
        return "random weights"
    if not record.leaderboard:
        data = record.data
        return f"its data ({data.name}) is not for leaderboards" if data else "marked so by its run"
    return "" if record.results else "not evaluated"


def _table_key(record: RunRecord, result: Result) -> tuple[Any, ...]:
    """What the rows of one table have in common; given images have no model and no weights."""
    protocol = result.protocol
    return (
        protocol.name,
        protocol.version,
        protocol.digest,
        result.reference or "",
        result.n,
        tuple(result.seeds),
        "" if record.kind == "samples" else record.model.name,
        tuple(sorted(record.model.weights.items())),
        tuple(sorted(_assets(record, protocol.digest).items())),
    )


def _assets(record: RunRecord, protocol: str) -> dict[str, str]:
    """Return the assets behind all numbers of one protocol: evaluators of one row may use different ones."""
    results = (result for result in record.results if result.protocol.digest == protocol)
    return {name: digest for result in results for name, digest in result.assets.items()}


def _table(
    entries: Sequence[Entry], facts: Mapping[str, MetricFact], cards: Mapping[str, AssetCard], *, detail: bool
) -> tuple[Table, list[Unranked]]:
    first, result = entries[0]
    given = first.kind == "samples"
    used = dict(sorted(_assets(first, result.protocol.digest).items()))
    columns = columns_of(entries, facts, detail=detail)
    rank_column = rank_column_of(columns, result.protocol.rank_by)
    settings = settings_of(entries)
    notes: list[str] = []
    base = base_rows(entries, columns, settings, notes)
    methods, left_out = method_rows(entries, columns, settings, notes)
    samples = sample_rows(entries, columns, settings)
    ranked = rank(mark_best([*base, *methods, *samples], columns), rank_column)
    table = Table(
        protocol=result.protocol,
        reference=result.reference,
        assets=used,
        own_assets=own_assets(used, cards),
        n=result.n,
        seeds=tuple(result.seeds),
        model="given images" if given else first.model.title,
        model_name="" if given else first.model.name,
        weights=dict(sorted(first.model.weights.items())),
        settings=tuple(settings),
        columns=columns,
        rank_column=rank_column,
        rows=tuple(distinct(in_order(ranked, settings, rank_column))),
        notes=tuple(notes),
        changed=changed_of(entries),
    )
    return table, left_out


# --- files ----------------------------------------------------------------------------------------


def render(
    records: Iterable[RunRecord],
    facts: Mapping[str, MetricFact],
    published: Mapping[str, PublishedCard],
    assets: Mapping[str, AssetCard] = MappingProxyType({}),
    rewards: Mapping[str, RewardCard] = MappingProxyType({}),
) -> dict[str, str]:
    """Return {relative path: text} of a leaderboard folder; the same records give the same bytes."""
    return _files(build(records, facts, assets=assets, rewards=rewards), published, rewards)


def _files(
    board: Board, published: Mapping[str, PublishedCard], rewards: Mapping[str, RewardCard]
) -> dict[str, str]:
    files = {f"records/{record.id}.json": dumps(record) for record in board.records}
    files |= markdown.pages(board)
    files["README.md"] = markdown.index(board, published=bool(published))
    if published:
        files["published.md"] = markdown.published_page(published, rewards)
        files["audit.md"] = audit.page(audit.audit(board, published))
    return files


def write(
    records: Iterable[RunRecord],
    out_dir: Path,
    facts: Mapping[str, MetricFact],
    published: Mapping[str, PublishedCard],
    assets: Mapping[str, AssetCard] = MappingProxyType({}),
    rewards: Mapping[str, RewardCard] = MappingProxyType({}),
) -> list[Path]:
    """Add records to a leaderboard folder and make its pages again.

    Records already in `out_dir/records` stay unless a later one has their id; pages that no record
    supports any more are removed.

    Returns:
        The files whose content changed or that are new.

    Raises:
        UserError: a broken record in the folder.
        RunFailed: the folder cannot be written.
    """
    files = render(latest([*stored(out_dir), *records]), facts, published, assets, rewards)
    wrong = sorted(_differences(files, out_dir))
    try:
        for name in wrong:
            if name in files:
                write_atomic(out_dir / name, files[name])
            else:
                (out_dir / name).unlink()
    except OSError as error:
        raise RunFailed(f"{out_dir} cannot be written: {error.strerror or error}") from error
    return [out_dir / name for name in wrong if name in files]


def check(
    out_dir: Path,
    facts: Mapping[str, MetricFact],
    published: Mapping[str, PublishedCard],
    assets: Mapping[str, AssetCard] = MappingProxyType({}),
    rewards: Mapping[str, RewardCard] = MappingProxyType({}),
) -> list[str]:
    """Make a leaderboard folder again from its records and compare.

    Returns:
        `file: what is wrong` of every file that is missing, differs or should not be there. Of pictures it is
        only asked whether they exist: their bytes depend on the version of matplotlib.

    Raises:
        UserError: no such folder, or a broken record in it.
    """
    if not out_dir.is_dir():
        raise UserError(f"{out_dir} is not a leaderboard folder", fix="alignbench leaderboard RUNS…")
    board = build(stored(out_dir), facts, assets=assets, rewards=rewards)
    wrong = _differences(_files(board, published, rewards), out_dir)
    wrong |= {name: "missing" for name in markdown.pictures(board) if not (out_dir / name).is_file()}
    return [f"{name}: {wrong[name]}" for name in sorted(wrong)]


def stored(out_dir: Path) -> list[RunRecord]:
    """Read the records of a leaderboard folder."""
    return [read(path) for path in sorted((out_dir / "records").glob("*.json"))]


def _differences(files: Mapping[str, str], out_dir: Path) -> dict[str, str]:
    """Return {relative path: what is wrong} of a folder against what it should hold."""
    wrong = {}
    for name, text in files.items():
        path = out_dir / name
        if not path.is_file():
            wrong[name] = "missing"
        elif path.read_bytes() != text.encode():
            wrong[name] = "differs from what its records give"
    for path in sorted(out_dir.glob("*.md")):
        if path.name not in files and path.read_bytes().startswith(markdown.MARKER.encode()):
            wrong[path.name] = "no record supports it"
    for path in sorted((out_dir / "records").glob("*.json")):
        if f"records/{path.name}" not in files:
            wrong[f"records/{path.name}"] = "not named after its record's id"
    return wrong
