"""The backbone of docs/backbones.md, word for word: every method trains it, and it is aligned."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from alignbench.api import ClassLabels, Sampling
from alignbench.registry import interfaces, plugins
from tests.helpers.command import alignbench
from tests.runs.test_evaluate import record

TEXT = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8")
METHODS = ["vapi", "reward-only", "ste", "tokenizer-decoder", "ar-grpo", "ntp", "raft", "pairs"]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    file = tmp_path_factory.mktemp("backbone") / "gpt2_backbone.py"
    file.write_text(code, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def backbone(plugin: Path) -> Any:
    registry = plugins.load_registry([plugin])
    return interfaces.load(registry, "models", "gpt2-digits")(registry.model("gpt2-digits"), None, seed=0)


def test_no_logit_knows_the_token_it_scores(backbone: Any) -> None:
    labels, tokens = ClassLabels(torch.tensor([3, 7])), torch.randint(128, (2, 16))
    before = backbone.logits(labels, tokens[:, :-1])
    assert before.shape == (2, 16, 128)
    for i in (0, 6, 14):
        changed = tokens.clone()
        changed[:, i] = (changed[:, i] + 1) % 128
        after = backbone.logits(labels, changed[:, :-1])
        assert torch.equal(after[:, : i + 1], before[:, : i + 1])
        assert not torch.allclose(after[:, i + 1 :], before[:, i + 1 :])


@pytest.mark.parametrize("interval", [-1, 4])
def test_cached_sampling_equals_teacher_forcing(backbone: Any, interval: int) -> None:
    labels, uniforms = ClassLabels(torch.tensor([0, 9, 4])), torch.zeros(3, 16)
    sampling = Sampling(greedy=True, cfg_scale=2.0, cfg_interval=interval)
    drawn = backbone.generate(labels, uniforms, sampling).tokens
    logits = backbone.sampled_logits(labels, drawn, sampling)
    assert torch.equal(logits.argmax(dim=-1), drawn)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_it(plugin: Path, method: str, tmp_path: Path) -> None:
    arguments = ["--model", "gpt2-digits", "--set", "model.weights=random", "--no-eval", "--steps", "2"]
    if method in ("ar-grpo", "raft", "pairs"):
        arguments += ["--set", "method.rewards=class-logprob-digits@1"]
    elif method != "ntp":
        arguments += ["--set", "method.perceptual=none", "--set", "method.perceptual_weight=0"]
    out = tmp_path / "run"
    small = ["--set", "train.images_per_step=4", "--set", "train.micro_batch=4"]
    done = alignbench("run", "--plugin", plugin, "--method", method, *arguments, *small, "--out", out)
    assert done.returncode == 0, done.stderr
    found = record(out)
    assert found["status"] == "complete" and found["model"]["trainable_parameters"] > 0
