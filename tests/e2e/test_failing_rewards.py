"""Rewards that fail: a run trains on real scores or stops, names the reward, and can go on later."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import alignbench as ab
from alignbench.api import Scores
from alignbench.config.plan import Job
from alignbench.errors import RunFailed, UserError
from alignbench.progress import Progress
from alignbench.record import read

QUIET = Progress(quiet=True)
STATE: dict[str, Any] = {"calls": 0, "answer": None}
"""What the reward below does: its scores are changed by `answer` from the third call on."""


@ab.reward
def moody(images: torch.Tensor) -> Any:
    """Brightness, while it is in the mood."""
    STATE["calls"] += 1
    values = images.mean(dim=(1, 2, 3))
    return values if STATE["answer"] is None or STATE["calls"] <= 2 else STATE["answer"](values)


def job(out: Path, reward: Any = moody, **options: Any) -> Job:
    STATE["calls"] = 0
    values: dict[str, Any] = {
        "method.rewards": f"{reward.__name__.lower()}@1",
        "train.images_per_step": 8,
        "method.group_size": 4,
    } | options
    return ab.plan(
        "ar-grpo", "llamagen-tiny", steps=4, evaluates=False, out=out, options=values, plugins=[reward]
    )


def test_a_reward_that_dies_stops_the_run_which_then_ends_as_if_undisturbed(tmp_path: Path) -> None:
    """Masked scores would train on nothing and still call the run complete."""
    STATE["answer"] = None
    ab.run(job(tmp_path / "whole"), progress=QUIET)
    STATE["answer"] = lambda values: values * torch.nan
    with pytest.raises(
        RunFailed, match="step 3: reward 'moody' gave no valid score for 32 of 32 images"
    ) as caught:
        ab.run(job(tmp_path / "run"), progress=QUIET)
    assert "run the same command again" in caught.value.fix
    assert read(tmp_path / "run").status == "failed"
    assert (tmp_path / "run" / "checkpoints" / "step-000002").is_dir(), "what was trained is kept"
    STATE["answer"] = None
    record = ab.run(job(tmp_path / "run"), progress=QUIET)
    assert (
        record.status == "complete"
        and record.train is not None
        and record.train.reward_calls == {"moody": 128}
    )
    for name in ("export/policy.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_few_failures_are_counted_and_many_stop_the_run(tmp_path: Path) -> None:
    def third(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values[:-3], values[-3:] * torch.nan])  # 3 of 32

    STATE["answer"] = third
    record = ab.run(job(tmp_path / "few"), progress=QUIET)
    assert record.train is not None and record.train.reward_failures == {"moody": 6}
    assert read(tmp_path / "few").train == record.train
    with pytest.raises(RunFailed, match="for 3 of 32 images"):
        ab.run(job(tmp_path / "strict", **{"train.failed_rewards": 0.05}), progress=QUIET)


class Opaque:
    """A reward whose answer is not what the interface asks for."""

    card: ClassVar = {
        "kind": "reward",
        "title": "Opaque",
        "summary": "Nobody knows.",
        "direction": "higher",
        "scope": "image",
        "differentiable": False,
    }
    answer: Callable[[torch.Tensor], Any]

    def __init__(self, device: torch.device) -> None:
        pass

    def score(self, request: Any) -> Any:
        return type(self).answer(request.images.mean(dim=(1, 2, 3)))


def leave(values: torch.Tensor) -> None:
    sys.exit(0)


def cancel(values: torch.Tensor) -> None:
    raise asyncio.CancelledError


class Speechless(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def speechless(values: torch.Tensor) -> None:
    raise Speechless


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda v: Scores(v[:, None], torch.ones_like(v, dtype=torch.bool)), r"\[32, 1\] for 32 images"),
        (lambda v: Scores(v.mean(), torch.ones_like(v, dtype=torch.bool)), r"\[\] for 32 images"),
        (lambda v: Scores(v, torch.ones_like(v)), r"`valid` is not \[32\] bool"),
        (lambda v: Scores(v.numpy(), np.ones(32, bool)), "ndarray"),  # type: ignore[arg-type]
        (lambda v: v, "Tensor, not Scores"),
        (lambda v: 1 / 0, r"ZeroDivisionError: division by zero \(.*test_failing_rewards.py:\d+\)"),
        (leave, "SystemExit: 0"),
        (cancel, "CancelledError"),
        (speechless, r"Speechless \("),
    ],
)
def test_a_wrong_answer_names_the_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[[torch.Tensor], Any], reason: str
) -> None:
    monkeypatch.setattr(Opaque, "answer", staticmethod(answer), raising=False)
    with pytest.raises(RunFailed, match=f"reward 'opaque' failed: .*{reason}"):
        ab.run(job(tmp_path / "run", Opaque), progress=QUIET)
    assert read(tmp_path / "run").status == "failed"


def test_a_constructor_that_does_not_fit_names_the_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Opaque, "__init__", lambda self: None)
    with pytest.raises(RunFailed, match="reward 'opaque' failed: TypeError"):
        ab.run(job(tmp_path / "run", Opaque), progress=QUIET)


def test_a_refusal_in_the_middle_of_training_is_a_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers 400 does so: not "nothing was started", and the record says it."""

    def refuse(values: torch.Tensor) -> None:
        raise UserError("refused")

    monkeypatch.setattr(Opaque, "answer", staticmethod(refuse), raising=False)
    with pytest.raises(RunFailed, match="refused"):
        ab.run(job(tmp_path / "run", Opaque), progress=QUIET)
    assert read(tmp_path / "run").status == "failed"
