"""The devices of a run, behind a few functions. The only module with collectives, and the only one that
imports accelerate.

One process works without a process group; under `accelerate launch` or `torchrun` the same code uses DDP.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from alignbench.errors import UserError

SMALL = 2_000_000
"""Parameters below which one thread is faster than several (overhead-bound tensors)."""


def choose_threads(parameters: int) -> int:
    """Set torch's threads: `OMP_NUM_THREADS` if given, one for tiny models, else torch's own choice.

    Returns:
        The number of threads in use.
    """
    if "OMP_NUM_THREADS" not in os.environ and parameters < SMALL:
        torch.set_num_threads(1)
    return torch.get_num_threads()


class Parallel:
    """This process's place among the devices of a run.

    Args:
        precision: `fp32`, or `bf16` for autocast over fp32 master weights.

    Raises:
        UserError: the launcher started more processes than torch's process group sees.
    """

    def __init__(self, precision: str) -> None:
        self._accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision="bf16" if precision == "bf16" else "no"
        )
        expected = int(os.environ.get("WORLD_SIZE", "1"))
        if self._accelerator.num_processes != expected:
            raise UserError(
                f"the launcher started {expected} processes but this one sees "
                f"{self._accelerator.num_processes}",
                fix="start with torchrun or accelerate launch, one process per device",
            )

    @property
    def device(self) -> torch.device:
        return self._accelerator.device

    @property
    def rank(self) -> int:
        return self._accelerator.process_index

    @property
    def world_size(self) -> int:
        return self._accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self._accelerator.is_main_process

    def wrap(
        self, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Prepare what is trained: device, autocast, gradient averaging over ranks."""
        return self._accelerator.prepare(module, optimizer)

    def unwrap(self, module: nn.Module) -> nn.Module:
        return self._accelerator.unwrap_model(module)

    @contextlib.contextmanager
    def accumulate(self, module: nn.Module, *, last: bool) -> Iterator[None]:
        """Hold gradient exchange back until the last micro-batch of a step."""
        with contextlib.nullcontext() if last else self._accelerator.no_sync(module):
            yield

    def backward(self, loss: Tensor) -> None:
        """Backpropagate this rank's share of the global mean.

        DDP averages gradients over ranks while shares add up over all ranks, hence the factor.
        """
        self._accelerator.backward(loss * self.world_size)

    def clip(self, module: nn.Module, norm: float) -> Tensor:
        """Clip gradients to a global norm (0: only measure) and return the norm before clipping."""
        return self._accelerator.clip_grad_norm_(module.parameters(), norm if norm > 0 else float("inf"))

    def sum(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Add scalars over ranks; every rank must bring the same names."""
        if self.world_size == 1:
            return dict(numbers)
        values = torch.tensor(list(numbers.values()), dtype=torch.float64, device=self.device)
        return dict(zip(numbers, self._accelerator.reduce(values, "sum").tolist(), strict=True))

    def barrier(self) -> None:
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group and forget accelerate's process-wide state."""
        self._accelerator.end_training()
        self._accelerator.free_memory()
        type(self._accelerator.state)._reset_state(reset_partial_state=self.world_size == 1)
