"""What a reader has to be warned of: one plain sentence a kind, made from records and tables alone.

`docs/warnings.md` says of each kind what it means and what to do about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignbench.leaderboard.cells import names
from alignbench.leaderboard.ranking import cell_difference
from alignbench.leaderboard.table import Column, Row, Table, grouped, join
from alignbench.text import one_line

if TYPE_CHECKING:
    from alignbench.record import RunRecord, TrainInfo, Trend

# --- thresholds -----------------------------------------------------------------------------------

ROSE = 2.0
"""Standard errors by which the reward must have risen: a rise by noise alone passes in about 2 % of runs."""
LEFT = 0.25
"""Share of its beginning to which entropy or spread has collapsed; sound runs of the embedded models end
between 0.6 and 1.0 of it."""
FLAT = 0.5
"""Share of flat groups from which on most of what was sampled taught nothing."""
KL = 1.0
"""Nats a token: on average the trained model draws tokens that were e times less likely before. Sound runs
of the embedded models end below 0.3."""
CLIPPED = 0.5
"""Share of clipped ratios from which on most tokens have no gradient."""
GRADIENT = 10.0
"""Growth of the gradient's norm from its beginning; sound runs stay within a factor of 2."""
SHOWN = 6
"""Labels that a sentence names; the rest is counted."""


@dataclass(frozen=True)
class Warning:
    """One kind of trouble; plain text, whatever records hold."""

    kind: str
    """A name for programs, e.g. `reward-hacking`."""
    text: str
    """One sentence."""
    labels: tuple[str, ...] = ()
    """Configurations it is about, all of them; empty: the whole table."""
    metrics: tuple[str, ...] = ()
    """Titles of the columns it is about."""


def warnings_of(table: Table) -> list[Warning]:
    """Return the warnings of a table, the gravest first, each kind once."""
    called = names(table)
    trained = {
        called[key]: rows[0].training
        for key, rows in grouped((row.identity, row) for row in table.rows if row.kind == "method").items()
    }
    return [*_hacking(table, called), *_of_training(trained), *_of_evaluation(table, called)]


def warnings_of_run(record: RunRecord, tables: Iterable[Table]) -> list[Warning]:
    """Return the warnings of one run: of its tables, and of its training where nothing was evaluated."""
    found = [warning for table in tables for warning in warnings_of(table)]
    if record.train is not None and record.method is not None:
        told = {warning.kind for warning in found}
        found += [x for x in _of_training({record.method.title: (record.train,)}) if x.kind not in told]
    return list(dict.fromkeys(found))


def _plain(table: Table) -> list[Row]:
    """Rows at the protocol's first setting; given images have one of their own."""
    return [row for row in table.rows if row.kind == "samples" or row.setting == table.settings[0]]


def _named(texts: Sequence[str]) -> str:
    more = len(texts) - SHOWN
    return join([*texts[:SHOWN], f"{more} more"] if more > 1 else texts)


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Symptom:
    """What makes one series of a training log a warning."""

    kind: str
    series: str
    bad: Callable[[Trend], bool]
    shown: Callable[[Trend], str]
    """The numbers behind each label."""
    text: str


def _collapsed(x: Trend) -> bool:
    return x.first > 0 and x.last < LEFT * x.first


def _ends(x: Trend) -> str:
    return f"{x.first:.3g} → {x.last:.3g}"


SYMPTOMS = (
    Symptom(
        "entropy-collapse", "entropy", _collapsed, _ends,
        f"The policy's entropy fell to less than {LEFT:.0%} of its start, so its samples lost variety",
    ),
    Symptom(
        "spread-collapse", "reward_std", _collapsed, _ends,
        f"The spread of rewards inside groups fell to less than {LEFT:.0%} of its start, so little is left "
        "to learn from",
    ),
    Symptom(
        "flat-groups", "flat_groups", lambda x: max(x.mean, x.last) > FLAT,
        lambda x: f"{max(x.mean, x.last):.0%}",
        "Most groups were flat, all members with the same reward, and taught nothing",
    ),
    Symptom(
        "kl", "kl", lambda x: x.last > KL, lambda x: f"{x.last:.3g} nats a token",
        "The policy ran far away from the model it started from (KL)",
    ),
    Symptom(
        "clipping", "clip_fraction", lambda x: x.last > CLIPPED, lambda x: f"{x.last:.0%}",
        "Most probability ratios were clipped in the end, so most tokens had no gradient",
    ),
    Symptom(
        "gradient", "grad_norm", lambda x: x.last > GRADIENT * x.first > 0, _ends,
        f"The gradient's norm ran away, to more than {GRADIENT:g} times its start",
    ),
)  # fmt: skip


def _of_training(trained: Mapping[str, Sequence[TrainInfo]]) -> Iterator[Warning]:
    """Warnings of {label: one entry per training seed}."""
    for symptom in SYMPTOMS:
        texts = {}
        for label, trains in trained.items():
            trends = [x.trends[symptom.series] for x in trains if symptom.series in x.trends]
            bad = list(filter(symptom.bad, trends))
            if bad:
                texts[label] = f"{label} ({join(map(symptom.shown, bad))}{_of_seeds(len(bad), len(trains))})"
        if texts:
            yield Warning(symptom.kind, f"{symptom.text}: {_named(list(texts.values()))}.", tuple(texts))
    yield from _failed(trained)


def _of_seeds(some: int, all_: int) -> str:
    return f"; {some} of {all_} training seeds" if some < all_ else ""


def _failed(trained: Mapping[str, Sequence[TrainInfo]]) -> Iterator[Warning]:
    """Scores that rewards did not give."""
    texts = {}
    for label, trains in trained.items():
        parts = []
        for name in dict.fromkeys(
            name for x in trains for name, failed in x.reward_failures.items() if failed
        ):
            failed = sum(x.reward_failures.get(name, 0) for x in trains)
            calls = sum(x.reward_calls.get(name, 0) for x in trains)
            parts.append(f"{one_line(name)} none for {failed:,} of {calls:,} images")
        if parts:
            texts[label] = f"{label} ({join(parts)})"
    if texts:
        listed = _named(list(texts.values()))
        yield Warning("failed-rewards", f"Rewards gave no score for some images: {listed}.", tuple(texts))


# --- evaluation -----------------------------------------------------------------------------------


def _hacking(table: Table, called: dict[str, str]) -> Iterator[Warning]:
    """The reward rose, and what ranks the table got significantly worse."""
    plain = _plain(table)
    base = next((row for row in plain if row.is_base), None)
    worse: dict[str, list[str]] = {}
    for row in plain:
        rose = [x for x in row.training if "reward" in x.trends and _rose(x.trends["reward"])]
        if row.kind == "method" and rose and base is not None:
            lost = [column.title for column in _held_out(row, table) if _lost(row, base, column)]
            if lost:
                worse[called[row.identity]] = lost
    if worse:
        where = f" at {table.settings[0].title}" if len(table.settings) > 1 else ""
        listed = _named([f"{label} ({join(lost)})" for label, lost in worse.items()])
        yield Warning(
            "reward-hacking",
            "Reward hacking: the reward rose in training while held-out metrics got significantly worse than "
            f"the base's{where}: {listed}.",
            tuple(worse),
            tuple(dict.fromkeys(title for lost in worse.values() for title in lost)),
        )


def _rose(reward: Trend) -> bool:
    return reward.last - reward.first > ROSE * reward.error


def _held_out(row: Row, table: Table) -> list[Column]:
    """The ranking metric; where its network was a reward, the other main metrics whose networks were not."""
    held = [
        column
        for column in table.columns
        if not column.fact.detail and column.key in row.cells and not row.cells[column.key].rewarded
    ]
    return [table.rank_column] if table.rank_column in held else held


def _lost(row: Row, base: Row, column: Column) -> bool:
    if column.key not in base.cells:
        return False
    change = cell_difference(row.cells[column.key], base.cells[column.key])
    return change.significant and column.gain(change.mean) < 0


def _of_evaluation(table: Table, called: dict[str, str]) -> Iterator[Warning]:
    rewarded = [
        (called[row.identity], column.title)
        for column in table.columns
        for row in table.rows
        if column.key in row.cells and row.cells[column.key].rewarded
    ]
    if rewarded:
        labels, titles = (tuple(dict.fromkeys(part)) for part in zip(*rewarded, strict=True))
        yield Warning(
            "rewarded",
            f"A network behind {_named(titles)} was also a training reward (†), so a gain there is no "
            f"independent evidence: {_named(labels)}.",
            labels,
            titles,
        )
    methods = [row for row in table.rows if row.kind == "method"]
    single = tuple(dict.fromkeys(called[x.identity] for x in methods if len(x.training_seeds) < 2))
    if single:
        text = f"One training seed only, so nothing is said about others: {_named(single)}."
        yield Warning("training-seeds", text, single)
    yield from _too_few(table)
    column = table.rank_column
    if column is not None:
        held = [row for row in _plain(table) if column.key in row.cells]
        untested = tuple(called[x.identity] for x in held if x.cells[column.key].interval.half_width is None)
        if untested:
            text = f"A single value without an error, so nothing was tested against it: {_named(untested)}."
            yield Warning("untested", text, untested, (column.title,))


def _too_few(table: Table) -> Iterator[Warning]:
    """Seeds and images that are fewer than a claim needs."""
    if len(table.seeds) < 2 and table.model_name:
        yield Warning(
            "sampling-seeds",
            "One sampling seed only: an interval of a single model is that of one image set (‡), or missing.",
        )
    short = [column for column in table.columns if table.n < column.fact.features]
    if short:
        listed = join(f"{column.title} ({column.fact.features:,})" for column in short)
        yield Warning(
            "images",
            f"{table.n:,} images are fewer than the feature dimensions of {listed}: such a distance depends "
            "more on the number of images than on the model.",
            metrics=tuple(column.title for column in short),
        )
    if table.changed:
        listed = join(f"{key} = {value}" for key, value in table.changed.items())
        yield Warning("protocol", f"Not what the protocol's card asks for: {listed}.")
