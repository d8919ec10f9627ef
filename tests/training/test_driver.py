"""The training loop: gradients against a closed form, stopping, refusing bad numbers.

Started by itself, `python -m tests.training.test_driver OUT` trains in as many processes as torchrun has
started and saves the weights from the first.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from alignbench import api, randomness
from alignbench.config.settings import TrainConfig
from alignbench.data import stream
from alignbench.errors import RunFailed
from alignbench.progress import Progress
from alignbench.training import checkpoint
from alignbench.training.driver import Driver, Interrupted, learning_rate, parameter_groups
from alignbench.training.parallel import Parallel

STEPS = TrainConfig(steps=6, images_per_step=8, micro_batch=8, lr=0.05, schedule="linear", warmup_steps=2)


def make_line() -> nn.Linear:
    """y = w · x + b."""
    line = nn.Linear(2, 1)
    line.load_state_dict({"weight": torch.tensor([[0.5, -0.5]]), "bias": torch.zeros(1)})
    return line


class Stream:
    """Eight images whose pixels are functions of the sample number."""

    def batch(self, step: int, rank: int, world_size: int) -> api.Batch:
        index = torch.arange(8).chunk(world_size)[rank] + 8 * step
        pixels = randomness.uniforms(0, "toy-image", 0, index.tolist(), (3, 1, 2)).astype("float32")
        return api.Batch(index, api.ClassLabels(index % 3), torch.from_numpy(pixels))


@dataclass
class Regression:
    """Noise addressed by sample is what the line has to meet."""

    module: nn.Module
    poison_at: int | None = None
    updates: api.Updates = "policy"

    def collect(self, batch: api.Batch, step: int) -> api.Collected:
        assert not torch.is_grad_enabled()
        noise = randomness.uniforms(1, "toy-target", step, batch.index.tolist(), (1,)).astype("float32")
        target = torch.from_numpy(noise) * (math.nan if step == self.poison_at else 1)
        return api.Collected(
            (batch.images[:, 0, 0], target),
            metrics={"reward": -target.mean()},
            images=len(batch),
            sequences=2 * len(batch),
            reward_calls={"toy": 2 * len(batch)},
        )

    def loss(self, experience: Any) -> api.Loss:
        x, target = experience
        error = (self.module(x) - target).square().mean()
        return api.Loss(error, {"error": error.detach()})


@pytest.fixture
def parallel() -> Iterator[Parallel]:
    made = Parallel("fp32")
    yield made
    made.close()


def make_driver(
    folder: Path,
    parallel: Parallel,
    *,
    poison_at: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    checkpoint_every: int = 2,
    **changes: Any,
) -> tuple[Driver, nn.Linear]:
    config, line = replace(STEPS, **changes), make_line()
    optimizer = torch.optim.AdamW(parameter_groups(line, config.weight_decay), lr=config.lr)
    module, wrapped = parallel.prepare(line), parallel.prepare_optimizer(optimizer)
    folder.mkdir(parents=True, exist_ok=True)
    driver = Driver(
        config,
        method=Regression(module, poison_at),
        module=module,
        optimizer=wrapped,
        stream=cast(stream.Stream, Stream()),  # `batch` is all that is asked of one
        parallel=parallel,
        folder=folder,
        progress=Progress(quiet=True),
        checkpoint_every=checkpoint_every,
        stop=stop,
    )
    return driver, line


def test_one_step_is_adamw_on_the_mean_over_all_images(tmp_path: Path, parallel: Parallel) -> None:
    """Against torch's AdamW on the whole batch in one piece, whatever the micro-batch."""
    reference = make_line()
    optimizer = torch.optim.AdamW(parameter_groups(reference, 1e-4), lr=0.05, eps=1e-8)
    batch = Stream().batch(0, 0, 1)
    method = Regression(reference)
    with torch.no_grad():
        experience = method.collect(batch, 0).experience
    method.loss(experience).value.backward()
    expected_norm = math.sqrt(
        sum(float(p.grad.square().sum()) for p in reference.parameters() if p.grad is not None)
    )
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.05 * 1 / 2  # first of two warm-up steps
    optimizer.step()
    for micro_batch in (8, 3, 1):
        changes: dict[str, Any] = {"steps": 1, "micro_batch": micro_batch, "schedule": "constant"}
        driver, line = make_driver(tmp_path / str(micro_batch), parallel, **changes)
        driver.train()
        for ours, theirs in zip(line.parameters(), reference.parameters(), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)
        logged = json.loads((tmp_path / str(micro_batch) / "metrics.jsonl").read_text())
        assert logged["grad_norm"] == pytest.approx(expected_norm, rel=1e-5)
        assert logged["lr"] == 0.025


def test_nan_stops_the_run_and_keeps_the_last_good_weights(tmp_path: Path, parallel: Parallel) -> None:
    driver, line = make_driver(tmp_path, parallel, poison_at=3)
    with pytest.raises(RunFailed, match="step 4: the gradient's norm is nan") as caught:
        driver.train()
    assert "train.lr" in caught.value.fix
    state = checkpoint.load_latest(tmp_path / "checkpoints")
    assert state is not None and state.step == 2
    assert all(torch.isfinite(parameter).all() for parameter in line.parameters())


def test_a_method_that_fails_or_answers_wrongly_is_named(
    tmp_path: Path, parallel: Parallel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str, answer: Any) -> str:
        driver, _ = make_driver(tmp_path / name, parallel)
        with monkeypatch.context() as patch, pytest.raises(RunFailed) as caught:
            patch.setattr(Regression, name, answer)
            driver.train()
        return caught.value.what

    assert "method Regression failed: ZeroDivisionError" in refused("collect", lambda *_: 1 / 0)
    assert "collect returned tuple, not Collected" in refused("collect", lambda *_: ())
    assert "no Loss whose value is a scalar" in refused("loss", lambda *_: api.Loss(torch.zeros(2)))


def test_several_updates_on_one_collection(tmp_path: Path, parallel: Parallel) -> None:
    driver, line = make_driver(tmp_path / "two", parallel, steps=1, updates_per_collect=2)
    totals = driver.train()
    once, other = make_driver(tmp_path / "one", parallel, steps=1)
    once.train()
    assert totals.images == 8
    assert not torch.equal(line.weight, other.weight)


def test_learning_rate_by_hand() -> None:
    config = TrainConfig(steps=10, lr=1.0, warmup_steps=2, schedule="linear")
    assert [learning_rate(config, step) for step in (0, 1, 2, 6, 9)] == [0.5, 1.0, 1.0, 0.5, 0.125]
    cosine = TrainConfig(steps=10, lr=1.0, schedule="cosine")
    assert learning_rate(cosine, 5) == pytest.approx(0.5)
    assert learning_rate(TrainConfig(steps=10, lr=3.0), 9) == 3.0


def test_vectors_do_not_decay() -> None:
    decayed, free = parameter_groups(make_line(), 0.1)
    assert [p.dim() for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.1
    assert [p.dim() for p in free["params"]] == [1] and free["weight_decay"] == 0.0


def test_without_checkpoints_nothing_is_kept_but_the_logs(tmp_path: Path, parallel: Parallel) -> None:
    driver, _ = make_driver(tmp_path, parallel, checkpoint_every=0)
    driver.train()
    kept = ["metrics.jsonl", "starts.json", "timing.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    asked = iter([False, True])
    stopped, _ = make_driver(tmp_path / "stopped", parallel, stop=lambda: next(asked), checkpoint_every=0)
    with pytest.raises(Interrupted):
        stopped.train()
    assert (tmp_path / "stopped" / "checkpoints" / "step-000002" / "DONE.json").exists()


def test_every_start_that_went_on_is_counted(tmp_path: Path, parallel: Parallel) -> None:
    """Whether or not it reached a checkpoint of its own."""
    for first_bad in (0, 1, 3, 3, 2):  # the checkpoint of step 2 is reached in the third start
        with pytest.raises(RunFailed):
            make_driver(tmp_path, parallel, poison_at=first_bad)[0].train()
    assert make_driver(tmp_path, parallel)[0].train().resumed == 5
    (tmp_path / "starts.json").write_text("{broken")
    assert make_driver(tmp_path, parallel)[0].train().resumed == 6, "a checkpoint knows of those before it"
    assert make_driver(tmp_path / "new", parallel)[0].train().resumed == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    OUT, RANKS = Path(sys.argv[1]), Parallel("fp32")
    DRIVER, LINE = make_driver(OUT, RANKS, micro_batch=2)
    TOTALS = DRIVER.train()
    if RANKS.is_main:
        torch.save({"weights": LINE.state_dict(), "sequences": TOTALS.sequences}, OUT / "out.pt")
    RANKS.close()
