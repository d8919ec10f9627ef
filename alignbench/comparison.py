"""Compare two evaluations of one protocol, metric by metric, with the best evidence there is.

From best to worst: the same images or prompts in both (pairs of rows), the same sampling seeds in both (pairs of
values), and no pairs: Welch's test over seeds, or the sampling error of single image sets. Evaluations under
different protocols are refused with the field that differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from alignbench.errors import UserError, suggest
from alignbench.record import FILE_NAME, Result, RunRecord, SettingRef, Subject, read
from alignbench.rows import cell_of, sampling_of, values_of
from alignbench.statistics import Difference, difference, paired_difference
from alignbench.tables import Cell, Column, short

if TYPE_CHECKING:
    from alignbench.registry.schema import MetricFact

Evidence = Literal["paired prompts", "paired images", "paired sampling seeds", "unpaired", "not tested"]
"""What a comparison rests on, best first."""


@dataclass(frozen=True)
class Side:
    """One of the two evaluations."""

    record: RunRecord
    folder: Path | None
    """Its run folder; None where only a record is known."""
    subject: Subject

    @property
    def title(self) -> str:
        """What it is, for people."""
        record = self.record
        if record.kind == "samples":
            return record.model.title
        if self.subject == "base" or record.method is None:
            return f"{record.model.title}, base"
        seed = f", training seed {record.train.seed}" if record.train else ""
        return f"{record.method.title} on {record.model.title}{seed}"

    def results(self) -> list[Result]:
        """Results of the chosen subject."""
        return [result for result in self.record.results if result.subject == self.subject]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One metric at one setting."""

    column: Column
    setting: SettingRef
    a: Cell
    b: Cell
    difference: Difference
    """b minus a."""
    evidence: Evidence
    detail: str
    """Pairs or values behind it, e.g. `553 prompts`."""
    why: str
    """Why the evidence is not better; empty if it is the best or nothing better exists for the metric."""

    @property
    def verdict(self) -> str:
        """`B is better`, `A is better`, `difference not significant` …"""
        found = self.difference
        if not found.tested:
            return "not tested: a single value and no error of its image set"
        if not found.significant:
            return "difference not significant"
        return "B is better" if self.column.gain(found.mean) > 0 else "A is better"


@dataclass(frozen=True)
class Comparison:
    """Everything that two evaluations have in common."""

    a: Side
    b: Side
    metrics: tuple[Compared, ...]
    left_out: tuple[str, ...]
    """What was not compared and why."""


def open_side(text: str) -> Side:
    """Find an evaluation.

    Args:
        text: a run folder or record file, or one of these with `:base`, `:method` or `:samples`.

    Raises:
        UserError: no such run, or no result of that subject in it.
    """
    place, _, name = text.rpartition(":")
    if not place or Path(text).exists():
        place, name = text, ""
    if name and name not in get_args(Subject):
        raise UserError(
            f"{text}: no subject named {name!r}.{suggest(name, get_args(Subject))}",
            fix=f"one of {', '.join(get_args(Subject))}",
        )
    record = read(Path(place))
    path = Path(place)
    folder = path if path.is_dir() else path.parent if path.name == FILE_NAME else None
    found = {result.subject for result in record.results}
    subject = cast(Subject, name or ("base" if record.kind == "method" and found == {"base"} else record.kind))
    if subject not in found:
        have = f"it has {', '.join(sorted(found))}" if found else "it was not evaluated"
        raise UserError(f"{place} has no result of {subject!r}: {have}")
    return Side(record, folder, subject)


def compare(a: Side, b: Side, facts: Mapping[str, MetricFact], *, metrics: Sequence[str] = ()) -> Comparison:
    """Compare two evaluations.

    Args:
        a: one side.
        b: the other; differences are b minus a.
        facts: {metric: how it is shown, and of which column it is the mean}.
        metrics: only these; empty: all.

    Raises:
        UserError: a metric nobody has, or nothing that may be compared; the message names what differs.
    """
    known = {metric for side in (a, b) for result in side.results() for metric in result.metrics}
    for metric in metrics:
        if metric not in known:
            raise UserError(
                f"neither run has a metric named {metric!r}.{suggest(metric, known)}",
                fix=f"one of {', '.join(sorted(known))}",
            )
    left_out: list[str] = []
    found: list[Compared] = []
    for x in a.results():
        for y in b.results():
            if _evaluator(x) != _evaluator(y) or not _same_place(x, y):
                continue
            reason = _obstacle(a, b, x, y)
            if reason:
                left_out.append(reason)
                continue
            for metric in x.metrics:
                if metric in y.metrics and (not metrics or metric in metrics):
                    item = _metric(a, b, x, y, metric, facts)
                    found.append(item) if isinstance(item, Compared) else left_out.append(item)
    if not found:
        reasons = list(dict.fromkeys(left_out)) or [_nothing_shared(a, b)]
        raise UserError(f"{a.record.id} and {b.record.id} cannot be compared: {'; '.join(reasons)}")
    order = list(facts)
    found.sort(key=lambda item: order.index(item.column.metric))
    return Comparison(a, b, tuple(found), tuple(dict.fromkeys(left_out)))


# --- what may be compared -------------------------------------------------------------------------


def _evaluator(result: Result) -> str:
    return result.evaluator.partition("@")[0]


def _same_place(x: Result, y: Result) -> bool:
    """Whether two results are of one setting; given images have none and meet all."""
    given = "samples" in {x.subject, y.subject}
    return given or sampling_of(x.setting) == sampling_of(y.setting)


def _obstacle(a: Side, b: Side, x: Result, y: Result) -> str:
    """Why two results must not be compared; empty if they may be."""
    if x.protocol.digest != y.protocol.digest:
        return f"different protocols: {_why_protocols_differ(a, b, x, y)}"
    if x.reference != y.reference:
        return f"different references: {_digests(x.reference, y.reference)}"
    if x.evaluator != y.evaluator:
        return f"different evaluators: {x.evaluator} against {y.evaluator}"
    if x.assets != y.assets:
        return f"different assets: {', '.join(_differing_assets(x, y))}"
    if x.n != y.n:
        return f"different numbers of images: {x.n:,} against {y.n:,}"
    if x.seeds != y.seeds and "samples" not in {x.subject, y.subject}:
        return f"different sampling seeds: {_listed(x.seeds)} against {_listed(y.seeds)}"
    return ""


def _why_protocols_differ(a: Side, b: Side, x: Result, y: Result) -> str:
    p, q = x.protocol, y.protocol
    if p.name != q.name:
        return f"{p.name} against {q.name}"
    if p.version != q.version:
        return f"{p.name} version {p.version} against version {q.version}"
    fields = _differing_assets(x, y)
    if x.reference != y.reference:
        fields.append(f"reference {_digests(x.reference, y.reference)}")
    if x.n != y.n:
        fields.append(f"{x.n:,} against {y.n:,} images")
    fields += _differing_values(a.record, b.record)
    digests = _digests(p.digest, q.digest)
    return f"{p.name}, {', '.join(fields) or 'its card was changed'} (digest {digests})"


def _differing_assets(x: Result, y: Result) -> list[str]:
    return [
        f"asset {name} {_digests(x.assets.get(name), y.assets.get(name))}"
        for name in sorted({*x.assets, *y.assets})
        if x.assets.get(name) != y.assets.get(name)
    ]


def _differing_values(a: RunRecord, b: RunRecord) -> list[str]:
    """Configuration keys of the protocol that differ."""
    x, y = ({} if not isinstance(v := r.config.get("values"), dict) else v for r in (a, b))
    return [
        f"{key} {x.get(key)} against {y.get(key)}"
        for key in sorted({*x, *y})
        if key.startswith("protocol.") and x.get(key) != y.get(key)
    ]


def _nothing_shared(a: Side, b: Side) -> str:
    x, y = a.results()[0], b.results()[0]
    if x.protocol.digest != y.protocol.digest:
        return f"different protocols: {_why_protocols_differ(a, b, x, y)}"
    settings = [_listed(dict.fromkeys(r.setting.title for r in side.results())) for side in (a, b)]
    return f"no setting and metric in common ({settings[0]} against {settings[1]})"


def _digests(x: str | None, y: str | None) -> str:
    return f"{short(x) if x else 'none'} against {short(y) if y else 'none'}"


def _listed(items: object) -> str:
    return ", ".join(map(str, cast("Sequence[object]", items)))


# --- one metric -----------------------------------------------------------------------------------


def _metric(
    a: Side, b: Side, x: Result, y: Result, metric: str, facts: Mapping[str, MetricFact]
) -> Compared | str:
    """Compare one metric, or say why it is left out."""
    fact = facts.get(metric)
    if fact is None:
        return f"no evaluator card describes {metric}"
    column = Column(metric, x.evaluator, fact.title, fact)
    setting = y.setting if x.subject == "samples" else x.setting
    if not values_of(x, column) or not values_of(y, column):
        return f"{fact.title} at {setting.title} is blank on a side"
    cells = cell_of([x], column), cell_of([y], column)
    plain = _by_values(x, y, *cells)
    item = Compared(column=column, setting=setting, a=cells[0], b=cells[1], why="", **plain)
    return _with_rows(item, a, b, x, y) if fact.column else item
