"""A paper's claims about two configurations, held against what a sweep measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from alignbench.leaderboard.ranking import cell_difference
from alignbench.leaderboard.table import Cell, Column
from alignbench.registry.protocol import MetricFact
from alignbench.registry.tables import Claim, SweepCard

Verdict = Literal["holds", "does not hold", "not decided"]


@dataclass(frozen=True)
class Decision:
    """One claim and what came of it."""

    claim: str
    verdict: Verdict
    seen: str
    """The numbers behind the verdict, or why there are none."""

    @property
    def text(self) -> str:
        return f"{self.claim}: **{self.verdict}**. {self.seen}"


def decided(
    card: SweepCard, measured: Mapping[str, Mapping[str, Mapping[str, Cell]]], facts: Mapping[str, MetricFact]
) -> list[Decision]:
    """Decide the claims of a card.

    A claim holds if the interval of the difference lies on its side of 0, does not hold if it lies on the
    other, and is not decided where it contains 0 or cannot be had. The test is that of all tables,
    `ranking.cell_difference`, without a correction for the number of claims.

    Args:
        measured: {configuration, or `base`: {setting: {metric: cell}}}, without unfinished configurations.
    """
    return [_decide(claim, claim.setting or card.setting, measured, facts) for claim in card.claims]


def _decide(
    claim: Claim,
    setting: str,
    measured: Mapping[str, Mapping[str, Mapping[str, Cell]]],
    facts: Mapping[str, MetricFact],
) -> Decision:
    title = facts[claim.metric].title if claim.metric in facts else claim.metric
    said = f"{claim.better} better than {claim.than} in {title} at {setting} (paper: {claim.printed})"
    a, b = (measured.get(x, {}).get(setting, {}).get(claim.metric) for x in (claim.better, claim.than))
    if a is None or b is None:
        return Decision(said, "not decided", "Not measured here.")
    column = Column(claim.metric, "", title, facts[claim.metric])
    change = cell_difference(a, b)
    shown = [column.shown(cell.interval) + "†" * cell.rewarded for cell in (a, b)]
    seen = f"Here {' against '.join(shown)}; difference {column.signed(change.mean)}"
    if not change.tested:
        return Decision(said, "not decided", f"{seen}, single values that cannot be tested.")
    seen += f", 95 % interval {column.span(change)}."
    if not change.significant:
        return Decision(said, "not decided", seen)
    return Decision(said, "holds" if column.gain(change.mean) > 0 else "does not hold", seen)
