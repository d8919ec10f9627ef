"""An attempt of a launcher that starts processes again: their process group, and who says why it ended."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from datetime import timedelta

import torch
from torch import distributed as group
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from alignbench.errors import EXIT_PARTIAL
from alignbench.training.process_group import PAUSE, TIMEOUT, ExchangeBroken

SAYING = 5.0
"""Seconds for the launcher's store to answer a process that is about to end."""
_NAMES: list[str] = []
"""Of the attempt that this process belongs to, once it is agreed on."""


def join() -> None:
    """Start the process group of a run whose launcher keeps a store, as torchrun does; else accelerate does.

    Restarts (`--max-restarts`) share that store, in which the addresses of earlier attempts are still
    written: each attempt gets names of its own.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or group.is_initialized():
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, wait_for_workers=False, timeout=TIMEOUT)
    _NAMES.append(agree_on_attempt(store, rank, world_size))
    group.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore(_NAMES[-1], store),
        rank=rank,
        world_size=world_size,
        timeout=TIMEOUT,
    )


def agree_on_attempt(store: Store, rank: int, world_size: int) -> str:
    """Return a name that all processes of this attempt, and none of an earlier one, return.

    The launcher has none: where there are several agents, only the one whose process failed counts its
    restarts. The first process proposes a name, which holds once every other one has answered with a name of
    its own; an answer that is not among those means that the proposal was made in an earlier attempt.
    """
    store, own = PrefixStore("alignbench/attempt", store), secrets.token_hex(8)
    if rank == 0:
        store.set("proposed", own)
        answers = [store.get(f"{own}/{other}").decode() for other in range(1, world_size)]
        store.set(f"{own}/all", " ".join(answers))
        return own
    answered, until = "", time.monotonic() + TIMEOUT.total_seconds()
    while time.monotonic() < until:
        if (proposed := store.get("proposed").decode()) != answered:
            store.set(f"{proposed}/{rank}", own)
            answered = proposed
        if store.check([f"{answered}/all"]) and own in store.get(f"{answered}/all").decode():
            return answered
        time.sleep(PAUSE)
    raise ExchangeBroken(f"the first process was not there within {TIMEOUT}")


def has_last_word(error: BaseException) -> bool:
    """Whether this process, which an error ends, is the one to print it.

    The same error in several processes is said by the first of them; that another process ended is not said
    by those who know why. torchrun gets every error for its report (as its `record` does).
    """
    get_error_handler().record_exception(error)
    if isinstance(error, ExchangeBroken) and error.explained:
        return False
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True  # no store outlives the processes
    attempt = _NAMES[-1] if _NAMES else os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, wait_for_workers=False, timeout=timedelta(seconds=SAYING))
        words = PrefixStore(f"alignbench/ended-{attempt}", store)
        stopped = getattr(error, "exit_code", None) == EXIT_PARTIAL
        failed = words.add("failed", int(not stopped))
        if isinstance(error, ExchangeBroken) or (stopped and failed):
            return failed == 1 and not stopped  # else it ends because of the others
        text = f"{type(error).__name__}: {error}".encode(errors="replace")
        return bool(words.add(hashlib.sha256(text).hexdigest(), 1) == 1)
    except (RuntimeError, OSError, ValueError, LookupError):  # the launcher is gone: better twice than never
        return True
