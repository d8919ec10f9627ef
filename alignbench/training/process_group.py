"""The process group under torchrun and accelerate launch: starting it, restarting it, and when it breaks."""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as group
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from alignbench.dealing.pool import Blackboard, OwnBoard
from alignbench.distributed import world_size
from alignbench.errors import RunFailed, UserError
from alignbench.training.signals import ignore_signals

TIMEOUT = timedelta(hours=1)
"""How long a process waits for one that is there but does not answer: shards of an evaluation may differ by
as much. One that ends is noticed at once."""

DONE, ENDED = "done", "the first process ended"
_BOARDS = itertools.count()
PAUSE = 0.1
"""Seconds between two looks at the store."""
BUCKET = 25_000_000
"""Numbers exchanged at once."""
HOST = "alignbench/host/"
"""In the store, before a rank."""
LOOKING = 10.0
"""Seconds for a new file to be seen from another machine; network file systems remember absent ones."""


class ExchangeBroken(RunFailed):
    """Another process ended, or did not answer in time; what that was is for `runs.session` to find out."""

    def __init__(self, reason: str, *, explained: bool = False) -> None:
        self.reason, self.explained = reason, explained
        """The latter: whether the reason is what that process said itself."""
        super().__init__(
            f"the exchange with the other processes of this run broke: {reason}",
            fix="see what the process that ended first said, then run the same command again",
        )


@contextlib.contextmanager
def exchange(*, computes: bool = False) -> Iterator[None]:
    """Say in one line that the other processes are gone.

    Args:
        computes: the block does more than exchange, so that not every error is one of the exchange.

    Raises:
        ExchangeBroken: a collective inside the block failed.
    """
    try:
        yield
    except RuntimeError as error:  # torch.distributed's errors are of this kind
        if world_size() == 1 or (computes and not _is_of_exchange(error)):
            raise
        # The launcher ends the others with SIGTERM, which must not hide why.
        ignore_signals()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExchangeBroken(reason[:200]) from error


def default_store() -> Store:
    """Return what all processes of the group can write to and read without an exchange."""
    return group.distributed_c10d._get_default_store()


def _is_of_exchange(error: RuntimeError) -> bool:
    """Whether an error comes from the process group; gloo's have no type of their own."""
    return isinstance(error, group.DistError) or "gloo" in str(error)


def new_board() -> Blackboard:
    """Return a board that all processes see; every process asks for its boards in one order."""
    if world_size() == 1:
        return OwnBoard()
    return StoreBoard(default_store(), f"alignbench/board/{next(_BOARDS)}")


class StoreBoard:
    """Counters and texts in the process group's store (a `dealing.pool.Blackboard`).

    Every call raises ExchangeBroken if the store is gone: whoever held it, the launcher or the first process.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = PrefixStore(name, store)

    def add(self, key: str, amount: int) -> int:
        with exchange():
            return int(self._store.add(key, amount))

    def set(self, key: str, value: str) -> None:
        with exchange():
            self._store.set(key, value)

    def get(self, keys: Sequence[str]) -> list[str | None]:
        with exchange():
            known = list(keys)
            if not self._store.check(known):  # the store would wait for the ones that are missing
                known = [key for key in known if self._store.check([key])]
            texts = self._store.multi_get(known) if known else []
        found = {key: text.decode() for key, text in zip(known, texts, strict=True)}
        return [found.get(key) for key in keys]


@contextlib.contextmanager
def after_first(store: Store, rank: int, key: str) -> Iterator[None]:
    """Let the first process do the block before the others do, e.g. fill a cache that they read.

    The others ask the store from time to time, in no exchange: its `TIMEOUT` would end a long wait.

    Args:
        key: of the store, another one for each block.

    Raises:
        ExchangeBroken: the block failed in the first process, or that process is gone.
    """
    if rank == 0:
        word = ENDED
        try:
            yield
            word = DONE
        except UserError as error:
            word = f"process 0 said: {error}"
            raise
        finally:
            with contextlib.suppress(RuntimeError):  # the next exchange says that the others are gone
                store.set(key, word)
        return
    with exchange():
        while not store.check([key]):
            time.sleep(PAUSE)
        word = store.get(key).decode()
    if word != DONE:
        ignore_signals()  # as in `exchange`
        raise ExchangeBroken(word, explained=word != ENDED)
    yield


def add_over_ranks(parameters: Iterable[Tensor]) -> None:
    """All-reduce the gradients of what trains, in pieces of about `BUCKET` numbers."""
    bucket: list[Tensor] = []
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if sum(one.numel() for one in bucket) >= BUCKET:
            _add_flat(bucket)
            bucket = []
    _add_flat(bucket)


def _add_flat(gradients: list[Tensor]) -> None:
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    group.all_reduce(flat)
    for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(piece.view_as(gradient))


# --- what all must have in common -----------------------------------------------------------------


def check_shared(folder: Path, store: Store, own: int, ranks: int) -> None:
    """Make sure that every process sees the folder of the first one; all call this.

    The first process writes a file of a name that nobody else has, and removes it when all have looked.

    Raises:
        UserError: some do not; the same on every process.
    """
    words = PrefixStore(f"alignbench/seen/{next(_BOARDS)}", store)
    with exchange():
        if own == 0:
            token = folder / f".shared.{secrets.token_hex(8)}.tmp"
            token.touch()
            try:
                words.set("token", json.dumps([token.name, socket.gethostname(), str(folder.absolute())]))
                said = [_answer(words, f"{number}") for number in range(1, ranks)]
            finally:
                token.unlink(missing_ok=True)
            blind = [f"process {number} on {host}" for number, host in enumerate(said, 1) if host]
            more = f" and {len(blind) - 3} more" if len(blind) > 3 else ""
            words.set("blind", ", ".join(blind[:3]) + more)
        name, host, seen = json.loads(_answer(words, "token"))
        if own:
            words.set(f"{own}", "" if _appears(folder / name) else socket.gethostname())
        if not (unseeing := _answer(words, "blind")):
            return
    raise UserError(
        f"{unseeing} cannot see the run folder {seen} of process 0 on {host}",
        fix="name a folder on a file system that all of them share, with --out",
    )


def _answer(store: Store, key: str) -> str:
    """Wait for a text, however long the one who says it needs to start."""
    while not store.check([key]):
        time.sleep(PAUSE)
    return store.get(key).decode()


def _appears(path: Path) -> bool:
    until = time.monotonic() + LOOKING
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(PAUSE)
        with contextlib.suppress(OSError):
            any(path.parent.iterdir())  # NFS asks the server again
    return True


# --- the last word --------------------------------------------------------------------------------
