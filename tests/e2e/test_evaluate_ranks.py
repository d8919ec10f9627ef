"""Processes that evaluate together give the numbers of one, whichever of them is killed or late."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from alignbench.record import Result, read

ROOT = Path(__file__).parents[2]
ARGUMENTS = [
    "evaluate", "--model", "llamagen-tiny", "--set", "protocol.samples=1100", "--set", "protocol.seeds=0",
    "--log-samples",
]  # fmt: skip
MISHAP = """
import os, pathlib, signal, time
from alignbench.cli.main import main
from alignbench.evaluation.features import FeatureStore
from alignbench.runs import together

together.WORTH = 0  # resamples are shared however little they cost
write, once = FeatureStore.write, pathlib.Path(os.environ["MISHAP_DONE"])

def dying(*arguments, **more):
    if os.environ["RANK"] == os.environ["MISHAP_RANK"] and not once.exists():
        once.touch()
        exec(os.environ["MISHAP"])
    write(*arguments, **more)

FeatureStore.write = dying
main()
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def environment(folder: Path, mishap: str, rank: int) -> dict[str, str]:
    (folder / "mishap.py").write_text(MISHAP)
    said = {"MISHAP": mishap, "MISHAP_RANK": str(rank), "MISHAP_DONE": str(folder / "once")}
    return {**os.environ, **said, "ALIGNBENCH_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}


def two(folder: Path, mishap: str, rank: int, *launcher: str) -> subprocess.CompletedProcess[str]:
    """Evaluate by two processes under torchrun, to one of which something happens once."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*start, *launcher, str(folder / "mishap.py"), *ARGUMENTS, "--out", str(folder / "run")],
        capture_output=True,
        text=True,
        timeout=180,
        env=environment(folder, mishap, rank),
    )


def numbers(folder: Path) -> list[object]:
    """Everything that is scored, and the log of the images."""
    record = read(folder / "run")
    assert record.status == "complete"
    timed = {name for name in Result.model_fields if "seconds" in name}
    found: list[object] = [result.model_dump(mode="json", exclude=timed) for result in record.results]
    logs = sorted((folder / "run" / "sample-log").glob("*.jsonl"))
    assert found and logs
    return [*found, *(path.read_bytes() for path in logs)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    folder = tmp_path_factory.mktemp("alone")
    command = [sys.executable, "-m", "alignbench", *ARGUMENTS, "--out", str(folder / "run")]
    subprocess.run(command, check=True, capture_output=True, env=environment(folder, "", 9))
    return numbers(folder)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_costs_a_repetition_of_the_command(
    rank: int, tmp_path: Path, alone: list[object]
) -> None:
    done = two(tmp_path, KILL, rank)
    assert done.returncode != 0 and (tmp_path / "once").exists()
    done = two(tmp_path, KILL, rank)
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path) == alone


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_all_again(rank: int, tmp_path: Path, alone: list[object]) -> None:
    done = two(tmp_path, KILL, rank, "--max-restarts", "2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "once").exists() and numbers(tmp_path) == alone


@pytest.mark.slow
@pytest.mark.parametrize("mishap", ["killed", "late"])
def test_without_a_launcher_the_first_process_goes_on(
    mishap: str, tmp_path: Path, alone: list[object]
) -> None:
    """As under srun: the second one dies, or comes back when the first, and the store with it, is gone."""
    gone = tmp_path / "gone"
    late = f"while not pathlib.Path({str(gone)!r}).exists(): time.sleep(0.1)"
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    given = {**environment(tmp_path, KILL if mishap == "killed" else late, 1), **group}
    file = tmp_path / "mishap.py"
    file.write_text(
        file.read_text().replace("together.WORTH = 0", "together.PARTING = 1; together.WORTH = 0")
    )
    first, second = (
        subprocess.Popen(
            [sys.executable, str(file), *ARGUMENTS, "--out", str(tmp_path / "run")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**given, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    )
    try:
        said = first.communicate(timeout=180)[1]
        assert first.returncode == 0, said
        gone.touch()
        said = second.communicate(timeout=60)[1]
        assert second.returncode == (0 if mishap == "late" else -9), said
    finally:
        for process in (first, second):
            process.kill()
    assert (tmp_path / "once").exists() and numbers(tmp_path) == alone
