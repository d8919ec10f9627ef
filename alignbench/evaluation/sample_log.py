"""A log of every scored image: one JSON object a line, with all numbers that evaluators and rewards give it.

The numbers come from rows: those that evaluators keep anyway, and those of `ImageNotes`, which is measured
beside them. So all processes share the work, an interrupted log goes on where it stopped, and one shard is in
memory at a time. The first line says what the others mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from alignbench.api import ImageBatch, Rows
from alignbench.errors import RunFailed
from alignbench.evaluation.features import FeatureStore
from alignbench.files import atomic_file, digest_of
from alignbench.record import Result
from alignbench.registry.protocol import EvaluatorCard

FORM = 1
"""Of the file; counts up when a key changes its meaning."""
FOLDER = "sample-log"
NOTES = "sample-log"
"""Where the rows of `ImageNotes` lie among those of evaluators."""
TOLERANCE = 1e-5
"""Relative, between a column's mean and the recorded metric: networks compute in float32."""
NOT_LABELLED = -1


class ImageRewards(Protocol):
    """Training rewards that score images as they are."""

    identity: str

    @property
    def facts(self) -> Mapping[str, Mapping[str, Any]]:
        """{column: what it means}."""

    @property
    def left_out(self) -> Mapping[str, str]:
        """{reward: why it cannot be computed of these images}."""

    def measure(self, batch: ImageBatch) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
        """Return {column: ([n] float64, finite; [n] bool, whether it is a score)}."""


class ImageNotes:
    """What an image was asked to show, and its rewards; an `api.Evaluator` without metrics."""

    def __init__(self, about: Mapping[str, Any], names: Sequence[str], rewards: ImageRewards | None) -> None:
        """Take what the header says of the run, and the name of each class, perhaps none."""
        self.about, self.names, self.rewards = about, names, rewards
        self.identity = digest_of({"form": FORM, "rewards": rewards.identity if rewards else None})

    def measure(self, batch: ImageBatch) -> Rows:
        """Return `label`, -1 without classes; `text` and `tag` as JSON; `reward-i` and `valid-i`."""
        labels = batch.labels
        rows: dict[str, np.ndarray] = {
            "label": np.full(len(batch), NOT_LABELLED) if labels is None else labels.numpy(),
        }
        if batch.prompts:
            # As JSON: fixed-width text drops zeros at its end.
            rows["text"] = np.array([json.dumps(prompt.text) for prompt in batch.prompts])
            rows["tag"] = np.array([json.dumps(prompt.tag) for prompt in batch.prompts])
        measured = self.rewards.measure(batch) if self.rewards else {}
        for number, (values, valid) in enumerate(measured.values()):
            rows |= {f"reward-{number}": values, f"valid-{number}": valid}
        return rows

    def score(self, *_: object) -> Sequence[Any]:
        return ()

    def lines(self, rows: Mapping[str, np.ndarray]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield (what was asked for, rewards) of each image of a shard."""
        columns = list(enumerate(self.rewards.facts if self.rewards else ()))
        for i, label in enumerate(rows["label"].tolist()):
            asked: dict[str, Any] = {}
            if label != NOT_LABELLED:
                asked = {"class": label, "name": self.names[label] if label < len(self.names) else ""}
            if "text" in rows:
                asked |= {"prompt": json.loads(str(rows["text"][i])), "tag": json.loads(str(rows["tag"][i]))}
            yield (
                asked,
                {
                    name: float(rows[f"reward-{number}"][i]) if rows[f"valid-{number}"][i] else None
                    for number, name in columns
                },
            )


def columns_of(cards: Mapping[str, EvaluatorCard]) -> dict[str, tuple[str, str, dict[str, str]]]:
    """{name in the log: (evaluator, column of its rows, what it means)}.

    A column that a metric is the mean of has the metric's name, another one EVALUATOR.COLUMN.
    """
    found: dict[str, tuple[str, str, dict[str, str]]] = {}
    for evaluator, card in cards.items():
        for metric, fact in card.metrics.items():
            if fact.column:
                found[metric] = (evaluator, fact.column, _meaning(fact, metric))
        for column in card.keep:
            meaning = _meaning(card.columns[column]) if column in card.columns else {"title": column}
            found[f"{evaluator}.{column}"] = (evaluator, column, meaning)
    return found


def _meaning(fact: Any, metric: str = "") -> dict[str, str]:
    meaning = {"title": fact.title, "direction": fact.direction, "doc": fact.doc}
    return {key: value for key, value in {**meaning, "mean_of_column": metric}.items() if value}


@dataclass(frozen=True)
class SampleLog:
    """The log of one image set."""

    path: Path
    header: Mapping[str, Any]
    notes: ImageNotes
    columns: Mapping[str, tuple[str, str, dict[str, str]]]

    def is_written(self) -> bool:
        """Whether the file is there and of these very images and numbers."""
        try:
            with self.path.open("rb") as file:
                return file.readline() == _line(self.header)
        except OSError:
            return False

    def write(
        self,
        stores: Mapping[str, FeatureStore],
        shards: Sequence[range],
        metrics: Mapping[str, float | None],
    ) -> None:
        """Write the file, whole or not at all.

        Args:
            stores: rows of the evaluators that keep any, and those of `NOTES`.
            metrics: of this image set, in the record.

        Raises:
            RunFailed: rows are missing, or a column's mean is not the recorded metric.
        """
        if [stores[NOTES].rows(len(shards)).digest] != self.header["pixels"]:
            raise self._other("they were drawn anew and differ")
        totals: dict[str, list[float]] = {}
        with atomic_file(self.path) as file:
            file.write(_line(self.header))
            for number, ids in enumerate(shards):
                rows = {name: store.columns(number) for name, store in stores.items()}
                for line in self._lines(ids, rows, totals):
                    file.write(_line(line))
            for metric, value in metrics.items():
                if metric in totals and value is not None:
                    self._compare(metric, math.fsum(totals[metric]) / len(totals[metric]), value)

    def _lines(
        self, ids: range, rows: Mapping[str, Mapping[str, np.ndarray]], totals: dict[str, list[float]]
    ) -> Iterator[dict[str, Any]]:
        scores: dict[str, list[Any]] = {}
        for name, (evaluator, column, _) in self.columns.items():
            values = rows[evaluator].get(column)
            if values is not None and values.ndim == 1:  # some columns are there for labelled images only
                scores[name] = (values.astype(np.int8) if values.dtype == bool else values).tolist()
                if values.dtype.kind != "U":
                    totals.setdefault(name, []).extend(scores[name])
        address = {key: self.header[key] for key in ("subject", "setting", "seed")}
        for i, (asked, rewards) in enumerate(self.notes.lines(rows[NOTES])):
            line = {"id": ids[i], **address, "setting": self.header["setting"]["name"], **asked}
            line["scores"] = {name: values[i] for name, values in scores.items()}
            yield {**line, "rewards": rewards} if rewards else line

    def _compare(self, metric: str, mean: float, recorded: float) -> None:
        # A metric may be its column in per cent.
        if not any(math.isclose(mean * x, recorded, rel_tol=TOLERANCE, abs_tol=1e-9) for x in (1, 100)):
            raise self._other(f"the mean of {metric} is {mean:g}, recorded was {recorded:g}")

    def _other(self, why: str) -> RunFailed:
        return RunFailed(
            f"{self.path.name}: these are not the images of the record: {why}",
            fix="evaluate anew, into another folder",
        )


def _line(content: Mapping[str, Any]) -> bytes:
    """JSON in ASCII: no text of a prompt file can break a line, and none is changed."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def recorded(results: Sequence[Result], subject: str, setting: str, seed: int) -> dict[str, float | None]:
    """Return the metrics of one image set in a record."""
    return {
        metric: values[result.seeds.index(seed)]
        for result in results
        if (result.subject, result.setting.name) == (subject, setting) and seed in result.seeds
        for metric, values in result.metrics.items()
    }


def read_log(path: Path) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """Return header and lines, which are read as they are asked for; the file is closed with the last one."""

    def lines() -> Iterator[dict[str, Any]]:
        with path.open("rb") as file:
            next(file)
            yield from map(json.loads, file)

    with path.open("rb") as file:
        return json.loads(next(file)), lines()
