"""Following runs from another process: working, killed, finished, just begun, on one process and on two."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alignbench.cli import watch as screen
from alignbench.commands.training_log import Log
from alignbench.commands.watch import Watched
from alignbench.progress import PROGRESS, Progress
from tests.e2e.test_two_ranks import TORCHRUN
from tests.helpers.command import alignbench

ENDLESS = [
    "-m", "alignbench", "run", "--method", "vapi", "--model", "llamagen-tiny", "--no-eval", "--out"
]  # fmt: skip


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start runs that are killed at the end of the test, whatever becomes of it."""
    begun: list[subprocess.Popen[bytes]] = []

    def begin(out: Path, *more: str, launcher: list[str] | None = None) -> subprocess.Popen[bytes]:
        command = [*(launcher or [sys.executable]), *ENDLESS, str(out), "--steps", "5000", *more]
        begun.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.wait()


def seen(folder: Path) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(alignbench("watch", folder, "--json").stdout)[0]
    return shown


def wait_for(folder: Path, enough: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    until = time.monotonic() + 400  # on a machine that has other things to do
    while time.monotonic() < until:
        if folder.exists() and enough(view := seen(folder)):
            return view
        time.sleep(0.2)
    raise AssertionError(f"never seen: {seen(folder)}")


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
def test_a_run_that_works_is_killed_and_is_finished(
    tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    folder = tmp_path / "run"
    process = start(folder, "--checkpoint-every", "2")
    view = wait_for(folder, lambda view: view["step"] >= 3)
    assert view["state"] == "running" and view["doing"] == "train"
    assert view["processes"] == [view["processes"][0] | {"rank": 0, "pid": process.pid, "alive": True}]
    assert view["stages"] == [view["stages"][0] | {"name": "train", "total": 5000}]
    process.send_signal(signal.SIGSTOP)
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"step": 99, "rew')
    before, shown = files(folder), alignbench("watch", folder)
    assert files(folder) == before, "it only reads"
    assert shown.returncode == 0 and "stands still" in shown.stdout and "step 99" not in shown.stdout
    process.kill()  # and nobody has asked yet how it ended
    wait_for(folder, lambda view: view["state"] == "killed")
    shown = alignbench("watch", folder)
    assert shown.returncode == 1 and "killed" in shown.stdout.splitlines()[0]
    assert "the same command again continues" in " ".join(shown.stdout.split()) and "/5000" in shown.stdout


@pytest.mark.slow
def test_a_killed_run_that_goes_on_and_is_interrupted(
    tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    folder = tmp_path / "run"
    process = start(folder)
    wait_for(folder, lambda view: view["step"] >= 1)
    process.kill()
    wait_for(folder, lambda view: view["state"] == "killed")  # a zombie, for nobody has asked how it ended
    process.wait()
    assert seen(folder)["state"] == "killed"
    again = start(folder)
    wait_for(folder, lambda view: view["state"] == "running" and view["processes"][0]["pid"] == again.pid)
    wait_for(folder, lambda view: view["doing"] == "train")
    again.send_signal(signal.SIGTERM)
    assert again.wait(400) == 3
    assert alignbench("watch", folder).returncode == 3 and seen(folder)["state"] == "interrupted"
    assert not (folder / PROGRESS).exists()


def test_a_short_run_leaves_nothing_behind_and_is_complete(tmp_path: Path) -> None:
    arguments = ["run", "--method", "ntp", "--model", "llamagen-tiny", "--steps", "3", "--out"]
    assert alignbench(*arguments, tmp_path / "runs" / "a", "--no-eval").returncode == 0
    assert not (tmp_path / "runs" / "a" / PROGRESS).exists()
    (tmp_path / "runs" / "b").mkdir()
    (tmp_path / "runs" / "b" / ".lock").touch()  # its first second
    shown = alignbench("watch", tmp_path / "runs")
    states = [line.split()[1] for line in shown.stdout.splitlines() if line[0] != " "]
    assert shown.returncode == 0 and states == ["complete", "starting"]
    assert "3/3" in shown.stdout and " loss " in shown.stdout, "no reward: its loss is drawn"
    broken = ["--set", "train.lr=1e30", "--set", "train.warmup_steps=0", "--set", "train.grad_clip=0"]
    assert alignbench(*arguments, tmp_path / "runs" / "c", "--no-eval", *broken).returncode == 1
    assert alignbench("watch", tmp_path / "runs").returncode == 1
    assert seen(tmp_path / "runs" / "c")["state"] == "failed"


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    for path, said in {tmp_path / "no": "does not exist", tmp_path / "other": "holds no run"}.items():
        done = alignbench("watch", path)
        assert done.returncode == 2 and said in done.stderr


def test_a_progress_that_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignbench.progress.WRITE_INTERVAL", 0.0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / PROGRESS).touch()  # where the folder should be
    arguments = ["--method", "ntp", "--model", "llamagen-tiny", "--no-eval", "--steps", "3"]
    done = alignbench("run", *arguments, "--out", tmp_path / "run")
    assert done.returncode == 0 and done.stderr.count("`alignbench watch` cannot follow") == 1


def test_what_other_machines_do_is_shown_but_not_decided(tmp_path: Path) -> None:
    progress = Progress(quiet=True)
    with progress.followed_in(tmp_path), progress.stage("train", 10, done=4) as stage:
        stage.advance(2)
        assert progress.heartbeat is not None
        progress.heartbeat.write()
        (beat,) = (tmp_path / PROGRESS).iterdir()
        content = json.loads(beat.read_text())
        view = Watched(tmp_path).look()
        assert view.state == "running" and view.processes[0].alive and not view.warnings
        assert [(stage.name, stage.done, stage.total) for stage in view.stages] == [("train", 6, 10)]
        beat.write_text(json.dumps({**content, "born": "1"}))  # another process has its number now
        assert Watched(tmp_path).look().state == "killed"
        beat.write_text(json.dumps({**content, "host": "elsewhere", "updated": content["updated"] - 1000}))
        view = Watched(tmp_path).look()
        assert view.state == "running" and view.processes[0].alive is None
        assert "on elsewhere) has been silent for 1000 s; whether it lives" in view.warnings[0]
        beat.write_text('{"rank": 0, "pi')
        assert Watched(tmp_path).look().state == "starting", "half a file says nothing"


def test_the_log_is_read_on_from_where_it_was_and_anew_where_it_was_cut(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    log.update()
    assert log.steps == {}
    log.path.write_text('{"step": 1, "loss": 2.0}\nno json\n[1]\n{"step": 2, "lo')
    log.update()
    assert log.steps == {1: {"loss": 2.0}}
    with log.path.open("a") as file:
        file.write('ss": null, "grad_norm": 0}\n')
    log.update()
    assert log.steps[2] == {"loss": None, "grad_norm": 0} and log.series() == ("loss", [2.0])
    assert log.warnings() == ["loss is not a number"]
    log.path.write_text('{"step": 1, "reward": 0.5, "grad_norm": 0, "flat_groups": 1}\n')
    log.update()
    assert log.series() == ("reward", [0.5])
    assert [warning.split()[0] for warning in log.warnings()] == ["no", "rewards"]


def test_sparklines_by_hand() -> None:
    assert screen.sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert screen.sparkline([0, 2, 10, 12], 2) == "▁█" and screen.sparkline([3.0], 5) == "▄"
    assert screen.sparkline([0, 7], 9, unicode=False).isascii()


def test_outputs_without_unicode_get_ascii(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 1.0}\n{"step": 2, "reward": 2.0}\n')
    view = Watched(tmp_path).look()
    assert all(line.isascii() for line in screen.lines_of(view, 80, "ascii")[2:])
    assert "▁█" in "".join(screen.lines_of(view, 80, "utf-8"))


def test_the_screen_ends_with_the_run_and_ctrl_c_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setattr(screen, "LINGER", 0.1)
    monkeypatch.setattr(screen, "INTERVAL", 0.01)
    arguments = ["--method", "ntp", "--model", "llamagen-tiny", "--no-eval", "--steps", "2"]
    assert alignbench("run", *arguments, "--out", tmp_path / "run").returncode == 0
    done = alignbench("watch", tmp_path / "run")
    assert done.returncode == 0 and "complete" in done.stdout and "2/2" in done.stdout

    def leave(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", leave)
    done = alignbench("watch", tmp_path / "not-yet")
    assert done.returncode == 0 and "starting" in done.stdout and not done.stderr


@pytest.mark.slow
def test_a_terminal_of_its_own(tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """From before the folder is there until the run is killed; a second watcher is sent Ctrl-C."""
    run = start(tmp_path / "run")
    watchers = [Watcher(tmp_path / "run"), Watcher(tmp_path / "run")]
    wait_for(tmp_path / "run", lambda view: view["step"] >= 2)
    time.sleep(5)  # they look at it, too
    watchers[1].process.send_signal(signal.SIGINT)
    assert watchers[1].process.wait(200) == 0
    run.kill()
    assert watchers[0].process.wait(200) == 1
    shown, left = (watcher.shown() for watcher in watchers)
    assert b"starting" in shown and b"running" in shown and b"killed" in shown
    assert b"Traceback" not in shown + left and b"interrupted" not in left


class Watcher:
    """The command on a terminal that somebody reads."""

    def __init__(self, folder: Path) -> None:
        self._master, terminal = pty.openpty()
        command = [sys.executable, "-m", "alignbench", "watch", str(folder)]
        self.process = subprocess.Popen(
            command, stdout=terminal, stderr=terminal,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
        )  # fmt: skip
        os.close(terminal)
        self._text = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # nobody writes any more
            while chunk := os.read(self._master, 1 << 16):
                self._text += chunk

    def shown(self) -> bytes:
        self._reader.join()
        return self._text


@pytest.mark.slow
def test_two_processes_and_one_of_them_killed(
    tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    folder = tmp_path / "run"
    start(folder, launcher=TORCHRUN)
    view = wait_for(folder, lambda view: view["step"] >= 3 and len(view["processes"]) == 2)
    assert view["state"] == "running" and all(process["alive"] for process in view["processes"])
    assert [process["rank"] for process in view["processes"]] == [0, 1]
    os.kill(view["processes"][1]["pid"], signal.SIGKILL)
    wait_for(folder, lambda view: view["state"] == "failed")
    assert alignbench("watch", folder).returncode == 1
