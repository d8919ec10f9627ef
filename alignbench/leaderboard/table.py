"""The values a leaderboard is made of, before any format: cells, rows, tables, board.

`board.py` fills them from run records; `markdown.py`, `terminal.py` and `export.py` turn them into text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

from alignbench.metrics.intervals import Difference, Interval, mean_interval, units

if TYPE_CHECKING:
    from alignbench.record import ProtocolRef, RunRecord, TrainInfo
    from alignbench.registry.protocol import MetricFact, Setting

K = TypeVar("K")
V = TypeVar("V")
RowKind = Literal["base", "control", "method", "samples"]
"""`control`: the base model under another setting than the table's first one; `samples`: given images."""


@dataclass(frozen=True)
class Column:
    """One metric of one evaluator version."""

    metric: str
    evaluator: str
    title: str
    fact: MetricFact

    @property
    def key(self) -> tuple[str, str]:
        return self.metric, self.evaluator

    @property
    def arrow(self) -> str:
        return "↑" if self.fact.direction == "higher" else "↓"

    def text(self, value: float) -> str:
        return number(value, self.fact.digits)

    def shown(self, interval: Interval) -> str:
        """Format a mean with the half-width of its interval."""
        half = interval.half_width
        return self.text(interval.mean) + (f" ± {self.text(half)}" if half is not None else "")

    def signed(self, value: float) -> str:
        """Format a difference, with a sign unless it rounds to 0."""
        text = self.text(value)
        return f"+{text}" if value > 0 and text.strip("0.") else text

    def span(self, difference: Difference) -> str:
        """`[low, high]`, or nothing where the difference cannot be tested."""
        if difference.low is None or difference.high is None:
            return ""
        return f"[{self.signed(difference.low)}, {self.signed(difference.high)}]"

    def gain(self, mean_difference: float) -> float:
        """Turn a difference so that positive means better."""
        return mean_difference if self.fact.direction == "higher" else -mean_difference

    def score(self, cell: Cell) -> float:
        """Turn a mean so that larger means better."""
        return self.gain(cell.interval.mean)


@dataclass(frozen=True)
class Cell:
    """One number of a row. A row without the number has no cell."""

    interval: Interval
    values: tuple[float, ...]
    """The independent values behind the mean."""
    best: bool = False
    """Best of the column, or not significantly different from the best."""
    rewarded: bool = False
    """The metric's network was also a training reward (†)."""
    drawn: tuple[float, ...] = ()
    """The single value on resamples of its images, which were made here; see `api.Metric`."""
    seeds: tuple[int, ...] = ()
    """Sampling seeds of the values, where each value is that of one seed and its images were made here."""

    @classmethod
    def of(cls, runs: Sequence[Sequence[float]], *, rewarded: bool = False) -> Cell:
        """Pool nested values, one sequence per training seed; see `intervals.units`."""
        values, kind = units(runs)
        return cls(mean_interval(values, kind=kind), tuple(values), rewarded=rewarded)

    def shares_resamples(self, other: Cell) -> bool:
        """Whether both are known on the same resamples."""
        return len(self.drawn) == len(other.drawn) > 1

    def shares_seeds(self, other: Cell) -> bool:
        """Whether the values belong together pair by pair: images of equal number and random numbers."""
        return len(self.seeds) > 1 and self.seeds == other.seeds


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What training a row took; one entry per training seed where seeds can differ."""

    seconds: tuple[float, ...]
    sequences: tuple[int, ...]
    devices: tuple[str, ...]
    """Distinct ones, sorted."""
    peak_memory_gib: float | None
    """Largest over the seeds; None if any of them is unknown."""
    trainable_parameters: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One subject at one setting, pooled over training seeds."""

    kind: RowKind
    title: str
    """`base`, the method's title, or what given images are called."""
    setting: Setting
    cells: Mapping[tuple[str, str], Cell]
    """{`Column.key`: cell}."""
    detail: str = ""
    """Recipe and changed keys of a method."""
    external: str = ""
    """Whether rewards came from outside the image; see `cells.external`."""
    rank: int | None = None
    """Position by mean in the table; None without a value of the ranking metric."""
    cost: Cost | None = None
    training: tuple[TrainInfo, ...] = ()
    """One entry per training seed."""
    runs: tuple[str, ...] = ()
    """Ids of the records behind the row."""
    identity: str = ""
    """Digest of the configuration without seeds; empty for the base model; of given images the run."""

    @property
    def training_seeds(self) -> tuple[int, ...]:
        return tuple(train.seed for train in self.training)

    @property
    def is_base(self) -> bool:
        return self.kind in ("base", "control")

    @property
    def name(self) -> str:
        """Title and detail, without the setting."""
        return f"{self.title} ({self.detail})" if self.detail else self.title


@dataclass(frozen=True)
class Unranked:
    """A record, or a part of one, that no table shows."""

    id: str
    reason: str
    protocols: tuple[str, ...] = ()
    """Digests of the protocols it has results of."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that may be compared: one protocol digest, reference, assets, sample size, seeds and model."""

    protocol: ProtocolRef
    reference: str | None
    assets: Mapping[str, str]
    """{asset: digest} of networks, reference statistics and prompts behind the numbers."""
    own_assets: tuple[str, ...]
    """Those of them that are not the files of their cards."""
    n: int
    seeds: tuple[int, ...]
    model: str
    """Title of the starting model, or `given images`."""
    model_name: str
    """Empty for given images."""
    weights: Mapping[str, str]
    settings: tuple[Setting, ...]
    """The first is the plain one."""
    columns: tuple[Column, ...]
    rank_column: Column | None
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    """Remarks on single rows: blanks, disagreeing base measurements."""
    changed: Mapping[str, object] = field(default_factory=dict)
    """{key: value} of the protocol's samples and seeds where somebody gave them: not those of its card."""
    label: str = ""
    """What sets the table apart from others of its protocol and model, e.g. `own reference`."""

    @property
    def heading(self) -> str:
        return f"{self.model}, {self.label}" if self.label else self.model


@dataclass(frozen=True)
class Board:
    """Everything a leaderboard folder shows."""

    tables: tuple[Table, ...]
    unranked: tuple[Unranked, ...]
    records: tuple[RunRecord, ...]
    """Every record that was looked at, by id."""


def number(value: float, digits: int) -> str:
    """Format with fixed digits; negative zero loses its sign."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if not text.strip("-0.") else text


def short(digest: str | None) -> str:
    """Shorten `sha256:…` for people; `none` without one."""
    return digest.removeprefix("sha256:")[:12] if digest else "none"


def grouped(pairs: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    """Put the values of equal keys together, in the order they come in."""
    groups: dict[K, list[V]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def join(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *head, last = list(words) or [""]
    return f"{', '.join(head)} and {last}" if head else last
