"""What goes wrong at a user's: one clear line, the right exit status, nothing lost, the same command goes on.

The command line is called in this process; only what kills a process runs in one of its own.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from alignbench import record
from alignbench.cli import main as cli
from alignbench.evaluators import digits
from alignbench.files import file_sha256, read_json, write_json
from alignbench.progress import Progress
from alignbench.runs import run as runner
from alignbench.runs import session
from alignbench.samples import generated
from alignbench.training import checkpoint, driver, setup
from alignbench.training.signals import StopOnSignal

SHIPPED = Path(cli.__file__).parent.parent / "weights" / "llamagen-tiny"
FEW = ["--set", "protocol.samples=60", "--set", "protocol.seeds=0", "--set", "protocol.settings=t1"]
TRAIN = ["run", "--method", "vapi", "--model", "llamagen-tiny"]
SHORT = [*TRAIN, *FEW, "--set", "train.images_per_step=8", "--checkpoint-every", "1"]
TINY = [*SHORT, "--steps", "2"]


class Done(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Done]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line; a traceback would be an exception here."""

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
        out, err = capsys.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return run


def complaint(done: Done) -> str:
    """The last message of the command; it is one line."""
    assert done.err.count("alignbench: ") == 1, done.err
    line = done.err[done.err.index("alignbench: ") :].rstrip("\n")
    return line


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One complete run of `TINY`; tests work on copies."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setenv("ALIGNBENCH_CACHE", str(folder.parent / "cache"))
        cli.main([*TINY, "--out", str(folder)])
    assert record.read(folder).status == "complete"
    gc.freeze()  # every run collects garbage; the imported libraries need not be searched each time
    yield folder
    gc.unfreeze()


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that has lost its record, as after a kill."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    (folder / "run.json").unlink()
    return folder


def results(folder: Path) -> list[dict[str, list[float | None]]]:
    return [result.metrics for result in record.read(folder).results]


def assert_same(folder: Path, finished: Path) -> None:
    """A run ended as the undisturbed one did, bit by bit, and left nothing lying about."""
    made = record.read(folder)
    assert made.status == "complete" and results(folder) == results(finished)
    for name in ("metrics.jsonl", "export/policy.safetensors"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name
    assert (folder / "report.md").stat().st_size and (folder / "samples.png").stat().st_size
    assert [path for path in folder.rglob("*.tmp")] == []


# --- names and values -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*TRAIN, "--set", "train.beta1=1"], "train.beta1: 1.0 is above 0.999999"),
        ([*TRAIN, "--set", "train.lr=1e39"], "train.lr: 1e+39 is above 1e+30"),
        ([*TRAIN, "--set", "train.lr=nan"], "train.lr: nan is not a finite number"),
        ([*TRAIN, "--set", "steps=3", "--steps", "2"], "--steps and --set train.steps were both given"),
        ([*TRAIN, "--set", "protocol.seeds=0,0"], "protocol.seeds: '0,0' names a seed twice"),
        ([*TRAIN, "--set", "method.perceptual=lpips-vg"], "Did you mean lpips-vgg"),
        ([*TRAIN, "--data", "hub"], "no data set was named → --set data.path=PATH"),
        ([*TRAIN, "--out", "x" * 300], "file name too long"),
        ([*TRAIN, "--out", os.fsdecode(b"a\xff")], "the name is not UTF-8 → choose another folder"),
        (["evaluate", "--model", "llamagen-tiny", "--set", "train.lr=1"], "train.lr changes nothing here"),
        (["sample", "--model", "llamagen-tiny", "--set", "protocol.samples=1"], "changes nothing here"),
        (["sample", "--model", "llamagen-tiny", "--classes", "3,10"], "classes 0 to 9, not 10"),
        (["doctor", "--method", "vappi"], "no method named 'vappi'. Did you mean vapi?"),
    ],
)
def test_nothing_is_started(
    call: Call, arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert done.code == 2 and said in complaint(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["", "0", "two", "-1"])
def test_a_launcher_s_variable_that_is_no_number(
    call: Call, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    done = call(*TRAIN, "--dry-run")
    assert done.code == 2 and f"WORLD_SIZE is {value!r}" in complaint(done)


def test_a_folder_of_cards_that_is_not_there(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNBENCH_PATH", "/nowhere")
    done = call("list")
    assert done.code == 2 and "ALIGNBENCH_PATH: /nowhere is not a folder" in complaint(done)


# --- weights --------------------------------------------------------------------------------------


class Malicious:
    """Unpickling it would make a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_are_no_weights(call: Call, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("pickle.pt", "text.pt", "cut.safetensors")}
    trace = tmp_path / "executed"
    files["pickle.pt"].write_bytes(pickle.dumps({"model": Malicious(trace)}))
    files["text.pt"].write_text("these are no weights\n")
    whole = (SHIPPED / "policy.safetensors").read_bytes()
    files["cut.safetensors"].write_bytes(whole[: len(whole) // 2])
    for file in files.values():
        done = call(*TINY, "--set", f"model.policy={file}", "--out", str(tmp_path / "run"))
        assert done.code == 2 and f"{file} cannot be read as weights" in complaint(done)
        assert not (tmp_path / "run").exists()  # the mended command may use it
    assert not trace.exists()


def test_swapped_files(call: Call, tmp_path: Path) -> None:
    swapped = ["--set", f"model.policy={SHIPPED / 'tokenizer.safetensors'}"]
    done = call("sample", "--model", "llamagen-tiny", *swapped, "--out", str(tmp_path / "s"))
    assert done.code == 2 and "tokenizer.safetensors does not fit the model" in complaint(done)


def test_broken_numbers_never_become_a_score(call: Call, tmp_path: Path) -> None:
    state = load_file(SHIPPED / "policy.safetensors")
    state["output.weight"][0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    broken = ["--set", f"model.policy={tmp_path / 'nan.safetensors'}"]
    done = call("evaluate", "--model", "llamagen-tiny", *FEW, *broken, "--out", str(tmp_path / "run"))
    assert done.code == 1 and "token probabilities are not numbers" in complaint(done)
    assert record.read(tmp_path / "run").status == "failed"
    guided = ["sample", "--model", "llamagen-tiny", "-n", "2", "--cfg", "1e38", "--out", str(tmp_path / "s")]
    done = call(*guided)
    assert done.code == 1 and "token probabilities are not numbers" in complaint(done)


def test_weights_that_change_while_a_run_is_unfinished(call: Call, tmp_path: Path) -> None:
    mine = tmp_path / "mine.safetensors"
    shutil.copy(SHIPPED / "policy.safetensors", mine)
    command = [*TINY, "--no-eval", "--set", f"model.policy={mine}", "--out", str(tmp_path / "run")]
    assert call(*command).code == 0
    (tmp_path / "run" / "run.json").unlink()
    state = load_file(mine)
    save_file({name: value + 1 for name, value in state.items()}, mine)
    done = call(*command)
    assert done.code == 2 and "weights changed since the run" in complaint(done)


# --- images ---------------------------------------------------------------------------------------


def make_images(root: Path) -> Path:
    numbers = np.random.default_rng(0)
    for label in range(10):
        (root / str(label)).mkdir(parents=True)
        for count in range(2):
            pixels = numbers.integers(0, 256, (9, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / str(label) / f"{count}.png")
    return root


def test_unreadable_images_are_listed_and_left_out(call: Call, tmp_path: Path) -> None:
    root = make_images(tmp_path / "images")
    (root / "0" / "text.png").write_text("no picture")
    (root / "1" / "0.png").write_bytes((root / "1" / "0.png").read_bytes()[:60])
    (root / "2" / "gone.png").symlink_to("nowhere")
    folder = tmp_path / "run"
    command = [*TINY, "--no-eval", "--data", "folder", "--set", f"data.root={root}", "--out", str(folder)]
    done = call(*command)
    assert done.code == 0, done.err
    assert "left out 3 unreadable images in all" in done.err
    listed = [line.split(":")[0] for line in (folder / "left-out.txt").read_text().splitlines()]
    assert listed == ["0/text.png", "1/0.png", "2/gone.png"]
    data = record.read(folder).data
    assert data is not None and (data.count, data.skipped) == (19, 3)
    (folder / "run.json").unlink()
    shutil.copy(root / "3" / "0.png", root / "1" / "0.png")  # mended in the middle of a run
    done = call(*command)
    assert done.code == 2 and "data set folder changed since the run" in complaint(done)


def test_one_class_and_none(call: Call, tmp_path: Path) -> None:
    root = make_images(tmp_path / "images")
    for folder, said in ((root / "1", "images lie outside any class folder"), (tmp_path, "only one class")):
        done = call(*TINY, "--data", "folder", "--set", f"data.root={folder}", "--out", f"{tmp_path}/.run")
        assert done.code == 2 and said in complaint(done)


# --- the run folder -------------------------------------------------------------------------------


def test_a_folder_that_holds_something_else(call: Call, finished: Path, tmp_path: Path) -> None:
    done = call(*SHORT, "--steps", "3", "--out", str(finished))
    assert done.code == 2 and "already holds another run" in complaint(done)
    assert "(train.steps = 2 there, 3 here)" in complaint(done)
    thesis = tmp_path / "work" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("important")
    for resuming in ("--resume", "--no-resume"):
        done = call(*TINY, resuming, "--out", str(thesis.parent))
        assert done.code == 2 and "is not empty and holds no run" in complaint(done)
        done = call(*TINY, resuming, "--out", str(thesis))
        assert done.code == 2 and "is a file" in complaint(done)
    assert [path.name for path in thesis.parent.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"digest": 1}', b"\xff\xfe"])
def test_a_damaged_plan(call: Call, copy: Path, content: bytes) -> None:
    (copy / "plan.json").write_bytes(content)
    done = call(*TINY, "--out", str(copy))
    assert done.code == 2 and "plan.json is not readable" in complaint(done)


@pytest.mark.parametrize("content", [b'{"schema": 1}', b"\xff\xfe"])
def test_a_damaged_record_is_made_again(call: Call, copy: Path, finished: Path, content: bytes) -> None:
    (copy / "run.json").write_bytes(content)
    done = call(*TINY, "--out", str(copy))
    assert done.code == 0 and "it is made again" in done.err
    assert (copy / "run.json.old").read_bytes() == content
    assert_same(copy, finished)


def test_damaged_scores_are_made_again(call: Call, copy: Path, finished: Path) -> None:
    (path,) = (copy / "metrics").glob("method-*.json")
    sound = json.loads(path.read_text())
    wrong = {**sound, "metrics": {**sound["metrics"], "fd-digits": "low"}}
    unknown = {**sound, "metrics": {**sound["metrics"], "fd-digits": float("nan")}}
    for content in (b"[]", b"\xff\xfe", json.dumps(wrong).encode(), json.dumps(unknown).encode()):
        path.write_bytes(content)
        (copy / "run.json").unlink(missing_ok=True)
        assert call(*TINY, "--out", str(copy)).code == 0
        assert json.loads(path.read_text())["metrics"] == sound["metrics"]
    assert_same(copy, finished)


def test_a_damaged_sample_file_is_made_again(call: Call, copy: Path, finished: Path) -> None:
    (shard,) = (copy / "samples" / "method").rglob("shard-*.npz")
    (scores,) = (copy / "metrics").glob("method-*.json")
    scores.unlink()
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert call(*TINY, "--out", str(copy)).code == 0
    assert_same(copy, finished)


def test_a_damaged_checkpoint_is_put_aside(call: Call, copy: Path, finished: Path) -> None:
    marker = copy / "checkpoints" / "step-000002" / checkpoint.MARKER
    marker.write_text(marker.read_text().replace('"step": 2', '"step": 9'))
    done = call(*TINY, "--out", str(copy))
    assert done.code == 0 and "step-000002 is damaged" in done.err
    assert_same(copy, finished)


def test_a_checkpoint_of_another_model(call: Call, copy: Path) -> None:
    folder = copy / "checkpoints" / "step-000002"
    shutil.copy(SHIPPED / "tokenizer.safetensors", folder / "module.safetensors")
    marker = read_json(folder / checkpoint.MARKER)
    marker["files"]["module.safetensors"] = file_sha256(folder / "module.safetensors")
    write_json(folder / checkpoint.MARKER, marker)
    done = call(*TINY, "--out", str(copy))
    assert done.code == 1 and "step 2 is of another model or version" in complaint(done)


def test_lost_lines_of_the_log_are_said(call: Call, copy: Path) -> None:
    (copy / "metrics.jsonl").write_bytes(b'\xff\n{"step": 1}}\n[1]\n')
    done = call(*TINY, "--out", str(copy))
    assert done.code == 0 and "metrics.jsonl lacks 2 of the 2 finished steps" in done.err


def test_a_lonely_rank_is_no_launcher(call: Call, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    done = call(*TINY, "--out", str(copy), "--json")
    assert done.code == 0 and json.loads(done.out)["status"] == "complete"


def test_a_cache_that_cannot_be_written(call: Call, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = copy.parent / "file"
    file.touch()
    monkeypatch.setenv("ALIGNBENCH_CACHE", str(file))
    done = call(*TINY, "--out", str(copy))
    assert done.code == 0 and "set ALIGNBENCH_CACHE to a folder you can write to" in done.err


# --- a full disk ----------------------------------------------------------------------------------


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_in_safetensors(*_: Any, **__: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def full_log(self: driver.Driver, step: int, *_: Any) -> None:
    """Half a line arrives."""
    with (self.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')
    no_space()


@pytest.mark.parametrize(
    ("where", "name", "failure", "said"),
    [
        (checkpoint, "save_file", no_space_in_safetensors, "step-000001 cannot be written"),
        (driver.Driver, "_log", full_log, "no space left"),
        (runner, "save_file", no_space_in_safetensors, "policy.safetensors cannot be written"),
        (generated, "write_atomic", no_space, "no space left"),
        (record, "write_atomic", no_space, "run.json cannot be written"),
        (session, "write_atomic", no_space, "no space left"),
    ],
    ids=["checkpoint", "log", "export", "samples", "record", "report"],
)
def test_a_full_disk(
    call: Call, finished: Path, tmp_path: Path, where: object, name: str, failure: Any, said: str
) -> None:
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, failure)
        done = call(*TINY, "--out", str(folder))
    assert done.code == 1 and said in complaint(done) and "run the same command again" in complaint(done)
    assert not (folder / "run.json").exists() or record.read(folder).status in ("partial", "failed")
    assert call(*TINY, "--out", str(folder)).code == 0
    assert_same(folder, finished)


def test_a_full_disk_does_not_hide_behind_the_record(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nothing at all can be written any more, the first failure is the one that is told."""
    monkeypatch.setattr(checkpoint, "save_file", no_space_in_safetensors)
    monkeypatch.setattr(record, "write_atomic", no_space)
    done = call(*TINY, "--out", str(tmp_path / "run"))
    assert done.code == 1 and "step-000001 cannot be written" in complaint(done)


def test_too_little_memory_names_the_knob(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(driver.Driver, "_step", too_much)
    done = call(*TINY, "--out", str(tmp_path / "run"))
    assert done.code == 1
    assert "step 1: out of memory with train.micro_batch = 32 → --set train.micro_batch=16" in complaint(done)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (
            (generated.Sampler, "generate"),
            "out of memory while generating 500 images together → a device with more memory, or "
            "--set protocol.batch=250: another protocol",
        ),
        (
            (digits.DigitsDistribution, "measure"),
            "evaluator 'distribution-digits': out of memory with shards of",
        ),
    ],
)
def test_too_little_memory_to_evaluate(
    call: Call, copy: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[type, str], said: str
) -> None:
    def too_much(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    for name in ("samples", "metrics"):
        shutil.rmtree(copy / name)
    monkeypatch.setattr(*place, too_much)
    monkeypatch.setenv("ALIGNBENCH_CACHE", str(copy / "cache"))
    done = call(*TINY, "--out", str(copy))
    assert done.code == 1 and said in complaint(done)


# --- interrupted and killed -----------------------------------------------------------------------


def test_signals_ask_first_and_insist_then() -> None:
    before = signal.getsignal(signal.SIGINT)  # a job in the background may ignore it
    with StopOnSignal(Progress(quiet=True)) as stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("at_step", [2, 3], ids=["in it", "after it"])
def test_ctrl_c_at_the_last_step(
    call: Call, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_step: int
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
        done = call(*TINY, "--out", str(folder))
    assert done.code == 3 and "interrupted after step 2" in complaint(done)
    assert record.read(folder).status == "partial" and not (folder / "samples").exists()
    assert call(*TINY, "--out", str(folder)).code == 0
    assert_same(folder, finished)


def test_ctrl_c_elsewhere(call: Call, monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(setup, "build_model", interrupted)
        done = call(*TINY, "--out", str(copy))
    assert done.code == 3 and "finished work is kept" in complaint(done)
    monkeypatch.setattr("alignbench.cli.cards.plugins.load_registry", interrupted)
    done = call("list")
    assert done.code == 3 and complaint(done).endswith("interrupted → run the same command again")


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


def test_killed_before_there_was_a_plan(call: Call, finished: Path, tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".plan.json.99.tmp").write_text('{"id"')
    assert call(*TINY, "--out", str(tmp_path)).code == 0
    assert_same(tmp_path, finished)


def test_killed_between_checkpoint_and_export(call: Call, copy: Path, finished: Path) -> None:
    for name in ("export", "metrics", "samples"):
        shutil.rmtree(copy / name)
    (copy / "export").mkdir()
    (copy / "export" / ".policy.safetensors.tmp").write_bytes(b"half")
    assert call(*TINY, "--out", str(copy)).code == 0
    assert_same(copy, finished)


def test_killed_while_the_record_is_being_written(call: Call, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed = subprocess.run(
        [sys.executable, "-c", KILL_AT, "run.json", *TINY, "--out", str(folder)],
        capture_output=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(folder.glob(".run.json.*.tmp")) != [] and not (folder / "run.json").exists()
    assert call(*TINY, "--out", str(folder)).code == 0
    assert_same(folder, finished)


def test_the_record_says_complete_last(
    call: Call, copy: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right before it, everything else is there; killed before that, the run is not complete."""
    (copy / "report.md").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(session, "write", no_space)
        assert call(*TINY, "--out", str(copy)).code == 1
    assert (copy / "report.md").exists() and record.read(copy).status == "partial"
    assert call(*TINY, "--out", str(copy)).code == 0
    assert_same(copy, finished)


# --- what comes out -------------------------------------------------------------------------------


def in_ascii(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "alignbench", *arguments],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "ascii", **variables},
    )  # fmt: skip


def test_terminals_without_greek_letters() -> None:
    shown = in_ascii("show", "vapi", "--json", COLUMNS="20", FORCE_COLOR="1")
    assert shown.returncode == 0 and json.loads(shown.stdout)["title"] == "VA-π"
    listed = in_ascii("list", COLUMNS="0")
    assert listed.returncode == 0 and "vapi" in listed.stdout and "VA-?" in listed.stdout
    planned = in_ascii("run", "--method", "vapi", "--model", "llamagen-xxl", "--dry-run", COLUMNS="40")
    assert planned.returncode == 2 and "weights/policy" in planned.stdout


def test_json_is_alone_on_standard_output(call: Call, copy: Path) -> None:
    done = call(*TINY, "--out", str(copy), "--json")
    assert json.loads(done.out)["status"] == "complete"
    assert "score method" in done.err


def test_samples_of_two_calls_are_not_mixed(call: Call, finished: Path, tmp_path: Path) -> None:
    command = ["sample", "--model", "llamagen-tiny", "--run", str(finished), "--out", str(tmp_path / "s")]
    assert call(*command, "-n", "4").code == 0 and call(*command, "-n", "4").code == 0
    done = call(*command, "-n", "3")
    assert done.code == 2 and "holds 1 images that 3 new ones would not replace" in complaint(done)
    done = call(*command[:-3], str(tmp_path / "nowhere"), "--out", str(tmp_path / "t"))
    assert done.code == 2 and "nowhere is not a run folder" in complaint(done)


def test_foreign_files_beside_a_leaderboard(call: Call, finished: Path, tmp_path: Path) -> None:
    board = tmp_path / "board"
    assert call("leaderboard", str(finished), "--out", str(board)).code == 0
    (board / "notes.md").write_bytes(b"\xff\xfe")
    assert call("leaderboard", "--check", "--out", str(board)).code == 0
    (page,) = board.glob("digits8*.md")
    page.write_text(page.read_text().replace("VA-π", "Better"))
    done = call("leaderboard", "--check", "--out", str(board))
    assert done.code == 1 and page.name in done.out
    (kept,) = (board / "records").iterdir()
    kept.write_text("{")
    done = call("leaderboard", "--check", "--out", str(board))
    assert done.code == 2 and f"{kept} is not readable JSON" in complaint(done)
