"""The first process goes ahead, and the others hear how it ended."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from torch._C._distributed_c10d import HashStore, TCPStore

from alignbench.errors import EXIT_PARTIAL, UserError
from alignbench.training import process_group
from alignbench.training.attempts import agree_on_attempt, has_last_word
from alignbench.training.process_group import ExchangeBroken, after_first, check_shared


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


def test_a_process_that_sees_another_folder_is_named_by_all(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(process_group, "LOOKING", 0.0)
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()

    def look(*folders: Path) -> list[str]:
        monkeypatch.setattr(process_group, "_BOARDS", itertools.repeat(0))
        store, said = HashStore(), list[str]()

        def check(rank: int) -> None:
            try:
                check_shared(folders[rank], store, rank, len(folders))
            except UserError as error:
                said.append(error.what)

        with ThreadPoolExecutor(len(folders)) as pool:
            list(pool.map(check, range(len(folders))))
        assert not [*one.iterdir(), *other.iterdir()], "nothing stays"
        return said

    assert look(one, one, one) == []
    said, host = look(one, one, tmp_path / "absent"), socket.gethostname()
    assert len(said) == 3 and len({*said}) == 1, "all say the same, so that one can speak for all"
    assert said[0] == f"process 2 on {host} cannot see the run folder {one} of process 0 on {host}"
    assert look(one, other, other)[0].startswith(f"process 1 on {host}, process 2 on {host} cannot see")


def test_processes_of_an_attempt_agree_whatever_earlier_ones_left() -> None:
    server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)

    def attempt(*order: int) -> str:
        """Processes of these ranks come one after the other; return what all of them say."""
        with ThreadPoolExecutor(3) as pool:
            asked = []
            for rank in order:
                store = TCPStore("localhost", server.port, wait_for_workers=False)
                asked.append(pool.submit(agree_on_attempt, store, rank, 3))
                time.sleep(0.2)
            (name,) = {answer.result(timeout=20) for answer in asked}
        return name

    first, second, third = attempt(0, 1, 2), attempt(1, 2, 0), attempt(2, 0, 1)
    server.set("alignbench/attempt/proposed", "one that was killed")
    server.set("alignbench/attempt/one that was killed/1", "an answer of that time")
    assert len({first, second, third, attempt(1, 0, 2)}) == 4


def test_of_several_processes_one_has_the_last_word(tmp_path: Path, monkeypatch: Any) -> None:
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))

    def said(attempt: int, *errors: Exception) -> list[bool]:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        return [has_last_word(error) for error in errors]

    wrong, other = UserError("no such file", fix="name one"), UserError("no disk")
    stopped = UserError("interrupted", exit_code=EXIT_PARTIAL)
    assert said(0, wrong, wrong, other) == [True, False, True]
    assert "UserError: no disk" in (tmp_path / "error.json").read_text(), "for torchrun's report"
    assert said(1, stopped, stopped) == [True, False]
    assert said(2, wrong, stopped, ExchangeBroken("reset")) == [True, False, False], "because of the first"
    assert said(3, ExchangeBroken("reset"), ExchangeBroken("closed")) == [True, False]
    assert said(4, ExchangeBroken("process 1 said: no", explained=True)) == [False]
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert said(0, wrong) == [True]
