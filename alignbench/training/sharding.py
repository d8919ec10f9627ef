"""Parameters, gradients and optimiser state in shards, by torch's `fully_shard` (FSDP2).

torch's own engine and not accelerate's plug-in: that one is silently plain replication on the CPU, so that a
test of it would test nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from alignbench import distributed


@runtime_checkable
class Divisible(Protocol):
    """A network that knows its units of sharding; any other one is a single unit."""

    def shard_units(self) -> Sequence[nn.Module]:
        """Modules without common parameters, each called as a whole: usually the transformer blocks."""


def mesh_of(kind: str, device: torch.device, world_size: int) -> DeviceMesh:
    """Return the devices among which parameters are cut: `full` all of them, `hybrid` those of one node."""
    nodes = distributed.shard_copies(kind, world_size)
    if nodes == 1:
        return init_device_mesh(device.type, (world_size,))
    shape = (nodes, world_size // nodes)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


class Shards:
    """A module that was cut; done in place.

    Units are gathered one by one while they compute, what is left of the module for the whole of a forward
    and backward. Gradients are added up over all devices, not averaged, and in float32.

    Args:
        dtype: what parameters are gathered and computed in; None: as they are.
    """

    def __init__(self, module: nn.Module, mesh: DeviceMesh, dtype: torch.dtype | None) -> None:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None)
        self.module = module
        for unit in module.shard_units() if isinstance(module, Divisible) else ():
            fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        if not all(isinstance(parameter, DTensor) for parameter in module.parameters()):
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        self._parts: list[FSDPModule] = [part for part in module.modules() if isinstance(part, FSDPModule)]
        for part in self._parts:
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo has no other one

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Hold every parameter whole inside the block; what is changed there is lost."""
        root: object = self.module
        for part in self._parts:
            # The whole module first: a unit that generation calls before any forward would take its place.
            part._get_fsdp_state()._lazy_init()
            part.set_reshard_after_forward(False, recurse=False)
        try:
            for part in self._parts:
                part.unshard()
            yield
        finally:
            for part in self._parts:
                part.set_reshard_after_forward(part is not root, recurse=False)
                part.reshard()

    def exchange_gradients(self, enabled: bool) -> None:
        """Whether the next backward adds gradients over devices, or keeps them whole on each one."""
        for part in self._parts:
            part.set_requires_gradient_sync(enabled, recurse=False)

    def clip(self, norm: float) -> Tensor:
        """Clip to a global norm and return the one before, as a plain scalar; collective."""
        return whole(nn.utils.clip_grad_norm_(self.module.parameters(), norm))


def whole(value: Tensor) -> Tensor:
    """Return a tensor that may lie in shards as a plain one; collective."""
    result: Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return result


def like(value: Any, other: Any) -> Any:
    """Cut a tensor that every process has as `other` is cut; anything else is returned as it is."""
    if not isinstance(other, DTensor) or not isinstance(value, Tensor) or value.shape != other.shape:
        return value
    moved = value.to(other.device, copy=True)
    return distribute_tensor(moved, other.device_mesh, other.placements, src_data_rank=None)
