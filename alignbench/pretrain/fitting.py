"""The one training loop of all pretraining stages. It knows no network and writes no file."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alignbench import randomness

Progress = Callable[[str, int, int, str], None]
"""Called as (stage, steps done, steps in all, note)."""

TAIL = 50
"""Training losses are reported as means over this many last steps."""


@dataclass(frozen=True)
class Split:
    """Images of one split, all at once."""

    images: Tensor
    """[N, 3, 8, 8] float32 in [-1, 1]."""
    labels: Tensor
    """[N] int64."""

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long and how fast one stage trains."""

    steps: int
    batch: int
    lr: float
    """Peak; reached after `warmup` steps, then a cosine to 0."""
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    warmup: int = 20
    grad_clip: float = 1.0


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: sums over several are not the same twice, and these networks gain nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def batches(seed: int, stage: str, *, size: int, budget: Budget) -> Iterator[Tensor]:
    """Yield [batch] int64 row numbers for each step.

    Epochs are permutations; what does not fill a batch at the end of one is left out.
    """
    per_epoch = size // budget.batch
    if per_epoch == 0:
        raise ValueError(f"{stage}: {size} images do not fill a batch of {budget.batch}")
    for step in range(budget.steps):
        epoch, position = divmod(step, per_epoch)
        if position == 0:
            order = torch.from_numpy(randomness.permutation(seed, f"pretrain/{stage}", epoch, size))
        yield order[position * budget.batch : (position + 1) * budget.batch]


def learning_rate(step: int, budget: Budget) -> float:
    """Linear warm-up, then half a cosine to 0 at the end."""
    if step < budget.warmup:
        return budget.lr * (step + 1) / budget.warmup
    past = (step - budget.warmup) / max(1, budget.steps - budget.warmup)
    return budget.lr * 0.5 * (1 + math.cos(math.pi * past))


def fit(
    net: nn.Module,
    losses_of: Callable[[Tensor], Mapping[str, Tensor]],
    *,
    size: int,
    budget: Budget,
    seed: int,
    stage: str,
    progress: Progress,
) -> dict[str, float]:
    """Train a network with AdamW.

    Args:
        net: what is trained; left in evaluation mode.
        losses_of: row numbers [batch] → named scalars, of which `loss` is minimised.
        size: training images.
        budget: steps, batch and rates.
        seed: of the order of images and of dropout.
        stage: name in the progress and in the addresses of the random numbers.
        progress: told after every step.

    Returns:
        Each named scalar, averaged over the last `TAIL` steps.
    """
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=budget.lr, betas=(budget.beta1, budget.beta2), weight_decay=budget.weight_decay
    )
    net.train()
    tail: list[dict[str, float]] = []
    with randomness.torch_seed(torch.device("cpu"), seed, f"pretrain/{stage}/dropout"):
        for step, rows in enumerate(batches(seed, stage, size=size, budget=budget)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, budget)
            losses = losses_of(rows)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), budget.grad_clip, error_if_nonfinite=True)
            optimizer.step()
            tail = [*tail[1 - TAIL :], {name: value.item() for name, value in losses.items()}]
            progress(stage, step + 1, budget.steps, f"loss {tail[-1]['loss']:.4f}")
    net.eval()
    return {name: sum(entry[name] for entry in tail) / len(tail) for name in tail[-1]}
