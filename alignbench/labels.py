"""Words that set tables of one protocol apart, so that a reader sees why their numbers are not compared.

A table on another reference, network or prompt file than the cards name says so even when it stands alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from alignbench.tables import Table, join, short

if TYPE_CHECKING:
    from alignbench.registry.protocol import AssetCard

KINDS = ("reference", "network", "prompts")
"""What an asset can be, in the order of labels."""


def own_assets(used: Mapping[str, str], cards: Mapping[str, AssetCard]) -> tuple[str, ...]:
    """Return the assets that are not the file of their card; a card that knows no digest proves nothing.

    Args:
        used: {asset: digest} behind the numbers.
        cards: {asset: card}.
    """
    return tuple(
        name
        for name, digest in sorted(used.items())
        if (card := cards.get(name)) is not None and card.sha256 and digest != f"sha256:{card.sha256}"
    )


def labelled(tables: Sequence[Table], cards: Mapping[str, AssetCard]) -> list[Table]:
    """Give every table the words that tell it from its neighbours, in the same order."""
    named = [replace(table, label=_own_label(table, cards)) for table in tables]
    for describe in (_differences, lambda _: _digest):
        for group in _namesakes(named):
            words = describe([named[place] for place in group])
            for place in group:
                parts = [named[place].label, words(named[place])]
                named[place] = replace(named[place], label=", ".join(filter(None, parts)))
    return named


def _own_label(table: Table, cards: Mapping[str, AssetCard]) -> str:
    """`own reference and network`, or nothing."""
    kinds = {cards[name].what for name in table.own_assets}
    return f"own {join(kind for kind in KINDS if kind in kinds)}" if kinds else ""


def _namesakes(tables: Sequence[Table]) -> Iterable[list[int]]:
    """Return the places of tables that stand on one page under one heading."""
    groups: dict[tuple[str, int, str], list[int]] = defaultdict(list)
    for place, table in enumerate(tables):
        groups[table.protocol.name, table.protocol.version, table.heading].append(place)
    return [group for group in groups.values() if len(group) > 1]


def _differences(tables: Sequence[Table]) -> Callable[[Table], str]:
    """Return what names the values of one table that are not the same in all of these."""

    def parts(table: Table) -> list[str]:
        assets = [f"{name} {_short(table.assets.get(name))}" for name in _names(tables, "assets")]
        weights = [f"{role} {_short(table.weights.get(role))}" for role in _names(tables, "weights")]
        return [
            *assets,
            f"reference {_short(table.reference)}",
            f"{table.n:,} images",
            f"sampling seeds {', '.join(map(str, table.seeds))}",
            *weights,
        ]

    columns = list(zip(*map(parts, tables), strict=True))
    differing = [number for number, column in enumerate(columns) if len(set(column)) > 1]
    return lambda table: ", ".join(parts(table)[number] for number in differing)


def _names(tables: Sequence[Table], what: str) -> list[str]:
    return sorted(
        {name for table in tables for name in (table.assets if what == "assets" else table.weights)}
    )


def _digest(table: Table) -> str:
    """The last resort: protocols that differ in something no record names."""
    return f"protocol digest {short(table.protocol.digest)}"


def _short(digest: str | None) -> str:
    return short(digest) if digest else "none"
