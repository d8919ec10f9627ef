"""Reading weight files: every container the released checkpoints come in, and strict loading.

Nothing is ever loaded by half: a file whose keys or shapes do not match is refused with a list of them.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from alignbench.errors import UserError

CONTAINERS = ("model", "module", "state_dict", "ema")
"""Where a torch file may hold the weights, in LlamaGen's order of lookup; a bare state dict works too."""
PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.)+|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
"""Left behind by DistributedDataParallel and torch.compile at the start, by FSDP anywhere."""
LIGHTNING = "pytorch-lightning_version"
"""Key of its checkpoints; theirs of weights begin with the name of the attribute that holds the model."""
BESIDE = (
    "numpy.dtype", "numpy.ndarray", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "pathlib.PosixPath",
    "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
)  # fmt: skip
"""Classes and functions of values that training scripts save beside the weights."""
NOT_WEIGHTS = {
    b"version https://git-lfs": (
        "only points to the file that git-lfs keeps",
        "git lfs pull, or fetch it again",
    ),
    b"<!doctype html": ("is a web page", "the address leads to a page, not to the file: fetch it again"),
    b"<html": ("is a web page", "the address leads to a page, not to the file: fetch it again"),
}
"""{beginning: (what such a file is, what to do)}."""
LISTED = 8
"""How many keys an error message spells out."""


class _Beside:
    """In place of a value of `BESIDE`: nothing asks for it, and no code of its class runs."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class NoDraws(TorchFunctionMode):
    """Modules built inside draw no weights: on "meta" that imports torch's compiler, for two seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))


def read_state_dict(path: Path, *, containers: Sequence[str] = CONTAINERS) -> dict[str, Tensor]:
    """Read the weights in a safetensors or torch file, on the CPU, without running code from it.

    Wrapper prefixes are stripped, and in checkpoints of Lightning the attribute's name. Position tables and
    key/value caches, which some versions of the released code saved, are left out. Of the containers the
    first match wins; a file without any is a bare state dict.

    Raises:
        UserError: the file is missing, truncated, not a weights file, or holds no tensors.
    """
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist", fix="check the path or fetch the model again")
    if path.suffix == ".safetensors":
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
    else:
        state = _unwrap(_read_torch(path), path, containers)
    cleaned = {PREFIXES.sub("", key): tensor for key, tensor in state.items()}
    if len(cleaned) < len(state):  # neither can be preferred
        raise UserError(
            f"{path} holds weights twice, with and without a wrapper's prefix", fix="save one of them"
        )
    return {key: value for key, value in cleaned.items() if key != "freqs_cis" and ".kv_cache." not in key}


def load_strict(module: nn.Module, state: Mapping[str, Tensor], *, name: str) -> None:
    """Copy a state dict into a module, or refuse and leave the module as it was.

    Keys and shapes must be exactly the module's; values are converted to its dtype and device.

    Raises:
        UserError: listing missing, unexpected, wrongly shaped and broken keys.
    """
    expected = module.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    misshapen = [
        f"{key} {list(state[key].shape)} instead of {list(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    lists = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if broken:
        raise UserError(
            f"{name} holds values that are not numbers: {_listing('weights', broken)}",
            fix="the file is damaged, or its training overflowed",
        )
    problems = [_listing(what, keys) for what, keys in lists.items() if keys]
    if problems:
        fix = "use the weights that belong to this model, or the model that these weights belong to"
        ends = "." + next(iter(expected), "")
        prefix = next((key.removesuffix(ends[1:]) for key in state if key.endswith(ends)), "")
        if all(prefix + key in state for key in missing) and prefix:
            fix = f"its names begin with {prefix!r}: save those alone, without that"
        raise UserError(f"{name} does not fit the model: {'; '.join(problems)}", fix=fix)
    module.load_state_dict(dict(state))


def _read_torch(path: Path) -> Any:
    # A file that is no checkpoint makes torch's readers fail in any of these ways.
    failures = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, UnicodeError)
    try:
        # LlamaGen's training scripts save their parsed arguments beside the weights: plain data.
        beside = [(_Beside, name) for name in BESIDE]
        with torch.serialization.safe_globals([argparse.Namespace, *beside]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (*failures, AttributeError, IndexError, TypeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return UserError(
            f"{path} holds more than weights: loading {refused[1]} from a file could run code",
            fix="where you trust the file, save its state dict alone and use that",
        )
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(64).lstrip().lower()
        for beginning, (what, fix) in NOT_WEIGHTS.items():
            if start.startswith(beginning):
                return UserError(f"{path} {what}", fix=fix)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    return UserError(
        f"{path} cannot be read as weights ({reason})",
        fix="it is truncated, corrupt or another kind of file: delete it and fetch it again",
    )


def _unwrap(content: Any, path: Path, containers: Sequence[str]) -> dict[str, Tensor]:
    """Find the state dict in what a torch file holds."""
    if isinstance(content, Mapping):
        for key in containers:
            if _is_state_dict(content.get(key)):
                state = dict(content[key])
                return _without_attribute(state) if LIGHTNING in content else state
        if _is_state_dict(content):
            return dict(content)
        content_is = f"its keys are {', '.join(map(str, list(content)[:LISTED]))}"
    else:
        content_is = f"it holds a {type(content).__name__}"
    raise UserError(
        f"{path} holds no weights: {content_is}",
        fix=f"expected a state dict, bare or under {', '.join(containers)}",
    )


def _without_attribute(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the first part of all names where it is the same for all."""
    prefix = next(iter(state)).partition(".")[0] + "."
    shared = all(key.startswith(prefix) for key in state)
    return {key.removeprefix(prefix): value for key, value in state.items()} if shared else state


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _listing(what: str, keys: Sequence[str]) -> str:
    more = f", … {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    return f"{len(keys)} {what} ({', '.join(keys[:LISTED])}{more})"
