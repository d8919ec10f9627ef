"""The pictures of one run's report."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from alignbench.figures.curves import curves
from alignbench.figures.picture import Picture
from alignbench.figures.source import NotDrawnError, Run
from alignbench.figures.tradeoff import tradeoff
from alignbench.leaderboard.board import build
from alignbench.record import RunRecord
from alignbench.registry.protocol import AssetCard, MetricFact


def pictures(
    record: RunRecord, folder: Path, facts: Mapping[str, MetricFact], assets: Mapping[str, AssetCard]
) -> list[Picture]:
    """Draw learning curves, and metrics against each other; what a run has no numbers for is left out."""
    drawn = []
    with contextlib.suppress(NotDrawnError):
        drawn.append(curves([Run(record, folder)]))
    for number, table in enumerate(build([record], facts, assets=assets, sift=False).tables):
        with contextlib.suppress(NotDrawnError):
            drawn.append(tradeoff(table, f"tradeoff{number or ''}"))
    return drawn
