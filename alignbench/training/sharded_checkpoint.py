"""Checkpoints that all processes write together, each its shards, by torch.distributed.checkpoint.

They lie in the same folders as those of one process and become whole in the same way. Either form is read by
any number of processes, in shards or not. torch's files are for resuming under the version that wrote them.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as group
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save as save_parts
from torch.distributed.tensor import DTensor

from alignbench.files import file_sha256
from alignbench.training import checkpoint
from alignbench.training.checkpoint import MARKER, State
from alignbench.training.process_group import TIMEOUT, exchange
from alignbench.training.sharding import like

METADATA = ".metadata"
"""What torch writes last, and the other form lacks."""


def new_group() -> group.ProcessGroup:
    """Make a group on the CPU, whose exchanges do not meet those of training; collective."""
    made = group.new_group(backend="gloo", timeout=TIMEOUT)
    assert isinstance(made, group.ProcessGroup)
    return made


def save(root: Path, state: State, *, rank: int, own: group.ProcessGroup | None = None) -> None:
    """Write the shards of all processes; collective.

    Args:
        own: group to exchange in, where this is done in a thread; None: the one of all.

    Raises:
        RunFailed: the disk is full, or the processes do not see one folder.
        ExchangeBroken: another process is gone.
    """
    final = checkpoint.folder_of(root, state.step)
    if (final / MARKER).exists():
        return
    with checkpoint.writing(final), exchange(computes=True):
        if rank == 0:
            checkpoint.begin(final)
        group.barrier(own)
        temporary = final.with_suffix(".tmp")
        with _plain_errors():
            save_parts(_flat(state), storage_writer=FileSystemWriter(temporary), process_group=own)
        mine = {file.name: file_sha256(file) for file in temporary.glob(f"__{rank}_*")}
        written: list[dict[str, str]] = [{} for _ in range(group.get_world_size())]
        group.all_gather_object(written, mine, own)
        if rank == 0:
            digests = {name: digest for part in written for name, digest in part.items()}
            if unseen := digests.keys() - {file.name for file in temporary.iterdir()}:
                raise OSError(f"{min(unseen)} of another process is not to be seen there")
            digests |= {
                METADATA: file_sha256(temporary / METADATA),
                **checkpoint.write_method(temporary, state),
            }
            checkpoint.finish(final, state, digests)


def read(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint of either form, cut as the module is; collective where it lies in shards.

    Returns:
        The module's state, and the optimiser's without `param_groups` if it was written in shards.
    """
    parameters = [parameter for part in optimizer.param_groups for parameter in part["params"]]
    wanted: dict[str, Tensor] = {f"module.{name}": value for name, value in module.state_dict().items()}
    wanted |= {f"optimizer.{number}": parameter for number, parameter in enumerate(parameters)}
    if not (folder / METADATA).exists():
        state, moments = checkpoint.read_whole(folder)
        state = {name: like(value, wanted.get(f"module.{name}")) for name, value in state.items()}
        for number, values in moments["state"].items():
            cut = wanted.get(f"optimizer.{number}")
            moments["state"][number] = {name: like(value, cut) for name, value in values.items()}
        return state, moments
    return _nested(_load(folder, wanted))


def _load(folder: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read what all processes wrote, {flat name: tensor}."""
    reader = FileSystemReader(folder)
    flat: dict[str, Tensor] = {}
    with _plain_errors(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        for name, held in reader.read_metadata().state_dict_metadata.items():
            assert isinstance(held, TensorStorageMetadata)
            # `optimizer.12.exp_avg` is cut as parameter 12 is.
            other = wanted.get(name, wanted.get(name.rpartition(".")[0]))
            if isinstance(other, DTensor) and other.shape == held.size:
                flat[name] = torch.empty_like(other, dtype=held.properties.dtype)
            else:
                flat[name] = torch.empty(held.size, dtype=held.properties.dtype)
        alone = not any(isinstance(value, DTensor) for value in flat.values())
        load(flat, storage_reader=reader, no_dist=alone)
    return flat


def _flat(state: State) -> dict[str, Tensor]:
    flat = {f"module.{name}": value for name, value in state.module.items()}
    for number, values in state.optimizer["state"].items():
        flat |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    return flat


def _nested(flat: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    module: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, value in flat.items():
        part, _, rest = name.partition(".")
        if part == "module":
            module[rest] = value
        else:
            number, _, moment = rest.partition(".")
            moments[int(number)][moment] = value
    return module, {"state": dict(moments)}


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise what went wrong in one of the processes; torch's own exception is none of `Exception`."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise OSError(f"process {rank}: {str(cause) or type(cause).__name__}") from error
