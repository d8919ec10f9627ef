"""From scores to the results of a run record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from alignbench.evaluation.evaluate import Score
from alignbench.hub.verify import Requirements
from alignbench.record import ProtocolRef, Result, Subject
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import ProtocolCard, Setting

T = TypeVar("T")


def results_of(
    registry: Registry,
    name: str,
    requirements: Requirements,
    *,
    subject: Subject,
    scores: Sequence[Score],
    reference: str | None,
    rewards: Sequence[str],
) -> list[Result]:
    """Gather the scores of one subject into one result per setting and evaluator.

    Args:
        registry: where the cards are.
        name: of the protocol.
        requirements: the protocol with its files.
        subject: what was scored.
        scores: in the order of the results.
        reference: digest of what it was compared with.
        rewards: networks behind training rewards.
    """
    protocol = requirements.protocol
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.setting, score.evaluator), []).append(score)
    return [
        Result(
            subject=subject,
            protocol=ProtocolRef(
                name=name,
                version=protocol.version,
                digest=requirements.digest,
                title=protocol.title,
                rank_by=protocol.rank_by,
            ),
            setting=_setting(protocol, setting, sampled=subject != "samples"),
            seeds=[score.seed for score in members],
            n=members[0].images,
            reference=reference,
            evaluator=evaluator,
            metrics={metric: [score.metrics[metric] for score in members] for metric in members[0].metrics},
            sample_seconds=sum(score.sample_seconds for score in members),
            evaluate_seconds=sum(score.evaluate_seconds for score in members),
            networks_used_as_reward=list(rewards),
            intervals=_by_seed(members[0].metrics, [score.intervals for score in members]),
            resampled=_by_seed(members[0].metrics, [score.resampled for score in members]),
            assets=_read_by(registry, requirements, evaluator),
        )
        for (setting, evaluator), members in groups.items()
    ]


def _by_seed(metrics: Iterable[str], seeds: Sequence[Mapping[str, T | None]]) -> dict[str, list[T | None]]:
    """{metric: one entry per seed} of the metrics that any seed has an entry for."""
    rows = {metric: [seed.get(metric) for seed in seeds] for metric in metrics}
    return {metric: row for metric, row in rows.items() if any(row)}


def _setting(protocol: ProtocolCard, name: str, *, sampled: bool) -> Setting:
    setting = protocol.settings[name]
    if sampled and protocol.task == "generation":
        return setting
    return Setting.unsampled(name, setting.title)


def _read_by(registry: Registry, requirements: Requirements, evaluator: str) -> dict[str, str]:
    """Digests of the files behind one evaluator's numbers."""
    card, protocol, assets = registry.evaluator(evaluator), requirements.protocol, requirements.assets
    names = list(card.assets)
    names += [protocol.prompts] if "prompts" in card.needs else []
    names += [protocol.reference.statistics] if protocol.reference and "reference" in card.needs else []
    return {name: f"sha256:{assets[name].sha256}" for name in names if name in assets}
