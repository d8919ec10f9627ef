"""The main job end to end on the embedded default: complete, repeated, killed and interrupted."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.helpers.command import Done, alignbench
from tests.runs.test_evaluate import record

TINY = ["run", "--method", "vapi", "--model", "llamagen-tiny", "--checkpoint-every", "5"]
SHORT = [
    "--set", "train.images_per_step=16",
    "--set", "protocol.samples=60", "--set", "protocol.seeds=0,1", "--set", "protocol.settings=t1,cfg2",
]  # fmt: skip


def arguments(out: Path, *more: str, steps: int) -> list[str]:
    return [*TINY, *SHORT, "--steps", str(steps), "--out", str(out), *more]


def run(out: Path, *more: str, steps: int = 20) -> Done:
    return alignbench(*arguments(out, *more, steps=steps))


def start(out: Path) -> subprocess.Popen[str]:
    """The same in a process of its own, once it has logged a step."""
    command = [sys.executable, "-m", "alignbench", *arguments(out, steps=20)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )  # fmt: skip
    while process.poll() is None and not logged(out):
        time.sleep(0.005)
    return process


def logged(folder: Path) -> int:
    """Steps in the log."""
    log = folder / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def same_bytes(first: Path, second: Path, name: str) -> None:
    assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNBENCH_CACHE", str(folder.parent / "cache"))
        done = run(folder)
    assert done.returncode == 0, done.stderr
    assert "VA-π" in done.stdout and "base" in done.stdout
    return folder


def test_the_run_folder_holds_everything(finished: Path) -> None:
    for name in ("run.json", "plan.json", "metrics.jsonl", "report.md", "samples.png"):
        assert (finished / name).stat().st_size > 0
    assert (finished / "checkpoints" / "step-000020" / "DONE.json").exists()
    exported = load_file(finished / "export" / "policy.safetensors")
    assert exported.keys() >= {"tok_embeddings.weight", "output.weight"}
    with Image.open(finished / "samples.png") as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=1 << 20)
        assert colours is not None and len(colours) > 50  # not blank
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    logs = {"reward", "loss", "grad_norm", "lr", "pixel", "perceptual", "flat_groups", "entropy"}
    assert logs <= set(lines[0])


def test_the_record_says_how_it_was_made(finished: Path) -> None:
    made = record(finished)
    assert made["status"] == "complete" and made["leaderboard"] is True
    assert made["train"]["images"] == 320 and made["train"]["sequences"] == 2560
    assert made["train"]["reward_calls"] == {"pixel-mse": 2560, "perceptual-digits": 2560}
    assert made["data"]["count"] == 1097
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert made["train"]["trends"].keys() == lines[0].keys() - {"step", "lr"}
    rewards = [line["reward"] for line in lines]
    assert made["train"]["trends"]["reward"]["last"] == pytest.approx(sum(rewards[-2:]) / 2, rel=1e-5)
    places = {(result["subject"], result["setting"]["name"]) for result in made["results"]}
    assert places == {(subject, setting) for subject in ("base", "method") for setting in ("t1", "cfg2")}
    for result in made["results"]:
        assert result["n"] == 60 and result["seeds"] == [0, 1]
        assert {"fd-digits", "fd-pixels", "precision", "recall"} <= set(result["metrics"])
        assert not {"fid", "frechet_inception_distance"} & set(result["metrics"])
    assert made["changed"]["train.steps"] == {"value": 20, "origin": "--steps"}


def test_running_again_does_nothing_and_another_plan_may_not_use_the_folder(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.json")}
    done = run(finished)
    assert done.returncode == 0 and "nothing to do" in done.stderr
    done = run(finished, "--seed", "1")
    assert done.returncode == 2
    assert "already holds another run, vapi-llamagen-tiny-s0-" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.json")} == before


def test_kill_and_resume_is_bit_identical(finished: Path, tmp_path: Path) -> None:
    """SIGKILL at a random step, then `--resume`: same weights, same metrics, same scores.

    While the process lives, and just stands still, nobody else may use its folder.
    """
    folder = tmp_path / "killed"
    process = start(folder)
    target = random.randrange(1, 17)
    while process.poll() is None and logged(folder) < target:
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    second = run(folder)
    process.kill()
    process.communicate()
    assert not (folder / "export").exists(), "killed too late to test anything"
    assert second.returncode == 2 and "another process is working in" in second.stderr
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"step": 4, "rew')  # the line it was writing
    done = run(folder, "--resume")
    assert done.returncode == 0, done.stderr
    same_bytes(finished, folder, "metrics.jsonl")
    same_bytes(finished, folder, "export/policy.safetensors")
    ours, theirs = record(folder), record(finished)
    assert ours["exports"] == theirs["exports"]
    assert [r["metrics"] for r in ours["results"]] == [r["metrics"] for r in theirs["results"]]
    for total in ("images", "sequences", "reward_calls"):
        assert ours["train"][total] == theirs["train"][total]


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    process = start(folder)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "run the same command again to continue" in errors
    assert record(folder)["status"] == "partial"
    assert run(folder).returncode == 0
    assert record(folder)["train"]["resumed"] == 1
    same_bytes(finished, folder, "export/policy.safetensors")
    same_bytes(finished, folder, "metrics.jsonl")


def test_nan_is_a_failed_run(tmp_path: Path) -> None:
    broken = ["--set", "train.lr=1e30", "--set", "train.warmup_steps=0", "--set", "train.grad_clip=0"]
    done = run(tmp_path / "nan", *broken)
    assert done.returncode == 1 and "the gradient's norm is" in done.stderr
    assert record(tmp_path / "nan")["status"] == "failed"


def test_synthetic_data_and_random_weights_are_never_ranked(tmp_path: Path) -> None:
    done = run(tmp_path / "x", "--data", "synthetic", "--set", "model.weights=random", "--no-eval", steps=2)
    assert done.returncode == 0, done.stderr
    made = record(tmp_path / "x")
    assert made["leaderboard"] is False and made["model"]["random_weights"] is True


def test_a_lost_evaluation_is_made_again_without_training(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    steps, results = (folder / "timing.jsonl").read_bytes(), record(folder)["results"]
    lost = [*(folder / "metrics").glob("method-*"), *(folder / "samples").rglob("*.npz")]
    for path in [folder / "run.json", *lost]:
        path.unlink()
    done = run(folder)
    assert done.returncode == 0, done.stderr
    assert lost and "resuming" not in done.stderr and (folder / "timing.jsonl").read_bytes() == steps
    assert [r["metrics"] for r in record(folder)["results"]] == [r["metrics"] for r in results]
