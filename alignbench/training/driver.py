"""The one training loop. It knows no method, no model and no metric by name.

    for each step:  which images (arithmetic on the step) → collect → loss → backward → clip → update

Rows of a leaderboard may differ in nothing but the method, so everything else lives here once.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignbench.api import Batch, Collected, Loss, Method
from alignbench.config.settings import TrainConfig
from alignbench.data.stream import Stream
from alignbench.errors import RunFailed, failure_of, out_of_memory_as
from alignbench.files import read_json, write_atomic, write_json
from alignbench.progress import Progress
from alignbench.training import checkpoint
from alignbench.training.pace import Pace
from alignbench.training.parallel import Parallel
from alignbench.training.totals import Totals, complete, costs_of, load_state, state_of

STOP = "stop"
"""Name under which ranks tell each other, among a step's numbers, that they were asked to stop."""
STARTS = "starts.json"
"""In the run folder: how often the training was started."""


class Interrupted(Exception):
    """Ctrl-C: the step was finished and a checkpoint written."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"stopped after step {step}")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters for AdamW as LlamaGen does: matrices and embeddings decay, vectors do not."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of step `step` (0-based): linear warm-up, then the schedule down to 0 at the end."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    past = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.lr * ((1 - past) if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * past)))


@dataclass(eq=False)
class Driver:
    """Trains one module with one method.

    Args:
        folder: run folder; `metrics.jsonl`, `timing.jsonl`, `starts.json` and `checkpoints/` go there.
        checkpoint_every: steps between two checkpoints; 0: none, unless the run is stopped.
        stop: asked after every step; True on any rank ends the run with a checkpoint.
        after_step: told of every logged step, with its numbers, on the first process; not training time.
    """

    config: TrainConfig
    _: KW_ONLY
    method: Method
    module: nn.Module
    optimizer: torch.optim.Optimizer
    stream: Stream
    parallel: Parallel
    folder: Path
    progress: Progress
    checkpoint_every: int
    stop: Callable[[], bool] = lambda: False
    after_step: Callable[[int, Mapping[str, float]], None] = lambda step, numbers: None
    totals: Totals = field(default_factory=Totals, init=False)
    _stopping: bool = field(default=False, init=False)
    _pace: Pace = field(init=False)
    _paces: dict[str, Any] = field(default_factory=dict, init=False)
    """Of the ranks in the last step, for the log."""

    def train(self) -> Totals:
        """Train from the last checkpoint to the end.

        Raises:
            RunFailed: the loss or a gradient is not finite, or the disk is full.
            Interrupted: `stop` said so; a checkpoint holds the finished steps.
        """
        first = self._resume()
        self._pace = Pace(self.parallel, self.progress.say)
        writer = self.parallel.writer
        with writer.finishing(), self.progress.stage("train", self.config.steps, done=first) as stage:
            for step in range(first, self.config.steps):
                started = time.monotonic()
                numbers = self._guarded_step(step)
                writer.wait(only_if_done=True)
                seconds = time.monotonic() - started
                self.totals.seconds += seconds
                if self.parallel.is_main:
                    self._log(step, numbers, seconds)
                    self.after_step(step + 1, numbers)
                stage.advance(1, {name: numbers[name] for name in ("reward", "loss") if name in numbers})
                stopping, done, every = self._stopping, step + 1, self.checkpoint_every
                if stopping or (every > 0 and (done == self.config.steps or done % every == 0)):
                    self._save(done)
                if stopping:
                    raise Interrupted(done)
        return self.totals

    def _guarded_step(self, step: int) -> dict[str, float]:
        """Do a step; a device that is too small is a failed run that names the knob."""
        size = self.config.micro_batch
        smaller = f"train.micro_batch={size // 2}" if size > 1 else "train.recompute=true"
        what = f"step {step + 1}: out of memory with train.micro_batch = {size}"
        with out_of_memory_as(what, f"--set {smaller}"):
            return self._step(step)

    def _step(self, step: int) -> dict[str, float]:
        """Collect, then update `updates_per_collect` times; return this step's numbers over all ranks."""
        parallel, config = self.parallel, self.config
        self._pace.begin()
        rate = learning_rate(config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.stream.batch(step, parallel.rank, parallel.world_size).to(parallel.device)
        with torch.no_grad(), parallel.gathered():
            collected = [self._collect(part, step) for part in batch.split(config.micro_batch)]
        costs = costs_of(collected, parallel)
        if failure := costs.too_many_failures(config.failed_rewards):
            if step:  # nothing that is trained gets lost
                self._save(step)
            raise RunFailed(
                f"step {step + 1}: {failure}",
                fix="mend the reward and run the same command again; it continues from this step",
            )
        with failure_of(f"method {type(self.method).__name__}"):
            collected = complete(self.method, collected, parallel.sum)
        numbers = self._mean((part.metrics, part.images) for part in collected)
        for _ in range(config.updates_per_collect):
            losses, norm = self._update(collected, step)
        summed = parallel.sum({**numbers, **losses, STOP: float(self.stop()), **self._pace.own()})
        self._paces = self._pace.take(summed)
        self.totals.add(costs, max(self._pace.memory_gib))
        # A signal that reaches ranks at different steps must not part them.
        self._stopping = summed.pop(STOP) > 0
        return {**summed, "grad_norm": norm, "lr": rate}

    def _update(self, collected: list[Collected], step: int) -> tuple[dict[str, float], float]:
        """Take one optimiser step on everything collected; return this rank's numbers and the norm."""
        parts: list[tuple[Mapping[str, Tensor], int]] = []
        for number, part in enumerate(collected, 1):
            loss = self._loss(part.experience)
            share = loss.value * (part.images / self.config.images_per_step)
            with failure_of(self._who):
                self.parallel.backward(share, last=number == len(collected))
            parts.append(({"loss": loss.value.detach(), **loss.metrics}, part.images))
        self.parallel.reduce_gradients(self.module)
        norm = float(self.parallel.clip(self.module, self.config.grad_clip))
        if not math.isfinite(norm):
            raise RunFailed(
                f"step {step + 1}: the gradient's norm is {norm} with {self._who}; the update was not made",
                fix="lower train.lr or the method's weights with --set; finished checkpoints are kept",
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self._mean(parts), norm

    def _mean(self, parts: Iterable[tuple[Mapping[str, Tensor], int]]) -> dict[str, float]:
        """This rank's share of the mean over the step's images."""
        sums: dict[str, float] = {}
        for numbers, images in parts:
            for name, value in numbers.items():
                sums[name] = sums.get(name, 0.0) + float(value) * images / self.config.images_per_step
        return sums

    @property
    def _who(self) -> str:
        return f"method {type(self.method).__name__}"

    def _collect(self, batch: Batch, step: int) -> Collected:
        with failure_of(self._who):
            collected = self.method.collect(batch, step)
            if not isinstance(collected, Collected):
                raise TypeError(f"collect returned {type(collected).__name__}, not Collected")
            if collected.images != len(batch):  # the weight of its loss
                raise ValueError(f"collect says that it read {collected.images} of {len(batch)} images")
            _check_metrics(collected.metrics)
        return collected

    def _loss(self, experience: object) -> Loss:
        with failure_of(self._who):
            with self.parallel.in_step():
                loss = self.method.loss(experience)
            if not isinstance(loss, Loss) or loss.value.dim() or not loss.value.requires_grad:
                raise TypeError("loss returned no Loss whose value is a scalar with a gradient")
            _check_metrics(loss.metrics)
        return loss

    def _resume(self) -> int:
        """Load the newest checkpoint; return the number of finished steps."""
        root = self.folder / "checkpoints"
        earlier = _count_start(self.folder / STARTS) if self.parallel.is_main else 0
        if self.parallel.is_main:
            checkpoint.put_aside_damaged(root, self.progress.say)
        self.parallel.barrier()
        module = self.parallel.unwrap(self.module)
        state = self.parallel.load(root, module, self.optimizer)
        if state is None:
            self._truncate_logs(0)
            self.totals.resumed = earlier
            return 0
        try:
            module.load_state_dict(state.module)
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), **state.optimizer})
            self.totals = Totals(**state.totals)
            load_state(self.method, state.method)
        except (RuntimeError, ValueError, LookupError, TypeError) as error:
            raise RunFailed(
                f"{self.folder / 'checkpoints'}: step {state.step} is of another model or version",
                fix="remove it and run the same command again",
            ) from error
        self.totals.resumed = max(self.totals.resumed + 1, earlier)
        self._truncate_logs(state.step)
        if left := self.config.steps - state.step:
            self.progress.say(f"resuming at step {state.step} of {self.config.steps}, {left} to do")
        return state.step

    def _save(self, step: int) -> None:
        state = checkpoint.State(
            step=step,
            module=self.parallel.unwrap(self.module).state_dict(),
            optimizer=self.optimizer.state_dict(),
            totals=asdict(self.totals),
            method=state_of(self.method),
        )
        behind = self.config.async_checkpoint and not self._stopping
        self.parallel.save(self.folder / "checkpoints", state, behind=behind)

    def _log(self, step: int, numbers: Mapping[str, float], seconds: float) -> None:
        """Append one line to each log. Times are kept apart so that equal runs give equal metrics.

        A number that is not finite becomes null: JSON has no NaN.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        for name, line in {
            "metrics.jsonl": {"step": step + 1, **finite},
            "timing.jsonl": {"step": step + 1, "seconds": round(seconds, 4), **self._paces},
        }.items():
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _truncate_logs(self, step: int) -> None:
        """Drop lines of steps that will be made again."""
        if not self.parallel.is_main:
            return
        for name in ("metrics.jsonl", "timing.jsonl"):
            path = self.folder / name
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
            kept = [line for line in lines if 0 < _step_of(line) <= step]
            write_atomic(path, "".join(f"{line}\n" for line in kept))
            if len(kept) < step:
                self.progress.say(f"{path} lacks {step - len(kept)} of the {step} finished steps")


def _count_start(path: Path) -> int:
    """Note that training starts; return how often it did before, also where no checkpoint was reached."""
    earlier = 0
    with contextlib.suppress(OSError, ValueError, LookupError):
        earlier = int(read_json(path)["starts"])
    write_json(path, {"starts": earlier + 1})
    return earlier


def _check_metrics(metrics: Mapping[str, Any]) -> None:
    """Raise TypeError unless these are scalars; nothing is read from the device."""
    for name, value in metrics.items():
        if not isinstance(value, int | float) and not (isinstance(value, Tensor) and value.numel() == 1):
            raise TypeError(f"metric {name!r} is no scalar")


def _step_of(line: str) -> int:
    """The step that a line of a log is about; 0 for a torn one."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError):
        return 0
