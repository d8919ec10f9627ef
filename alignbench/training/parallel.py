"""The devices of a run, behind a few functions. The only module with collectives, and the only one that
imports accelerate.

One process works without a process group; under `accelerate launch` or `torchrun` every rank holds the whole
module and gradients are added up once per optimiser step, after the last micro-batch. That costs one exchange
per step however many micro-batches there are, and works whichever of the module's methods a loss calls.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor, nn

from alignbench import distributed
from alignbench.dealing.pool import Blackboard, OwnBoard
from alignbench.errors import UserError
from alignbench.training.process_group import TIMEOUT, StoreBoard, after_first, exchange, rejoin

BUCKET = 25_000_000
"""Numbers exchanged at once."""
SMALL = 2_000_000
"""Parameters below which one thread is faster than several (overhead-bound tensors)."""

_BLOCKS = itertools.count()
"""Numbers of the boards, and of the blocks that the first process does alone; every process comes to them in
one order."""


def choose_threads(parameters: int) -> int:
    """Set torch's threads and return how many: `OMP_NUM_THREADS`, one for tiny models, or torch's choice."""
    if "OMP_NUM_THREADS" not in os.environ and parameters < SMALL:
        torch.set_num_threads(1)
    return torch.get_num_threads()


def local_device() -> torch.device:
    """Return the device of work that one process does alone."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Parallel:
    """This process's rank and device in a run; precision `fp32`, or `bf16` for autocast over fp32 weights.

    Raises:
        UserError: the launcher started more processes than torch's process group sees.
    """

    def __init__(self, precision: str) -> None:
        try:
            with exchange():
                rejoin()
                self._accelerator = Accelerator(
                    cpu=not torch.cuda.is_available(),
                    mixed_precision="bf16" if precision == "bf16" else "no",
                    kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
                )
        except ValueError as error:
            raise UserError(
                f"the devices cannot be set up: {str(error).splitlines()[0]}",
                fix="start with torchrun, or without a launcher unset WORLD_SIZE, RANK and LOCAL_RANK",
            ) from error
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes
        self.is_main: bool = self._accelerator.is_main_process
        expected = distributed.world_size()
        if self.world_size != expected:
            raise UserError(
                f"the launcher started {expected} processes but this one sees {self.world_size}",
                fix="start with torchrun or accelerate launch, one process per device",
            )

    @property
    def memory_gib(self) -> float | None:
        """Memory of this process's GPU; None on the CPU."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.get_device_properties(self.device).total_memory / 2**30

    def wrap(
        self, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Prepare what is trained: device, autocast around its forward, fp32 outputs."""
        return self.wrap_frozen(module), self._accelerator.prepare_optimizer(optimizer)

    def wrap_frozen(self, module: nn.Module) -> nn.Module:
        """Prepare a network for its forwards alone: device, autocast, fp32 outputs."""
        # evaluation_mode: no DistributedDataParallel; `reduce_gradients` does its work.
        prepared: nn.Module = self._accelerator.prepare_model(module, evaluation_mode=True)
        return prepared

    def unwrap(self, module: nn.Module) -> nn.Module:
        result: nn.Module = self._accelerator.unwrap_model(module)
        return result

    def backward(self, loss: Tensor) -> None:
        """Backpropagate this rank's share of the global mean; gradients add up on the parameters."""
        self._accelerator.backward(loss)

    def reduce_gradients(self, module: nn.Module) -> None:
        """Add gradients over ranks, in pieces of about `BUCKET` numbers.

        A parameter without a gradient on one rank takes part with zeros, so that all ranks exchange alike.
        """
        if self.world_size == 1:
            return
        bucket: list[Tensor] = []
        for parameter in module.parameters():
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(gradient.numel() for gradient in bucket) >= BUCKET:
                _add_over_ranks(bucket)
                bucket = []
        _add_over_ranks(bucket)

    def clip(self, module: nn.Module, norm: float) -> Tensor:
        """Clip gradients to a global norm (0: only measure) and return the norm before clipping."""
        result: Tensor = self._accelerator.clip_grad_norm_(
            module.parameters(), norm if norm > 0 else float("inf")
        )
        return result

    def sum(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Add scalars over ranks; every rank must bring the same names."""
        if self.world_size == 1:
            return dict(numbers)
        values = torch.tensor(list(numbers.values()), dtype=torch.float64, device=self.device)
        with exchange():
            return dict(zip(numbers, self._accelerator.reduce(values, "sum").tolist(), strict=True))

    def barrier(self) -> None:
        with exchange():
            self._accelerator.wait_for_everyone()

    def board(self) -> Blackboard:
        """Return a new board that all processes see; every process asks for its boards in one order."""
        if self.world_size == 1:
            return OwnBoard()
        store = torch.distributed.distributed_c10d._get_default_store()
        return StoreBoard(store, f"alignbench/board/{next(_BLOCKS)}")

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Do the block in the first process, then in the others at once; see `after_first`."""
        if self.world_size == 1:
            yield
            return
        store = torch.distributed.distributed_c10d._get_default_store()
        with after_first(store, self.rank, f"alignbench/first/{next(_BLOCKS)}"):
            yield

    def release(self) -> None:
        """Let go of what was wrapped, so that its memory is free for what follows."""
        self._accelerator.free_memory()

    def close(self) -> None:
        """Leave the process group and forget accelerate's process-wide state."""
        self._accelerator.end_training()
        self._accelerator.free_memory()
        type(self._accelerator.state)._reset_state(reset_partial_state=self.world_size == 1)


def _add_over_ranks(gradients: list[Tensor]) -> None:
    """All-reduce a list of gradients as one flat tensor."""
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    with exchange():
        torch.distributed.all_reduce(flat)
    for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(piece.view_as(gradient))
