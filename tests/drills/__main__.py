"""The command line of the drills."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import tests.drills
from tests.drills.drill import Drill, Lost
from tests.drills.machine import Machine
from tests.drills.plugin import Plugin
from tests.drills.remote import Remote

KINDS: dict[str, type[Drill]] = {
    **dict.fromkeys(("flip", "signal", "kill", "ranks", "restarts", "nodes", "disk"), Machine),
    "plugin": Plugin,
    "remote": Remote,
}
"""{kind: class with a method of that name, which makes one trial}."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.drills", description=tests.drills.__doc__)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    print(soak(chosen.kind, chosen.count, chosen.seed))  # noqa: T201


def soak(kind: str, count: int, seed: int) -> str:
    """Make trials; return the report.

    Raises:
        SystemExit: any was lost; the report is its message.
    """
    lost: list[str] = []
    with tempfile.TemporaryDirectory() as root:
        drill = KINDS[kind](Path(root), seed)
        trial: Callable[[], None] = getattr(drill, kind)
        for number in range(count):
            try:
                trial()
            except Lost as error:
                lost.append(f"trial {number}: {error}")
    report = "\n".join([f"{kind}: tried {count}, survived {count - len(lost)}, lost {len(lost)}", *lost])
    if lost:
        raise SystemExit(report)
    return report


if __name__ == "__main__":
    main()
