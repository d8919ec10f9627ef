"""Compare two evaluations of one protocol, metric by metric, with the best evidence there is.

From best to worst: the same images or prompts in both (pairs of features), the same sampling seeds in both
(pairs of values, or of resamples where there is one seed), and no pairs: Welch's test over seeds, or the
sampling error of single image sets. Evaluations under different protocols are refused with the field that
differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from alignbench.errors import UserError, suggest
from alignbench.leaderboard.comparability import evaluator_name, obstacle, why_nothing
from alignbench.leaderboard.ranking import cell_difference
from alignbench.leaderboard.rows import cell_of, values_of
from alignbench.leaderboard.table import Cell, Column
from alignbench.metrics.intervals import Difference, paired_difference
from alignbench.record import FILE_NAME, ProtocolRef, Result, RunRecord, Subject, read

if TYPE_CHECKING:
    from alignbench.registry.protocol import MetricFact, Setting

EvidenceKind = Literal[
    "paired prompts", "paired images", "paired sampling seeds", "paired resamples", "unpaired", "not tested"
]
"""Best first."""


@dataclass(frozen=True)
class Evaluated:
    """One of the two evaluations."""

    record: RunRecord
    folder: Path | None
    """Its run folder; None where only a record is known."""
    subject: Subject

    @property
    def title(self) -> str:
        record = self.record
        if record.kind == "samples":
            return record.model.title
        if self.subject == "base" or record.method is None:
            return f"{record.model.title}, base"
        seed = f", training seed {record.train.seed}" if record.train else ""
        return f"{record.method.title} on {record.model.title}{seed}"

    def results(self) -> list[Result]:
        return [result for result in self.record.results if result.subject == self.subject]


@dataclass(frozen=True)
class Evidence:
    """What a comparison of one metric rests on."""

    difference: Difference
    """b minus a."""
    evidence: EvidenceKind
    detail: str
    """Pairs or values behind it, e.g. `553 prompts`."""


@dataclass(frozen=True, kw_only=True)
class MetricDifference(Evidence):
    """One metric at one setting."""

    protocol: ProtocolRef
    column: Column
    setting: Setting
    a: Cell
    b: Cell
    why: str
    """Why the evidence is not better; empty if it is the best or nothing better exists for the metric."""

    @property
    def outcome(self) -> str:
        """`B is better`, `A is better`, `difference not significant` …"""
        change = self.difference
        if not change.tested:
            return "not tested: a single value and no error of its image set"
        if not change.significant:
            return "difference not significant"
        return "B is better" if self.column.gain(change.mean) > 0 else "A is better"


@dataclass(frozen=True)
class Comparison:
    """Everything that two evaluations have in common."""

    a: Evaluated
    b: Evaluated
    metrics: tuple[MetricDifference, ...]
    left_out: tuple[str, ...]
    """What was not compared and why."""


def read_evaluated(text: str) -> Evaluated:
    """Find an evaluation: a run folder or record file, perhaps with `:base`, `:method` or `:samples`.

    Raises:
        UserError: no such run, or no result of that subject in it.
    """
    head, _, name = text.rpartition(":")
    if not head or Path(text).exists():
        head, name = text, ""
    if name and name not in get_args(Subject):
        raise UserError(
            f"{text}: no subject named {name!r}.{suggest(name, get_args(Subject))}",
            fix=f"one of {', '.join(get_args(Subject))}",
        )
    path = Path(head)
    record = read(path)
    if record.status != "complete":
        raise UserError(f"{head}: the run is {record.status}", fix="finish it: repeat its command")
    subject = cast(Subject, name or record.kind)
    subjects = sorted({result.subject for result in record.results})
    if subject not in subjects:
        have = f"it has {', '.join(subjects)}" if subjects else "it was not evaluated"
        raise UserError(f"{head} has no result of {subject!r}: {have}")
    folder = path if path.is_dir() else path.parent if path.name == FILE_NAME else None
    return Evaluated(record, folder, subject)


def compare(
    a: Evaluated, b: Evaluated, facts: Mapping[str, MetricFact], *, metrics: Sequence[str] = ()
) -> Comparison:
    """Compare two evaluations in these metrics, or in all; differences are b minus a.

    Raises:
        UserError: a metric nobody has, or nothing that may be compared; the message names what differs.
    """
    names = {metric for side in (a, b) for result in side.results() for metric in result.metrics}
    for metric in metrics:
        if metric not in names:
            raise UserError(
                f"neither run has a metric named {metric!r}.{suggest(metric, names)}",
                fix=f"one of {', '.join(sorted(names))}",
            )
    left_out: list[str] = []
    compared: list[MetricDifference] = []
    for x, y in _partners(a, b):
        reason = obstacle(a.record, x, b.record, y)
        if reason:
            left_out.append(reason)
            continue
        for metric in x.metrics:
            if metric in y.metrics and (not metrics or metric in metrics):
                item = _metric(a, b, x, y, metric, facts)
                compared.append(item) if isinstance(item, MetricDifference) else left_out.append(item)
    reasons = tuple(dict.fromkeys(left_out))
    if not compared:
        listed = reasons or [why_nothing(a.record, a.results(), b.record, b.results())]
        raise UserError(f"{a.record.id} and {b.record.id} cannot be compared: {'; '.join(listed)}")
    order = list(facts)
    compared.sort(key=lambda item: order.index(item.column.metric))
    return Comparison(a, b, tuple(compared), reasons)


def _partners(a: Evaluated, b: Evaluated) -> list[tuple[Result, Result]]:
    """Results of one evaluator at one setting; given images have no setting and meet all."""
    return [
        (x, y)
        for x in a.results()
        for y in b.results()
        if evaluator_name(x) == evaluator_name(y)
        and (not _made_here(x, y) or x.setting.identity == y.setting.identity)
    ]


def _made_here(x: Result, y: Result) -> bool:
    """Whether sampling seeds and image numbers mean the same on both sides."""
    return "samples" not in {x.subject, y.subject}


# --- one metric -----------------------------------------------------------------------------------


def _metric(
    a: Evaluated, b: Evaluated, x: Result, y: Result, metric: str, facts: Mapping[str, MetricFact]
) -> MetricDifference | str:
    """Compare one metric, or say why it is left out."""
    fact = facts.get(metric)
    if fact is None:
        return f"no evaluator card describes {metric}"
    column = Column(metric, x.evaluator, fact.title, fact)
    setting = y.setting if x.subject == "samples" else x.setting
    if not values_of(x, column) or not values_of(y, column):
        return f"{fact.title} at {setting.title} is blank on a side"
    cells = cell_of([x], column), cell_of([y], column)
    evidence, why = _by_image(a, b, x, y, column) if fact.column else (None, "")
    evidence = evidence or _by_values(*cells)
    known: dict[str, Any] = {**vars(evidence), "protocol": x.protocol, "setting": setting, "why": why}
    return MetricDifference(**known, column=column, a=cells[0], b=cells[1])


def _by_image(
    a: Evaluated, b: Evaluated, x: Result, y: Result, column: Column
) -> tuple[Evidence | None, str]:
    """Compare image by image, or say why that cannot be done."""
    if a.folder is None or b.folder is None:
        return None, "only a record is here, not its run folder"
    from alignbench.evaluation import pairs  # reads arrays; everything else here is light

    try:
        paired = pairs.read_pairs(
            (a.folder, b.folder),
            (x, y),
            column.fact.column,
            (values_of(x, column), values_of(y, column)),
            same_draws=_made_here(x, y) and x.seeds == y.seeds,
        )
    except pairs.NoPairsError as reason:
        return None, str(reason)
    change, number = paired_difference(paired.b, paired.a), f"{len(paired.a):,}"
    if paired.by_prompt:
        return Evidence(change, "paired prompts", f"{number} prompts"), ""
    return Evidence(change, "paired images", f"{number} images"), ""


def _by_values(a: Cell, b: Cell) -> Evidence:
    """Compare the recorded values, as tables do."""
    change = cell_difference(b, a)
    if a.shares_seeds(b):
        return Evidence(change, "paired sampling seeds", f"{len(a.values)} sampling seeds")
    if a.shares_resamples(b):
        return Evidence(change, "paired resamples", f"{len(a.drawn)} resamples of 1 image set")
    counts = [len(cell.values) for cell in (a, b)]
    sides = [f"{count} sampling seeds" if count > 1 else "1 image set" for count in counts]
    detail = " against ".join(dict.fromkeys(sides))
    return Evidence(change, "unpaired" if change.tested else "not tested", detail)
