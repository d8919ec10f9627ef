"""What goes wrong at a user's: one clear line, the right exit status, nothing lost, the same command goes on.

The command line is called in this process; only what kills a process runs in one of its own.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from alignbench import record
from alignbench.evaluators import digits
from alignbench.files import file_sha256, package_file, read_json, write_json
from alignbench.progress import Progress
from alignbench.runs import evaluate_models, report_files, session
from alignbench.runs import run as runner
from alignbench.samples import generated
from alignbench.training import checkpoint, driver, setup
from alignbench.training.signals import StopOnSignal
from tests.helpers.command import alignbench
from tests.helpers.inception_toys import save_pngs

SHIPPED = package_file("weights/llamagen-tiny")
FEW = ["--set", "protocol.samples=60", "--set", "protocol.seeds=0", "--set", "protocol.settings=t1"]
TRAIN = ["run", "--method", "vapi", "--model", "llamagen-tiny"]
SAMPLE = ["sample", "--model", "llamagen-tiny"]
SHORT = [*TRAIN, *FEW, "--set", "train.images_per_step=8", "--checkpoint-every", "1"]
TINY = [*SHORT, "--steps", "2", "--out"]


def ends(code: int, *arguments: object) -> str:
    """What a command says that ends with this status; a traceback would be an exception here."""
    done = alignbench(*arguments)
    assert done.returncode == code, done.stderr
    return done.stderr


def complaint(code: int, *arguments: object) -> str:
    """The last message of a command that ends with this status; it is one line."""
    said = ends(code, *arguments)
    assert said.count("alignbench: ") == 1, said
    return said[said.index("alignbench: ") :].rstrip("\n")


def ends_alike(folder: Path, finished: Path) -> str:
    """The same command ends as the undisturbed run did, bit by bit, and leaves nothing lying about."""
    said = ends(0, *TINY, folder)
    made, sound = record.read(folder), record.read(finished)
    assert made.status == "complete"
    assert [one.metrics for one in made.results] == [one.metrics for one in sound.results]
    for name in ("metrics.jsonl", "export/policy.safetensors"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name
    assert (folder / "report.md").stat().st_size and (folder / "samples.png").stat().st_size
    assert [path for path in folder.rglob("*.tmp")] == []
    return said


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One complete run of `TINY`; tests work on copies."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNBENCH_CACHE", str(folder.parent / "cache"))
        ends(0, *TINY, folder)
    return folder


@pytest.fixture(autouse=True)
def _base_is_scored_once(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs here are of one base model, as a user's are."""
    monkeypatch.setenv("ALIGNBENCH_CACHE", str(finished.parent / "cache"))


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that has lost its record, as after a kill."""
    folder = shutil.copytree(finished, tmp_path / "copy")
    (folder / "run.json").unlink()
    return folder


# --- variables -----------------------------------------------------------------------------


def test_variables_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "0", "two", "-1"):
        monkeypatch.setenv("WORLD_SIZE", value)
        assert f"WORLD_SIZE is {value!r}" in complaint(2, *TRAIN, "--dry-run")
    monkeypatch.setenv("ALIGNBENCH_PATH", "/nowhere")
    assert "ALIGNBENCH_PATH: /nowhere is not a folder" in complaint(2, "list")


# --- weights --------------------------------------------------------------------------------------


class Malicious:
    """Unpickling it would make a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_are_no_weights(tmp_path: Path) -> None:
    trace, folder = tmp_path / "executed", tmp_path / "run"
    path = tmp_path / "pickle.pt"
    path.write_bytes(pickle.dumps({"model": Malicious(trace)}))
    said = complaint(2, *TINY, folder, "--set", f"model.policy={path}")
    assert f"{path} cannot be read as weights" in said and not trace.exists()
    swapped = f"model.policy={SHIPPED / 'tokenizer.safetensors'}"
    said = complaint(2, *SAMPLE, "--set", swapped, "--out", folder)
    assert "tokenizer.safetensors does not fit the model" in said


def test_broken_numbers_never_become_a_score(tmp_path: Path) -> None:
    state = load_file(SHIPPED / "policy.safetensors")
    state["output.weight"][0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    broken = ["--set", f"model.policy={tmp_path / 'nan.safetensors'}", "--out", tmp_path / "run"]
    told = complaint(2, "evaluate", "--model", "llamagen-tiny", *FEW, *broken)
    assert "nan.safetensors holds values that are not numbers: 1 weights (output.weight)" in told
    wild = [*SAMPLE, "-n", "2", "--cfg", "1e38", "--out", tmp_path / "s"]
    assert "token probabilities are not numbers" in complaint(1, *wild)


def test_weights_that_change_while_a_run_is_unfinished(tmp_path: Path) -> None:
    mine = shutil.copy(SHIPPED / "policy.safetensors", tmp_path / "mine.safetensors")
    command = [*TINY, tmp_path / "run", "--no-eval", "--set", f"model.policy={mine}"]
    ends(0, *command)
    (tmp_path / "run" / "run.json").unlink()
    save_file({name: value + 1 for name, value in load_file(mine).items()}, mine)
    assert "weights changed since the run" in complaint(2, *command)


# --- images ---------------------------------------------------------------------------------------


def make_images(root: Path) -> Path:
    numbers = np.random.default_rng(0)
    for label in range(10):
        save_pngs(root / str(label), numbers.integers(0, 256, (2, 9, 10, 3), dtype=np.uint8))
    return root


def test_unreadable_images_are_listed_and_left_out(tmp_path: Path) -> None:
    root, folder = make_images(tmp_path / "images"), tmp_path / "run"
    (root / "0" / "text.png").write_text("no picture")
    cut = root / "1" / "00000.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (root / "2" / "gone.png").symlink_to("nowhere")
    command = [*TINY, folder, "--no-eval", "--data", "folder", "--set", f"data.root={root}"]
    assert "left out 3 unreadable images in all" in ends(0, *command)
    listed = [line.split(":")[0] for line in (folder / "left-out.txt").read_text().splitlines()]
    assert listed == ["0/text.png", "1/00000.png", "2/gone.png"]
    data = record.read(folder).data
    assert data is not None and (data.count, data.skipped) == (19, 3)
    (folder / "run.json").unlink()
    shutil.copy(root / "3" / "00000.png", cut)  # mended in the middle of a run
    assert "data set folder changed since the run" in complaint(2, *command)


# --- the run folder -------------------------------------------------------------------------------


def test_a_folder_that_holds_something_else(finished: Path, tmp_path: Path) -> None:
    said = complaint(2, *SHORT, "--steps", "3", "--out", finished)
    assert "already holds another run" in said and "(train.steps = 2 there, 3 here)" in said
    thesis = tmp_path / "work" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("important")
    for resuming in ("--resume", "--no-resume"):
        assert "is not empty and holds no run" in complaint(2, *TINY, thesis.parent, resuming)
        assert "is a file" in complaint(2, *TINY, thesis, resuming)
    assert [path.name for path in thesis.parent.iterdir()] == ["thesis.tex"]


def test_a_damaged_plan(copy: Path) -> None:
    for content in (b"", b"{", b"[]", b"{}", b'{"digest": 1}', b"\xff\xfe"):
        (copy / "plan.json").write_bytes(content)
        assert "plan.json is not readable" in complaint(2, *TINY, copy)


def test_a_damaged_record_is_made_again(copy: Path, finished: Path) -> None:
    for content in (b'{"schema": 1}', b"\xff\xfe"):
        (copy / "run.json").write_bytes(content)
        assert "it is made again" in ends_alike(copy, finished)
        assert (copy / "run.json.old").read_bytes() == content


@pytest.mark.slow
def test_damaged_scores_are_made_again(copy: Path, finished: Path) -> None:
    (path,) = (copy / "metrics").glob("method-*.json")
    sound = json.loads(path.read_text())
    wrong, unknown = (
        json.dumps({**sound, "metrics": {**sound["metrics"], "fd-digits": value}}).encode()
        for value in ("low", float("nan"))
    )
    for content in (b"[]", b"\xff\xfe", wrong, unknown):
        path.write_bytes(content)
        (copy / "run.json").unlink(missing_ok=True)
        ends_alike(copy, finished)
        assert json.loads(path.read_text())["metrics"] == sound["metrics"]


def test_a_damaged_sample_file_is_made_again(copy: Path, finished: Path) -> None:
    (shard,) = (copy / "samples" / "method").rglob("shard-*.npz")
    (scores,) = (copy / "metrics").glob("method-*.json")
    scores.unlink()
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    ends_alike(copy, finished)


def test_a_damaged_checkpoint_is_put_aside(copy: Path, finished: Path) -> None:
    marker = copy / "checkpoints" / "step-000002" / checkpoint.MARKER
    marker.write_text(marker.read_text().replace('"step": 2', '"step": 9'))
    ends_alike(copy, finished)
    assert (copy / "checkpoints" / "step-000002.damaged").is_dir()


def test_a_checkpoint_of_another_model(copy: Path) -> None:
    folder = copy / "checkpoints" / "step-000002"
    shutil.copy(SHIPPED / "tokenizer.safetensors", folder / "module.safetensors")
    marker = read_json(folder / checkpoint.MARKER)
    marker["files"]["module.safetensors"] = file_sha256(folder / "module.safetensors")
    write_json(folder / checkpoint.MARKER, marker)
    assert "step 2 is of another model or version" in complaint(1, *TINY, copy)


def test_lost_lines_of_the_log_are_said(copy: Path) -> None:
    (copy / "metrics.jsonl").write_bytes(b'\xff\n{"step": 1}}\n[1]\n')
    assert "metrics.jsonl lacks 2 of the 2 finished steps" in ends(0, *TINY, copy)


def test_a_lonely_rank_is_no_launcher_and_json_is_alone(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    done = alignbench(*TINY, copy, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["status"] == "complete"
    assert "score method" in done.stderr


def test_a_cache_that_cannot_be_written(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNBENCH_CACHE", str(copy / "plan.json"))
    assert "set ALIGNBENCH_CACHE to a folder you can write to" in ends(0, *TINY, copy)


# --- a full disk, too little memory ---------------------------------------------------------------


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_quota(*_: Any, **__: Any) -> None:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def no_space_in_safetensors(*_: Any, **__: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def full_log(self: driver.Driver, step: int, *_: Any) -> None:
    """Half a line arrives."""
    with (self.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')
    no_space()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("where", "name", "failure", "said"),
    [
        (checkpoint, "save_file", no_space_in_safetensors, "step-000001 cannot be written"),
        pytest.param(driver.Driver, "_log", full_log, "no space left", marks=SLOW),
        pytest.param(
            runner, "save_file", no_space_in_safetensors, "policy.safetensors cannot be written", marks=SLOW
        ),
        pytest.param(generated, "write_atomic", no_quota, "no space left", marks=SLOW),
        (record, "write_atomic", no_quota, "run.json cannot be written"),
        pytest.param(report_files, "write_atomic", no_space, "no space left", marks=SLOW),
    ],
    ids=["checkpoint", "log", "export", "samples", "record", "report"],
)
def test_a_full_disk(
    finished: Path, tmp_path: Path, monkeypatch: Any, where: object, name: str, failure: Any, said: str
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(where, name, failure)
        told = complaint(1, *TINY, folder)
    assert said in told and "run the same command again" in told
    assert not (folder / "run.json").exists() or record.read(folder).status in ("partial", "failed")
    ends_alike(folder, finished)


def test_a_full_disk_does_not_hide_behind_the_record(tmp_path: Path, monkeypatch: Any) -> None:
    """When nothing at all can be written any more, the first failure is the one that is told."""
    monkeypatch.setattr(checkpoint, "save_file", no_space_in_safetensors)
    monkeypatch.setattr(record, "write_atomic", no_space)
    assert "step-000001 cannot be written" in complaint(1, *TINY, tmp_path / "run")


@pytest.mark.parametrize(
    ("where", "name", "said"),
    [
        (
            driver.Driver, "_step",
            "step 1: out of memory with train.micro_batch = 32 → --set train.micro_batch=16",
        ),
        (
            generated.Sampler, "generate",
            "out of memory while generating 500 images together → a device with more memory, or "
            "--set protocol.batch=250: another protocol",
        ),
        (
            digits.DigitsDistribution, "measure",
            "evaluator 'distribution-digits': out of memory with shards of",
        ),
        (evaluate_models, "_picture", "out of memory while drawing sample images → a device with more"),
    ],
)  # fmt: skip
def test_too_little_memory_names_the_knob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: object, name: str, said: str
) -> None:
    def too_much(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setenv("ALIGNBENCH_CACHE", str(tmp_path / "cache"))  # the base is sampled, too
    monkeypatch.setattr(where, name, too_much)
    assert said in complaint(1, *TINY, tmp_path / "run")


# --- interrupted and killed -----------------------------------------------------------------------


def test_signals_ask_first_and_insist_then() -> None:
    before = signal.getsignal(signal.SIGTERM)  # not SIGINT, which jobs in the background ignore
    with StopOnSignal(Progress(quiet=True)) as stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("at_step", [pytest.param(2, marks=SLOW), 3], ids=["in it", "after it"])
def test_ctrl_c_at_the_last_step(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_step: int
) -> None:
    """It must not be swallowed by the evaluation that follows."""

    class Asked:
        def __init__(self, progress: Progress) -> None:
            self.asked: Iterator[bool] = (count >= at_step for count in range(1, 9))

        def __enter__(self) -> Callable[[], bool]:
            return lambda: next(self.asked)

        def __exit__(self, *exception: object) -> None:
            pass

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(runner, "StopOnSignal", Asked)
        assert "interrupted after step 2" in complaint(3, *TINY, folder)
    assert record.read(folder).status == "partial" and not (folder / "samples").exists()
    ends_alike(folder, finished)


def test_ctrl_c_elsewhere(monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(setup, "build_model", interrupted)
        assert "finished work is kept" in complaint(3, *TINY, copy)
    monkeypatch.setattr("alignbench.cli.cards.plugins.load_registry", interrupted)
    assert complaint(3, "list").endswith("interrupted → run the same command again")


def test_killed_before_there_was_a_plan(finished: Path, tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".plan.json.99.tmp").write_text('{"id"')
    ends_alike(tmp_path, finished)


def test_killed_between_checkpoint_and_export(copy: Path, finished: Path) -> None:
    for name in ("export", "metrics", "samples"):
        shutil.rmtree(copy / name)
    (copy / "export").mkdir()
    (copy / "export" / ".policy.safetensors.tmp").write_bytes(b"half")
    ends_alike(copy, finished)


KILL_AT = """
import os, pathlib, signal, sys
real = pathlib.Path.replace
def replace(self, target):
    if pathlib.Path(target).name == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, target)
pathlib.Path.replace = replace
from alignbench.cli.main import main
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_killed_while_the_record_is_being_written(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", KILL_AT, "run.json", *TINY, str(folder)]
    killed = subprocess.run(command, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(folder.glob(".run.json.*.tmp")) != [] and not (folder / "run.json").exists()
    ends_alike(folder, finished)


def test_the_record_says_complete_last(copy: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed right before it, everything else is there; killed before that, the run is not complete."""
    (copy / "report.md").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(session, "write", no_space)
        ends(1, *TINY, copy)
    assert (copy / "report.md").exists() and record.read(copy).status == "partial"
    ends_alike(copy, finished)


# --- what comes out -------------------------------------------------------------------------------


def in_ascii(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", **variables}
    command = [sys.executable, "-m", "alignbench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def test_terminals_without_greek_letters() -> None:
    shown = in_ascii("show", "vapi", "--json", COLUMNS="20", FORCE_COLOR="1")
    assert shown.returncode == 0 and json.loads(shown.stdout)["title"] == "VA-π"
    listed = in_ascii("list", "methods", COLUMNS="0")
    assert listed.returncode == 0 and "vapi" in listed.stdout and "VA-?" in listed.stdout
    planned = in_ascii("run", "--method", "vapi", "--model", "llamagen-xxl", "--dry-run", COLUMNS="40")
    assert planned.returncode == 2 and "weights/policy" in planned.stdout


def test_samples_of_two_calls_are_not_mixed(finished: Path, tmp_path: Path) -> None:
    command = [*SAMPLE, "--out", tmp_path / "s", "--run"]
    for _ in range(2):
        ends(0, *command, finished, "-n", "4")
    said = complaint(2, *command, finished, "-n", "3")
    assert "holds 1 images that 3 new ones would not replace" in said
    assert "nowhere is not a run folder" in complaint(2, *command, tmp_path / "nowhere")


def test_foreign_files_beside_a_leaderboard(finished: Path, tmp_path: Path) -> None:
    board = tmp_path / "board"
    check = ["leaderboard", "--check", "--out", board]
    ends(0, "leaderboard", finished, "--out", board)
    (board / "notes.md").write_bytes(b"\xff\xfe")
    ends(0, *check)
    (page,) = board.glob("digits8*.md")
    page.write_text(page.read_text().replace("VA-π", "Better"))
    done = alignbench(*check)
    assert done.returncode == 1 and page.name in done.stdout
    (kept,) = (board / "records").iterdir()
    kept.write_text("{")
    assert f"{kept} is not readable JSON" in complaint(2, *check)
