"""The words of a row that every format shows alike: its numbers and its name; bold is written `**bold**`."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from alignbench.leaderboard.table import Column, Row, Table, grouped, number
from alignbench.text import markdown

if TYPE_CHECKING:
    from alignbench.registry.schema import RewardCard

K = TypeVar("K", bound=Hashable)

MOST = 14
"""Labels that one picture can tell apart."""
EXTERNAL = "Ext. Rwd"
REWARDED = "†: a network behind this metric was also a training reward of this row."
COST_HEADERS = ("train s", "sequences", "device", "peak GiB", "trained")


def external(names: Iterable[str], cards: Mapping[str, RewardCard]) -> str:
    """`✓` if any of these rewards judges images by themselves, `✗` if all compare one with the training image
    or there is none; empty where a card is missing."""
    scopes = {cards[name].scope if name in cards else "" for name in names}
    return "✓" if scopes & {"image", "set"} else "" if "" in scopes else "✗"


def heads(columns: Sequence[Column]) -> list[str]:
    return [f"{column.title} {column.arrow}" for column in columns]


def metric(row: Row, column: Column, *, bold: bool | None = None) -> str:
    """Mean ± half-width, ‡ for the error of one set, † for a network that was a reward; empty if missing.

    `bold` None: where the cell is the best of its column.
    """
    cell = row.cells.get(column.key)
    if cell is None:
        return ""
    marks = ("‡" if cell.interval.of_one_set else "") + ("†" if cell.rewarded else "")
    text = column.shown(cell.interval) + marks
    return f"**{text}**" if (cell.best if bold is None else bold) else text


def unit(row: Row) -> str:
    """`3 training seeds`: what the ± was taken over."""
    cell = next(iter(row.cells.values()), None)
    if cell is None:
        return ""
    interval = cell.interval
    if interval.of_one_set or (row.kind == "samples" and interval.n == 1):
        return "1 image set"
    return f"{interval.n} {interval.kind.removesuffix('s') if interval.n == 1 else interval.kind}"


def cost(row: Row) -> tuple[str, ...]:
    """Cells under `COST_HEADERS`; blank for the base, which costs nothing."""
    if row.cost is None:
        return ("",) * len(COST_HEADERS)
    spent, values = row.cost, row.cost.seconds
    seconds = number(math.fsum(values) / len(values), 1)
    if len(spent.devices) > 1 and len(values) > 1:  # a mean over different devices means nothing
        seconds = f"{number(min(values), 1)} – {number(max(values), 1)}"
    return (
        seconds,
        f"{round(math.fsum(spent.sequences) / len(spent.sequences)):,}",
        ", ".join(spent.devices),
        "" if spent.peak_memory_gib is None else number(spent.peak_memory_gib, 2),
        f"{spent.trainable_parameters:,}",
    )


# --- what rows are called -------------------------------------------------------------------------


def labels(described: Mapping[K, tuple[str, str]]) -> dict[K, str]:
    """Return short labels that differ: the title, and of its details only what sets it apart, else the key.

    Args:
        described: {key: (title, details separated by `; `, the recipe first)}.
    """
    made: dict[K, str] = {}
    for title, keys in grouped((title, key) for key, (title, _) in described.items()).items():
        parts = {key: described[key][1].split("; ") for key in keys}
        common = set.intersection(*map(set, parts.values()))
        words = set.intersection(*(set(recipe.split("-")) for recipe, *_ in parts.values()))
        for key in keys:
            recipe, *changes = parts[key]
            special = "-".join(word for word in recipe.split("-") if word not in words)
            usual = special in ("", title.lower().replace(" ", "-"))  # the method's own recipe
            own = [] if usual or recipe in common else [special]
            own += [part.removeprefix("method.") for part in changes if part not in common]
            made[key] = f"{title} ({', '.join(own)})" if own else title
    counts = Counter([*made.values(), "base"])
    return {key: f"{label} ({str(key)[:7]})" if counts[label] > 1 else label for key, label in made.items()}


def names(table: Table) -> dict[str, str]:
    """Return {identity of a row: its label}, all different; the base model is `base`."""
    return {"": "base"} | labels({x.identity: (x.title, x.detail) for x in table.rows if not x.is_base})


def distinct(rows: Sequence[Row]) -> list[Row]:
    """Add a piece of the digest, or the run, to rows of different origin that would read the same."""
    owners: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        owners[row.name].add(row.identity)

    def told_apart(row: Row) -> Row:
        piece = row.identity if row.kind == "samples" else row.identity[:7]
        return replace(row, detail="; ".join(filter(None, [row.detail, piece])))

    return [told_apart(row) if len(owners[row.name]) > 1 else row for row in rows]


# --- how to read a table --------------------------------------------------------------------------


def one_set(table: Table) -> bool:
    """Whether a number of the table has the error of a single image set."""
    return any(cell.interval.of_one_set for row in table.rows for cell in row.cells.values())


def rewarded(table: Table) -> bool:
    """Whether a network behind a number of the table was a training reward."""
    return any(cell.rewarded for row in table.rows for cell in row.cells.values())


def criterion(table: Table) -> str:
    """What decides whether two numbers of the table differ."""
    over_seeds = "95 %; t test over pairs of equal sampling seeds, else Welch's"
    return f"{over_seeds}; single sets ‡ by common resamples, else normal" if one_set(table) else over_seeds


def intervals(table: Table, over: str) -> list[str]:
    """What ± is in the table; `over` is what an interval over seeds was taken over."""
    sets = one_set(table)
    notes = []
    if not sets or any(cell.interval.n > 1 for row in table.rows for cell in row.cells.values()):
        notes.append(f"± is half of a 95 % Student-t interval over {over}.")
    if sets:
        notes.append(
            "‡: ± is the sampling error of one set of images, 95 %, as its evaluator estimates it "
            "(bootstrap, for example); it is not training luck."
        )
    return notes


def footnotes(table: Table) -> list[str]:
    """Return the remarks below a full table, as Markdown."""
    notes = intervals(
        table,
        "the values named under n: over training seeds, each counted once by its mean over sampling seeds, "
        "or over the sampling seeds of one model",
    )
    notes.append(
        "Bold: best of its column, or not significantly different from the best "
        f"({criterion(table)}, no correction for the number of comparisons)."
    )
    if table.rank_column is not None:
        alone = "a single value without ‡" if one_set(table) else "a single value"
        notes.append(
            f"Rank: the position by mean {table.rank_column.title}, here among all rows and settings. In "
            "brackets above: from 1 + the rows that are significantly better to all but the significantly "
            "worse, each comparison at level 1 − 0.05 / (rows − 1) (Bonferroni), so that the true rank is "
            f"in the interval in 95 % of cases or more. Where a row has {alone} nothing can be tested and "
            "nothing is ruled out."
        )
    if len(table.settings) > 1 and table.model_name:
        notes.append(
            "Own best settings are chosen by the numbers that are shown, for the base and for methods alike, "
            "so they flatter a little."
        )
    if any(len(row.training_seeds) > 1 for row in table.rows):
        notes.append(
            "All rows share the sampling seeds, so an error that a seed gives to every model alike is not in "
            "an interval over training seeds."
        )
    if rewarded(table):
        notes.append(REWARDED)
    if any(row.kind == "method" for row in table.rows):
        notes.append(
            "Costs are means over training seeds (peak memory: the largest) and leave evaluation out."
        )
    return [*notes, *map(markdown, table.notes)]
