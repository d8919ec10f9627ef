"""What a launcher such as torchrun says through the environment. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping

from alignbench.errors import UserError

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and accelerate launch set."""
PORTS = range(20_000, 30_000)
"""Where the first process of a SLURM step listens, by the number of the job."""


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


def has_company() -> bool:
    """Whether a launcher has started several processes; a `WORLD_SIZE` that is no number is nobody's."""
    text = os.environ.get("WORLD_SIZE", "1")
    return text.isdecimal() and int(text) > 1


def is_first() -> bool:
    """Whether this process is the one that speaks and writes. A `RANK` without company means nothing."""
    return world_size() == 1 or os.environ.get("RANK", "0") == "0"


def rank() -> int:
    """Return the number of this process among those of its run."""
    text = os.environ.get("RANK", "0")
    return int(text) if world_size() > 1 and text.isdecimal() else 0


def shard_copies(kind: str, processes: int, per_node: int | None = None) -> int:
    """Return how many copies of the parameters there are with `train.shard` = kind.

    Args:
        per_node: processes of a node; None: as this one's launcher says.

    Raises:
        UserError: `hybrid` keeps one on each node, and nodes have different numbers of processes.
    """
    if kind != "hybrid":
        return 1 if kind == "full" else processes
    text = str(per_node or os.environ.get("LOCAL_WORLD_SIZE", processes))
    if not text.isdecimal() or int(text) < 1 or processes % int(text):
        raise UserError(
            f"train.shard=hybrid: {processes} processes cannot be on nodes of {text} each",
            fix="start as many processes on every node, or set train.shard=full",
        )
    return processes // int(text)


def join_slurm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Join the processes of a SLURM step (`srun`) that no other launcher has started.

    Sets what torchrun would set, from what srun says. Nothing happens outside a step of several tasks, or
    where one of `RANK` and `WORLD_SIZE` is set.

    Raises:
        UserError: SLURM's variables are not there or not of the usual form.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1")
    if "SLURM_STEP_ID" not in environment or tasks == "1" or {"RANK", "WORLD_SIZE"} & environment.keys():
        return
    try:
        nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
        job = int(environment["SLURM_JOB_ID"]) + int(environment["SLURM_STEP_ID"])
        said = {
            "RANK": str(int(environment["SLURM_PROCID"])),
            "WORLD_SIZE": str(int(tasks)),
            "LOCAL_RANK": str(int(environment["SLURM_LOCALID"])),
            "MASTER_ADDR": _first_host(nodes),
            "MASTER_PORT": str(PORTS[job % len(PORTS)]),
        }
    except (KeyError, ValueError) as error:
        raise UserError(
            f"this is one of {tasks} tasks of a SLURM step, but its variables do not say which: {error}",
            fix="start with torchrun in one task a node, or unset SLURM_STEP_ID to run alone",
        ) from None
    for name, value in said.items():
        environment.setdefault(name, value)


def _first_host(nodes: str) -> str:
    """Return the first host of a list such as `gpu[003-005,9],login`; raises ValueError: there is none."""
    found = re.match(r"([^\[,\s]+)(?:\[([^\],-]+)[^\]]*\]([^,\s]*))?", nodes)
    if found is None:
        raise ValueError(f"SLURM_JOB_NODELIST is {nodes!r}")
    return "".join(part or "" for part in found.groups())
