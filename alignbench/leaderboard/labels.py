"""What rows are called: short labels that differ."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from alignbench.leaderboard.table import Row, Table, grouped

K = TypeVar("K", bound=Hashable)

MOST = 14
"""Labels that one picture can tell apart."""


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
            own = [special] if special and recipe not in common else []
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
