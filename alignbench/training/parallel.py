"""The devices of a run, behind a few functions. The only module that imports accelerate; collectives are here
and in what only this module uses: `process_group`, `sharding`, `sharded_checkpoint`.

One process works without a process group; under `accelerate launch` or `torchrun` every rank holds the whole
module and gradients are added up once per optimiser step, after the last micro-batch. That costs one exchange
per step however many micro-batches there are, and works whichever of the module's methods a loss calls.
With `shard` every rank holds a part of the module, its gradients and the optimiser's state; gradients still
are added up once, in the backward of the last micro-batch.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor, nn

from alignbench import distributed
from alignbench.errors import UserError
from alignbench.training import checkpoint
from alignbench.training.attempts import join
from alignbench.training.checkpoint import State, Writer
from alignbench.training.process_group import (
    HOST,
    TIMEOUT,
    add_over_ranks,
    after_first,
    default_store,
    exchange,
)
from alignbench.training.sums import Summed, flatten

if TYPE_CHECKING:
    from alignbench.training.sharding import Shards

SMALL = 2_000_000
"""Parameters below which one thread is faster than several (overhead-bound tensors)."""

_BLOCKS = itertools.count()
"""Numbers of the blocks that the first process does alone; every process comes to them in one order."""


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
                join()
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
        self.waited = 0.0
        """Seconds spent on others: in exchanges, and where shards are exchanged in whatever needs them."""
        self._shards: Shards | None = None
        self.writer = Writer()
        self._aside: Any = None
        """Process group of checkpoints that are written while others exchange gradients."""
        if self.world_size > 1:
            default_store().set(f"{HOST}{self.rank}", socket.gethostname())

    @property
    def memory_gib(self) -> float | None:
        """Memory of this process's GPU; None on the CPU."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.get_device_properties(self.device).total_memory / 2**30

    def prepare(self, module: nn.Module) -> nn.Module:
        """Prepare a network, trained or frozen: device, autocast around its forward, fp32 outputs."""
        # evaluation_mode: no DistributedDataParallel; `reduce_gradients` does its work.
        prepared: nn.Module = self._accelerator.prepare_model(module, evaluation_mode=True)
        return prepared

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Prepare the optimiser over a module that was prepared and, if at all, cut."""
        prepared: torch.optim.Optimizer = self._accelerator.prepare_optimizer(optimizer)
        return prepared

    def shard_kind(self, wanted: str, needed_gib: float) -> str:
        """Return how `train.shard` is meant here, the same on every rank: `none`, `full` or `hybrid`.

        One process has nobody to share with. `auto` cuts where a device of any rank is smaller than what
        training needs whole; never on the CPU, whose processes share one memory.
        """
        if self.world_size == 1:
            return "none"
        if wanted != "auto":
            return wanted
        memory = self.memory_gib
        too_small = float(memory is not None and memory < needed_gib)
        return "full" if self.sum({"too small": too_small})["too small"] else "none"

    def shard(self, module: nn.Module, kind: str, *, cast: bool) -> None:
        """Cut what trains, in place; copies and references to its parameters were made before.

        Args:
            kind: as `shard_kind` returns it.
            cast: compute in the run's precision; else in that of the parameters.
        """
        if kind == "none":
            return
        from alignbench.training import sharding

        mesh = sharding.mesh_of(kind, self.device, self.world_size)
        halved = cast and self._accelerator.mixed_precision == "bf16"
        self._shards = sharding.Shards(module, mesh, torch.bfloat16 if halved else None)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Collect in this block: what is trained is whole there, and the ranks need not keep step."""
        with contextlib.ExitStack() as held:
            if self._shards is not None:
                with self._exchanging(computes=True):
                    held.enter_context(self._shards.gathered())
            yield

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """Compute a loss in this block: where the module is cut, its units are exchanged one by one."""
        with self._exchanging(computes=True) if self._shards is not None else contextlib.nullcontext():
            yield

    def unwrap(self, module: nn.Module) -> nn.Module:
        result: nn.Module = self._accelerator.unwrap_model(module)
        return result

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Backpropagate this rank's share of the global mean; gradients add up on the parameters.

        Args:
            last: of this step, so that shards are exchanged now.
        """
        if self._shards is not None:
            self._shards.exchange_gradients(last)
        with self.in_step():
            self._accelerator.backward(loss)

    def reduce_gradients(self, module: nn.Module) -> None:
        """Add gradients over ranks, in few exchanges.

        A parameter without a gradient on one rank takes part with zeros, so that all ranks exchange alike.
        """
        if self.world_size == 1 or self._shards is not None:
            return
        with self._exchanging():
            add_over_ranks(module.parameters())

    def clip(self, module: nn.Module, norm: float) -> Tensor:
        """Clip gradients to a global norm (0: only measure) and return the norm before clipping."""
        limit = norm if norm > 0 else float("inf")
        if self._shards is not None:
            with self._exchanging(computes=True):
                return self._shards.clip(limit)
        result: Tensor = self._accelerator.clip_grad_norm_(module.parameters(), limit)
        return result

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put an export together on the first rank; where it was cut, the others get nothing."""
        if self._shards is None:
            return dict(state)
        from alignbench.training import sharding

        kept: dict[str, Tensor] = {}
        with self._exchanging(computes=True):
            for name, value in state.items():  # one at a time: the whole may not fit on the device
                tensor = sharding.whole(value.detach())
                if self.is_main:
                    kept[name] = tensor.cpu()
        return kept

    # --- checkpoints ---

    def save(self, root: Path, state: State, *, behind: bool = False) -> None:
        """Write a checkpoint, whole or not at all; see `checkpoint.save` and `sharded_checkpoint.save`.

        Args:
            behind: write a copy in host memory while the caller goes on, after the one before; what goes
                wrong is raised by the next call, or by `writer.wait`.
        """
        self.writer.wait()
        if self._shards is not None:
            from alignbench.training import sharded_checkpoint

            if behind and self._aside is None:
                self._aside = sharded_checkpoint.new_group()
            own = self._aside if behind else None
            self.writer.write(partial(sharded_checkpoint.save, root, rank=self.rank, own=own), state, behind)
        elif self.is_main:
            self.writer.write(partial(checkpoint.save, root), state, behind)
        if not behind:
            self.barrier()

    def load(self, root: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> State | None:
        """Read the newest checkpoint, cut as the module is; the first rank has just compared its digests."""

        def read(folder: Path) -> tuple[Any, Any]:
            if self._shards is None and (folder / checkpoint.WHOLE).exists():
                return checkpoint.read_whole(folder)
            from alignbench.training import sharded_checkpoint

            with exchange(computes=True):
                return sharded_checkpoint.read(folder, module, optimizer)

        return checkpoint.load_latest(root, checked=self.is_main, read=read)

    # --- ranks ---

    def sum(self, values: Mapping[str, Summed]) -> dict[str, Summed]:
        """Add numbers and tensors over ranks in one exchange; every rank must bring the same names."""
        if self.world_size == 1:
            return dict(values)
        flat, restore = flatten(values, self.device)
        with self._exchanging():
            return restore(self._accelerator.reduce(flat, "sum"))

    def host_of(self, rank: int) -> str:
        """Return the name of a rank's machine, as that one wrote it down."""
        return default_store().get(f"{HOST}{rank}").decode()

    def barrier(self) -> None:
        with self._exchanging():
            self._accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def _exchanging(self, *, computes: bool = False) -> Iterator[None]:
        """Name broken exchanges, and count the time as waiting for others."""
        started = self._clock()
        with exchange(computes=computes):
            yield
        self.waited += self._clock() - started

    def _clock(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic()

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Do the block in the first process, then in the others at once; see `after_first`."""
        if self.world_size == 1:
            yield
            return
        with after_first(default_store(), self.rank, f"alignbench/first/{next(_BLOCKS)}"):
            yield

    def release(self) -> None:
        """Let go of what was prepared, so that its memory is free for what follows."""
        self._shards = None
        self._accelerator.free_memory()

    def close(self) -> None:
        """Leave the process group and forget accelerate's process-wide state."""
        self._accelerator.end_training()
        self._accelerator.free_memory()
        type(self._accelerator.state)._reset_state(reset_partial_state=self.world_size == 1)
