"""Two processes give what one gives, and the run command works under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


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


def test_run_under_torchrun_equals_one_process(tmp_path: Path) -> None:
    arguments = [
        "-m", "alignbench", "run", "--method", "vapi", "--model", "llamagen-tiny", "--steps", "4",
        "--set", "protocol.samples=1100", "--set", "protocol.seeds=0", "--set", "protocol.settings=t1",
        "--set", "train.micro_batch=16",
    ]  # fmt: skip
    for ranks, start in ((1, [sys.executable]), (2, TORCHRUN)):
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
