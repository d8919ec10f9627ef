"""What only a CUDA device can show. Skipped, with the reason printed, where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from alignbench import randomness
from alignbench.api import ClassLabels, Sampling
from alignbench.backbones.llamagen import build
from alignbench.registry.catalogue import Catalogue

pytestmark = pytest.mark.gpu


def test_logits_and_greedy_tokens_agree_with_the_cpu() -> None:
    card = Catalogue.default().model("llamagen-tiny")
    models = {device: build(card, None, seed=3, device="cpu") for device in ("cpu", "cuda")}
    for device, model in models.items():
        model.policy.to(device)
        model.tokenizer.to(device)
    labels = torch.arange(10)
    context = torch.from_numpy(randomness.generator(0, "gpu-test").integers(0, 128, (10, 15)))
    logits = {
        device: model.logits(ClassLabels(labels.to(device)), context.to(device)).detach().cpu()
        for device, model in models.items()
    }
    assert torch.allclose(logits["cpu"], logits["cuda"], atol=1e-3)
    uniforms = torch.from_numpy(randomness.uniforms(0, "gpu-test", 0, range(10), (16,)))
    greedy = Sampling(greedy=True, cfg_scale=2.0)
    tokens = {
        device: model.generate(ClassLabels(labels.to(device)), uniforms.to(device), greedy).tokens.cpu()
        for device, model in models.items()
    }
    assert float((tokens["cpu"] != tokens["cuda"]).float().mean()) < 0.05  # rare flips at near-ties


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_short_run_trains(tmp_path: Path, precision: str) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "alignbench", "run", "--method", "vapi", "--model", "llamagen-tiny",
            "--steps", "5", "--set", f"train.precision={precision}", "--set", "protocol.samples=100",
            "--set", "protocol.seeds=0", "--set", "protocol.settings=t1", "--out", str(tmp_path / "run"),
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["train"]["device"] != "CPU" and record["train"]["peak_memory_gib"] > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # Rollout and update run the same shapes, so even bf16 ratios stay close to 1 on policy.
    assert max(line["ratio_deviation"] for line in lines) < 1e-2
    assert np.isfinite([line["loss"] for line in lines]).all()
