"""Trackers hold what the log says, number by number, also over a kill; none of them stops a run."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignbench.commands import jobs
from alignbench.errors import UserError
from alignbench.runs import tracking
from tests.helpers.command import alignbench

SHORT = [
    "run", "--method", "vapi", "--model", "llamagen-tiny", "--steps", "6", "--checkpoint-every", "4",
    "--set", "train.images_per_step=4", "--set", "method.group_size=2",
]  # fmt: skip
SCORED = ["--set", "protocol.samples=60", "--set", "protocol.seeds=0,1", "--set", "protocol.settings=t1"]


def log(folder: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line.pop("step"): {f"train/{name}": value for name, value in line.items()} for line in lines}


def evaluated(folder: Path) -> dict[str, float]:
    return {
        f"eval/{result['subject']}/{result['setting']['name']}/{metric}": sum(values) / len(values)
        for result in json.loads((folder / "run.json").read_text())["results"]
        for metric, values in result["metrics"].items()
        if None not in values
    }


def in_tensorboard(folder: Path) -> dict[int, dict[str, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "trackers" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    steps: dict[int, dict[str, float]] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            assert tag not in steps.setdefault(event.step, {}), f"{tag} twice at step {event.step}"
            steps[event.step][tag] = event.value
    return steps


def records(path: Path) -> Iterator[bytes]:
    """The records of a `.wandb` file: LevelDB's log format, blocks of 32 KiB, after a header of 7 bytes."""
    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def in_wandb(folder: Path) -> dict[int, dict[str, float]]:
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # its classes are made on import
    run_id = json.loads((folder / "trackers" / "wandb.json").read_text())["id"]
    steps: dict[int, dict[str, float]] = {}
    for path in sorted((folder / "trackers" / "wandb").glob(f"offline-run-*-{run_id}/*.wandb")):
        for data in records(path):
            record = messages.Record()
            record.ParseFromString(data)
            found = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            values = {
                name: json.loads(value)
                for name, value in found.items()
                if name.startswith(("train/", "eval/"))
            }
            here = steps.setdefault(record.history.step.num, {}) if values else {}
            assert not here.keys() & values.keys(), f"step {record.history.step.num} twice"
            here |= values
    return steps


def in_trackio(folder: Path) -> dict[int, dict[str, float]]:
    steps: dict[int, dict[str, float]] = {}
    with sqlite3.connect(folder / "trackers" / "trackio" / "alignbench.db") as store:
        for step, text in store.execute("SELECT step, metrics FROM metrics ORDER BY id"):
            values = {
                name: value
                for name, value in json.loads(text).items()
                if name.startswith(("train/", "eval/"))
            }
            assert not steps.setdefault(step, {}).keys() & values.keys(), f"step {step} twice"
            steps[step] |= values
    return steps


READERS = {"tensorboard": in_tensorboard, "wandb": in_wandb, "trackio": in_trackio}


def same(found: dict[int, dict[str, float]], expected: dict[int, dict[str, float]], tracker: str) -> None:
    precision = 2**-23 if tracker == "tensorboard" else 0.0  # its numbers have 32 bits
    assert {step: set(values) for step, values in found.items()} == {
        step: set(values) for step, values in expected.items()
    }
    for step, values in expected.items():
        for name, value in values.items():
            assert math.isclose(found[step][name], value, rel_tol=precision, abs_tol=1e-38), (step, name)


def expected_of(folder: Path) -> dict[int, dict[str, float]]:
    steps = log(folder)
    steps[max(steps)] |= evaluated(folder)
    return steps


@pytest.mark.slow
def test_tensorboard_holds_the_log_the_evaluation_and_the_grids(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    done = alignbench(*SHORT, *SCORED, "--out", out, "--track", "tensorboard", "--grid-every", "3")
    assert done.returncode == 0 and "tracking" not in done.stderr, done.stderr
    assert len(evaluated(out)) > 10
    same(in_tensorboard(out), expected_of(out), "tensorboard")
    events = EventAccumulator(str(out / "trackers" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    images = {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}
    assert images == {"training-samples": [3, 6], "samples": [6]}
    plain = tmp_path / "plain"
    assert alignbench(*SHORT, "--no-eval", "--out", plain).returncode == 0
    exports = [(folder / "export" / "policy.safetensors").read_bytes() for folder in (out, plain)]
    assert exports[0] == exports[1] and not (plain / "trackers").exists()


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_the_others_hold_it_too_and_send_nothing(tmp_path: Path, tracker: str) -> None:
    """In a process of their own, as they leave threads and exit handlers behind."""
    pytest.importorskip(tracker)
    out = tmp_path / "run"
    done = track(out, tracker, *SCORED)
    assert done.returncode == 0 and "tracking" not in done.stderr, done.stderr
    json.loads(done.stdout)  # nobody else writes there
    same(READERS[tracker](out), expected_of(out), tracker)


def track(out: Path, tracker: str, *more: str, command: str = "-m alignbench") -> Any:
    arguments = [*SHORT, *more, "--out", str(out), "--track", tracker, "--json", "--grid-every", "3"]
    unset = ("WANDB_MODE", "TRACKIO_DIR")
    env = {key: value for key, value in os.environ.items() if key not in unset}
    start = [sys.executable, *command.split()]
    return subprocess.run([*start, *arguments], capture_output=True, text=True, env=env)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tracker", "number"), [*((tracker, "SIGKILL") for tracker in READERS), ("wandb", "SIGTERM")]
)
def test_no_step_is_lost_or_doubled_by_a_signal(tmp_path: Path, tracker: str, number: str) -> None:
    """After step 5: killed there it goes on from the checkpoint of step 4, stopped from one of step 5."""
    pytest.importorskip(tracker)
    out = tmp_path / "run"
    program = tmp_path / "signalled.py"
    program.write_text(f"""
import os, sys, signal, time
from alignbench.runs.tracking import Tracked
from alignbench.cli.main import main
whole = Tracked.log
def log(self, step, values):
    whole(self, step, values)
    if step == {5 if number == "SIGKILL" else 4}:
        time.sleep(2)
        os.kill(os.getpid(), signal.{number})
Tracked.log = log
main(sys.argv[1:])
""")
    ended = track(out, tracker, "--no-eval", command=str(program)).returncode
    assert ended == (-signal.SIGKILL if number == "SIGKILL" else 3) and max(log(out)) == 5
    before = json.loads((out / "trackers" / f"{tracker}.json").read_text())
    done = track(out, tracker, "--no-eval")
    assert done.returncode == 0 and "tracking" not in done.stderr, done.stderr
    after = json.loads((out / "trackers" / f"{tracker}.json").read_text())
    assert (after["id"] == before["id"]) == ((tracker, number) != ("wandb", "SIGKILL"))
    same(READERS[tracker](out), log(out), tracker)


@pytest.mark.slow
def test_a_tracker_added_later_is_filled_up_from_the_log(tmp_path: Path) -> None:
    asked = [*SHORT, "--no-eval", "--out", tmp_path / "run"]
    assert alignbench(*asked).returncode == 0
    (tmp_path / "run" / "run.json").unlink()  # as if it had not come to its end
    assert alignbench(*asked, "--track", "tensorboard").returncode == 0
    same(in_tensorboard(tmp_path / "run"), log(tmp_path / "run"), "tensorboard")


def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    class Failing:
        resumed = False

        def __init__(self, *_: object) -> None:
            self.tracker = self

        def start(self) -> None:
            pass

        def log(self, values: dict[str, float], step: int) -> None:
            sent.append(step)
            if step == 3:
                raise ConnectionError("nobody\nthere")

        def finish(self) -> None:
            raise AssertionError("it was given up")

    monkeypatch.setitem(tracking.STARTS, "wandb", Failing)
    done = alignbench(*SHORT, "--no-eval", "--out", tmp_path / "run", "--track", "wandb")
    assert done.returncode == 0 and sent == [1, 2, 3]
    assert done.stderr.count("tracking with wandb stops, the run goes on: ConnectionError: nobody\n") == 1
    monkeypatch.setattr(Failing, "start", lambda self: 1 / 0)
    done = alignbench(*SHORT, "--no-eval", "--out", tmp_path / "other", "--track", "wandb")
    assert done.returncode == 0 and done.stderr.count("stops, the run goes on: ZeroDivisionError") == 1


def test_missing_packages_are_problems_of_the_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("wandb", "trackio"):
        (tmp_path / name).mkdir()  # what `wandb` itself leaves behind is no package
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    asked = [*SHORT, "--no-eval", "--track", "wandb", "--track", "trackio"]
    done = alignbench(*asked, "--set", "data.root=x", "--data", "folder", "--dry-run")
    assert done.returncode == 2 and "3 problems" in done.stdout
    said = " ".join(done.stdout.split())
    assert "--track wandb: needs wandb → pip install 'alignbench[trackers]'" in said
    assert "--track trackio: needs trackio → pip install trackio" in said
    with pytest.raises(UserError, match=r"no tracker named 'wandbb'\. Did you mean wandb"):
        jobs.plan("vapi", "llamagen-tiny", track=["wandbb"])


def test_trackers_are_how_and_not_what() -> None:
    plain = jobs.plan("vapi", "llamagen-tiny")
    tracked = jobs.plan("vapi", "llamagen-tiny", track=["tensorboard"], grid_every=5)
    assert plain.plan.digest == tracked.plan.digest and tracked.track == ("tensorboard",)


def test_nothing_is_imported_that_was_not_asked_for(tmp_path: Path) -> None:
    names = {"wandb", "tensorboard", "trackio"}
    code = f"import sys; from alignbench.runs import run; print({names} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
