"""How a run can be followed: which trackers there are, and why they or sample grids cannot be used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from alignbench.errors import Problem, UserError, missing_packages, suggest
from alignbench.registry.protocol import ProtocolCard

TRACKERS = {"tensorboard": "trackers", "wandb": "trackers", "trackio": ""}
"""{tracker, which is its package: extra of alignbench that has it}."""


def tracker_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return trackers, each once; raises UserError: there is no such tracker."""
    for name in names:
        if name not in TRACKERS:
            known = f"known: {', '.join(TRACKERS)}"
            raise UserError(f"no tracker named {name!r}.{suggest(name, TRACKERS)}", fix=known)
    return tuple(dict.fromkeys(names))


def tracker_problems(names: Sequence[str]) -> Iterator[Problem]:
    """Yield which of them lack their package."""
    for name in names:
        missing, fix = missing_packages([name], TRACKERS[name])
        if missing:
            yield Problem(f"--track {name}", f"needs {name}", fix)


def grid_problems(protocol: ProtocolCard, evaluates: bool, shard: str) -> Iterator[Problem]:
    """Yield why no images can be drawn while training: what the protocol lacks, or the process that draws."""
    if shard != "none":
        what = "one process draws, and with train.shard none has the whole policy"
        yield Problem("--grid-every", what, "leave one of the two out")
    if protocol.task != "generation":
        yield Problem("--grid-every", "the protocol scores reconstructions", "choose another with --protocol")
    elif protocol.labels == "prompts" and not evaluates:
        yield Problem("--grid-every", "draws the protocol's prompts", "leave --no-eval away")
