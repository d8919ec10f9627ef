"""What a launcher such as torchrun says through the environment. Imports no torch."""

from __future__ import annotations

import os

from alignbench.errors import UserError


def world_size() -> int:
    """Return the number of processes of this run; 1 without a launcher.

    Raises:
        UserError: `WORLD_SIZE` is no number of processes.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(
            f"WORLD_SIZE is {text!r}, not a number of processes", fix="unset it, or start with torchrun"
        )
    return int(text)


def is_first() -> bool:
    """Whether this process is the one that speaks and writes. A `RANK` without company means nothing."""
    return world_size() == 1 or os.environ.get("RANK", "0") == "0"


def rank() -> int:
    """Return the number of this process among those of its run."""
    text = os.environ.get("RANK", "0")
    return int(text) if world_size() > 1 and text.isdecimal() else 0


def shard_copies(kind: str, processes: int) -> int:
    """Return how many copies of the parameters there are with `train.shard` = kind.

    Raises:
        UserError: `hybrid` keeps one on each node, and nodes have different numbers of processes.
    """
    if kind != "hybrid":
        return 1 if kind == "full" else processes
    text = os.environ.get("LOCAL_WORLD_SIZE", str(processes))
    if not text.isdecimal() or int(text) < 1 or processes % int(text):
        raise UserError(
            f"train.shard=hybrid: {processes} processes cannot be on nodes of {text} each",
            fix="start as many processes on every node, or set train.shard=full",
        )
    return processes // int(text)
