"""Two processes give what one gives, and the run command works under torchrun."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
def test_the_driver_gives_the_same_at_one_and_two_ranks(tmp_path: Path) -> None:
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        out.mkdir()
        start = TORCHRUN if ranks == 2 else [sys.executable]
        subprocess.run(
            [*start, "-m", "tests.training.test_driver", str(out)], check=True, cwd=ROOT, capture_output=True
        )
    one, two = (torch.load(tmp_path / str(ranks) / "out.pt") for ranks in (1, 2))
    for name, value in one["weights"].items():
        assert torch.allclose(value, two["weights"][name], atol=1e-6)
    assert one["sequences"] == two["sequences"]
    logs = [(tmp_path / str(ranks) / "metrics.jsonl").read_text().splitlines() for ranks in (1, 2)]
    for first, second in zip(*logs, strict=True):
        for name, value in json.loads(first).items():
            assert abs(value - json.loads(second)[name]) < 1e-5, name


@pytest.mark.slow
def test_run_under_torchrun_equals_one_process(tmp_path: Path) -> None:
    """Also where each process has a cache of its own, as nodes may."""
    arguments = [
        "-m", "alignbench", "run", "--method", "vapi", "--model", "llamagen-tiny", "--steps", "4",
        "--set", "protocol.samples=1100", "--set", "protocol.seeds=0", "--set", "protocol.settings=t1",
        "--set", "train.micro_batch=16", "--set", "method.advantage_std=batch", "--set", "method.redraws=1",
        "--log-samples",
    ]  # fmt: skip
    own = ["--no-python", "bash", "-c", 'ALIGNBENCH_CACHE+=$RANK exec "$0" "$@"', sys.executable]
    for ranks, start in ((1, [sys.executable]), (2, [*TORCHRUN, *own])):
        done = subprocess.run(
            [*start, *arguments, "--out", str(tmp_path / str(ranks))],
            capture_output=True,
            text=True,
            env={**os.environ, "ALIGNBENCH_CACHE": str(tmp_path / f"cache-{ranks}")},
        )
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / str(ranks) / "export" / "policy.safetensors") for ranks in (1, 2))
    for name, value in one.items():
        # AdamW at a rate of 2e-3 magnifies the rounding of a sum taken in another order.
        assert torch.allclose(value, two[name], atol=1e-4), name
    records = [json.loads((tmp_path / str(ranks) / "run.json").read_text()) for ranks in (1, 2)]
    assert [record["train"]["world_size"] for record in records] == [1, 2]
    assert records[0]["train"]["sequences"] == records[1]["train"]["sequences"]
    # The untouched base: three shards sampled and measured by one process, or by two.
    base = [record["results"][0] for record in records]
    assert base[0]["subject"] == base[1]["subject"] == "base" and base[0]["n"] == 1100
    assert base[0]["metrics"] == base[1]["metrics"]
    logs = [(tmp_path / str(ranks) / "sample-log" / "base-t1-seed-0.jsonl").read_bytes() for ranks in (1, 2)]
    assert logs[0] == logs[1] and logs[0].count(b"\n") == 1101
    assert (tmp_path / "cache-20").is_dir() and (tmp_path / "cache-21").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llamagen-tiny", "janus-tiny"])
def test_an_adapter_trained_by_two_is_that_trained_by_one(model: str, tmp_path: Path) -> None:
    """AR-GRPO with a divergence: the same draws, updates and merged weights within 1e-5 after five steps."""
    pytest.importorskip("peft")
    more = ["--set", "model.weights=random"] if model == "janus-tiny" else []
    arguments = [
        "run", "--method", "ar-grpo", "--model", model, "--steps", "5", "--no-eval", *more,
        "--set", "train.adapter=lora", "--set", "train.images_per_step=8", "--set", "train.micro_batch=4",
        "--set", "method.group_size=4", "--set", "method.kl_weight=0.1",
    ]  # fmt: skip
    for ranks, start in ((1, [sys.executable]), (2, TORCHRUN)):
        command = [*start, "-m", "alignbench", *arguments, "--out", str(tmp_path / str(ranks))]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for file in ("policy.safetensors", "adapter/adapter_model.safetensors"):
        one, two = (load_file(tmp_path / str(ranks) / "export" / file) for ranks in (1, 2))
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert torch.allclose(value, two[name], rtol=0, atol=1e-5), (file, name)
    first, second = (json.loads((tmp_path / str(ranks) / "run.json").read_text()) for ranks in (1, 2))
    assert first["train"]["tokens"] == second["train"]["tokens"] > 0


# --- one process of two goes wrong ----------------------------------------------------------------

MISHAP = """
import os, pathlib, signal
import torch
import alignbench

CALLS = {"made": 0}
if os.environ["RANK"] == "1" and "ELSEWHERE" in os.environ:
    os.chdir(os.environ["ELSEWHERE"])

@alignbench.reward
def mishap(images):
    \"\"\"Brightness; in the second process, at its second call, what the environment says.\"\"\"
    CALLS["made"] += 1
    once = pathlib.Path(os.environ["MISHAP_DONE"])
    if CALLS["made"] == 2 and os.environ["RANK"] == "1" and not once.exists():
        once.touch()
        exec(os.environ["MISHAP"])
    return images.mean(dim=(1, 2, 3))
"""


def two_ranks(
    folder: Path, mishap: str, *launcher: str, start: Sequence[str] = TORCHRUN, more: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run AR-GRPO on two processes, in the second of which something happens once."""
    plugin = folder / "mishap.py"
    plugin.write_text(MISHAP)
    arguments = [
        "run", "--method", "ar-grpo", "--model", "llamagen-tiny", "--steps", "3", "--no-eval",
        "--plugin", str(plugin), "--set", "method.rewards=mishap", "--set", "method.group_size=2",
        "--set", "train.images_per_step=4", "--out", "run", *more,
    ]  # fmt: skip
    return subprocess.run(
        [*start, *launcher, "-m", "alignbench", *arguments, *(["--nproc", "2"] if start != TORCHRUN else [])],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MISHAP": mishap, "MISHAP_DONE": str(folder / "done")},
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert two_ranks(folder, "pass").returncode == 0
    return (folder / "run" / "export" / "policy.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "full"])
def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path: Path, shard: str) -> None:
    """Also where checkpoints are written behind training, in either form; going on is exact."""
    way = ["--set", f"train.shard={shard}", "--checkpoint-every", "1"]
    behind = [*way, "--set", "train.async_checkpoint=true"]
    (tmp_path / "whole").mkdir()
    assert two_ranks(tmp_path / "whole", "pass", more=way).returncode == 0
    undisturbed = (tmp_path / "whole" / "run" / "export" / "policy.safetensors").read_bytes()
    done = two_ranks(tmp_path, "os.kill(os.getpid(), signal.SIGTERM)", more=behind)
    assert "interrupted after step 2" in done.stderr and "exitcode  : 3" in done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "partial"
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {"step-000001", "step-000002"}, "whole, and nothing beside them"
    assert two_ranks(tmp_path, "pass", more=behind).returncode == 0
    assert (tmp_path / "run" / "export" / "policy.safetensors").read_bytes() == undisturbed


WATCHED = """
import os
import alignbench
from alignbench import files
from alignbench.data import encoded

@alignbench.reward
def unused(images):
    \"\"\"Makes this file a plug-in.\"\"\"

LOOK, HASH = encoded.decode_cropped, files.file_sha256

def watched(data, size, ignored=None):
    if ignored is not None:  # when the data set is opened
        with open(os.environ["LOOKS"], "a") as log:
            log.write(os.environ["RANK"])
    return LOOK(data, size, ignored)

def hashed(path):
    if "weights" in path.parts:  # not checkpoints and exports
        with open(os.environ["LOOKS"] + "-hashed", "a") as log:
            log.write(path.name + " ")
    return HASH(path)

encoded.decode_cropped, files.file_sha256 = watched, hashed
"""


@pytest.mark.slow
def test_one_process_reads_weights_and_images_and_the_other_takes_its_word(tmp_path: Path) -> None:
    (tmp_path / "watched.py").write_text(WATCHED)
    for number in range(20):
        path = tmp_path / "images" / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    arguments = [
        "run", "--method", "ntp", "--model", "llamagen-tiny", "--steps", "1", "--no-eval", "--data", "folder",
        "--set", f"data.root={tmp_path / 'images'}", "--plugin", str(tmp_path / "watched.py"),
        "--set", "train.images_per_step=2", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    looks = tmp_path / "looks"
    env = {**os.environ, "LOOKS": str(looks), "ALIGNBENCH_CACHE": str(tmp_path / "cache")}

    def run() -> subprocess.CompletedProcess[str]:
        command = [*TORCHRUN, "-m", "alignbench", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)

    done = run()
    assert done.returncode == 0 and looks.read_text() == "0" * 20, done.stderr
    hashed = (tmp_path / "looks-hashed").read_text().split()
    assert len(hashed) == len({*hashed}) == 2, "policy and tokenizer, by either process"
    shutil.rmtree(tmp_path / "run")
    for path in (tmp_path / "images").rglob("*.png"):
        path.write_bytes(b"no image")
    done = run()
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("alignbench: "))
    assert done.returncode != 0 and "process 0" in said and "none of 20 images can be read" in said, said


@pytest.mark.slow
@pytest.mark.parametrize("mishap", ["1 / 0", "os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)"])
def test_a_process_that_ends_takes_the_other_along_in_one_line(
    tmp_path: Path, undisturbed: bytes, mishap: str
) -> None:
    done = two_ranks(tmp_path, mishap)
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("alignbench: "))
    who, said = "process 0", "the exchange with the other processes of this run broke"
    if mishap == "1 / 0":
        who, said = "process 1", "reward 'mishap' failed: ZeroDivisionError"
        assert f"RunFailed: {said}" in done.stderr, "torchrun's report has it, too"
    assert line.startswith(f"alignbench: {who} on {socket.gethostname()}: {said}"), done.stderr
    assert done.returncode != 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    assert two_ranks(tmp_path, "pass").returncode == 0
    assert (tmp_path / "run" / "export" / "policy.safetensors").read_bytes() == undisturbed


@pytest.mark.slow
def test_torchrun_restarts_a_run_by_itself(tmp_path: Path, undisturbed: bytes) -> None:
    done = two_ranks(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", "--max-restarts", "2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "export" / "policy.safetensors").read_bytes() == undisturbed


ENDS = [
    ("os.kill(os.getpid(), signal.SIGTERM)", 3, "run the same command again"),
    ("1 / 0", 1, "reward 'mishap' failed: ZeroDivisionError"),
    ("os.kill(os.getpid(), signal.SIGKILL)", 1, "run the same command again"),
    ("pass", 0, ""),
]


@pytest.mark.slow
def test_a_process_with_another_folder_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("ELSEWHERE", str(elsewhere))
    done = two_ranks(tmp_path, "pass", start=[sys.executable])
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("alignbench: "))
    host = socket.gethostname()
    assert f"process 1 on {host} cannot see the run folder {tmp_path / 'run'} of process 0" in line
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "run").exists() and not [*elsewhere.iterdir()], "nothing stays"


@pytest.mark.slow
@pytest.mark.parametrize(("mishap", "status", "said"), ENDS)
def test_nproc_ends_as_one_process_does(tmp_path: Path, mishap: str, status: int, said: str) -> None:
    done = two_ranks(tmp_path, mishap, start=[sys.executable])
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    assert (said in done.stderr) if status else ("alignbench: " not in done.stderr), done.stderr
