"""Where a reward is computed: beside the policy, there on loan, or on a device of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from alignbench import api
from alignbench.errors import UserError
from alignbench.registry.reward_spec import PLACEMENTS

CPU = torch.device("cpu")


@runtime_checkable
class Movable(Protocol):
    """A reward with weights; `to` moves all of them, in place."""

    def to(self, device: torch.device) -> object: ...


@dataclass(frozen=True)
class Placed:
    """A reward object and the device it computes on."""

    raw: api.Reward
    device: torch.device | None
    """None: elsewhere, over the network."""
    lent: bool = False
    """The weights rest in main memory between calls."""

    @contextlib.contextmanager
    def ready(self) -> Iterator[api.Reward]:
        """Give the reward object with its weights where they are needed."""
        if not (self.lent and isinstance(self.raw, Movable)):
            yield self.raw
            return
        assert self.device is not None
        self.raw.to(self.device)
        try:
            yield self.raw
        finally:
            self.raw.to(CPU)


def devices(placement: str, device: torch.device) -> tuple[torch.device, torch.device, bool]:
    """Return (device to build on, device to compute on, whether the weights are only lent to it).

    Args:
        placement: as written, not remote.
        device: the policy's.

    Raises:
        UserError: not a placement, or a device this machine lacks.
    """
    if placement == "same":
        return device, device, False
    if placement == "offload":
        return CPU, device, True
    try:
        own = torch.device(placement)
        torch.empty(1, device=own)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"placement {placement!r} cannot be used: {str(error).splitlines()[0]}",
            fix=f"choose {PLACEMENTS}",
        ) from error
    return own, own, False
