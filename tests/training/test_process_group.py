"""The first process goes ahead, and the others hear how it ended."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

import pytest
from torch._C._distributed_c10d import HashStore

from alignbench.errors import UserError
from alignbench.training import process_group
from alignbench.training.process_group import ExchangeBroken, after_first


def first(store: HashStore, key: str, log: list[str], error: Exception | None = None) -> threading.Thread:
    """A first process, in a thread, that takes a while."""

    def work() -> None:
        with after_first(store, 0, key):
            time.sleep(0.1)
            log.append("first")
            if error:
                raise error

    def quietly() -> None:
        try:
            work()
        except (ValueError, UserError):
            log.append("raised")

    thread = threading.Thread(target=quietly)
    thread.start()
    return thread


def test_the_others_begin_when_the_first_is_done(monkeypatch: Any) -> None:
    monkeypatch.setattr(process_group, "PAUSE", 0.01)
    store, log = HashStore(), list[str]()
    for key in ("a", "b"):  # the second wait is for the second block
        thread = first(store, key, log)
        with after_first(store, 1, key):
            log.append("other")
        thread.join()
    assert log == ["first", "other"] * 2


def test_the_others_end_with_the_first(monkeypatch: Any) -> None:
    monkeypatch.setattr(process_group, "PAUSE", 0.01)
    monkeypatch.setattr(process_group, "ignore_signals", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    store, log = HashStore(), list[str]()
    for error, said in (
        (ValueError("a fault"), "the first process ended"),
        (UserError("no such folder", fix="name one"), "process 0 said: no such folder → name one"),
    ):
        thread = first(store, said, log, error)
        with pytest.raises(ExchangeBroken, match=said), after_first(store, 1, said):
            log.append("other")
        thread.join()
    assert log == ["first", "raised"] * 2, "what went wrong is not hidden in the first process"

    class Gone:
        def check(self, keys: list[str]) -> bool:
            raise RuntimeError("Connection reset by peer")

    with pytest.raises(ExchangeBroken, match="Connection reset"), after_first(cast("Any", Gone()), 1, "b"):
        log.append("other")
