"""The runs that pictures are made of, and what each of them is called in a legend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from alignbench.leaderboard.board import record_files
from alignbench.leaderboard.cells import labels
from alignbench.leaderboard.rows import detail_of, identity
from alignbench.leaderboard.table import grouped
from alignbench.record import FILE_NAME, RunRecord, Tell, read_all

INTERVALS = (
    "Error bars are 95 % intervals, over training seeds where a row has several, else over sampling seeds."
)


class NotDrawnError(Exception):
    """Why a picture cannot be made of these runs, as a clause."""


@dataclass(frozen=True)
class Run:
    """A record and the folder it lies in."""

    record: RunRecord
    folder: Path | None
    """None of a record alone: nothing is known of its steps and images."""


def find(paths: Iterable[Path], tell: Tell | None = None) -> list[Run]:
    """Read runs from run folders, record files, or folders of either, by id.

    Raises:
        UserError: as `record.read_all`.
    """
    found: dict[str, Run] = {}
    for file, record in read_all(record_files(paths), tell):
        run = Run(record, file.parent if file.name == FILE_NAME else None)
        if run.record.id not in found or run.folder is not None:
            found[run.record.id] = run
    return [found[name] for name in sorted(found)]


def configurations(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Return {label: the runs of one configuration, by training seed}, in order of the labels.

    Raises:
        NotDrawnError: none of them trained anything.
    """
    trained = [run for run in runs if run.record.train is not None and run.record.method is not None]
    if not trained:
        raise NotDrawnError("none of the runs trained a model")
    groups = grouped((identity(run.record), run) for run in trained)
    several = len({run.record.model.name for run in trained}) > 1
    names = labels({key: _described(members[0].record, several) for key, members in groups.items()})
    ordered = sorted(groups, key=lambda key: names[key])
    return {
        names[key]: sorted(groups[key], key=lambda run: run.record.train.seed if run.record.train else 0)
        for key in ordered
    }


def _described(record: RunRecord, model: bool) -> tuple[str, str]:
    title = record.method.title if record.method else "base"
    return (f"{title}, {record.model.title}" if model else title), detail_of(record)


def at_most(most: int, count: int, what: str) -> None:
    if count > most:
        raise NotDrawnError(
            f"{count} {what} are too many for one picture, which shows {most}; name fewer runs"
        )


def plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
