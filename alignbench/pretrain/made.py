"""What pretraining leaves behind: a file for each network and a manifest of how they were made."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import nn

from alignbench import __version__
from alignbench.files import write_atomic
from alignbench.pretrain.fitting import Budget


def safetensors_of(net: nn.Module) -> bytes:
    """Return a network's file."""
    return to_safetensors({key: tensor.contiguous() for key, tensor in net.state_dict().items()})


@dataclass(frozen=True)
class Made:
    """A trained module and what there is to say of it; goes into the manifest."""

    net: nn.Module
    budget: Budget
    seconds: float
    training: Mapping[str, float]
    """Losses averaged over the last steps."""
    validation: Mapping[str, float]
    content: Callable[[nn.Module], bytes] = safetensors_of
    """Makes the file."""


def write(
    folder: Path, made: Mapping[str, Made], *, model: str, seed: int, data: Mapping[str, Any]
) -> dict[str, Any]:
    """Write one file a network and `manifest.json`; returns the manifest.

    Args:
        folder: files of the same names are replaced.
        made: {file name without its end: network}.
        model: what was pretrained.
        seed: of everything random.
        data: facts about the splits, for the manifest.
    """
    manifest = {
        "schema": 1,
        "model": model,
        "made_by": f"alignbench pretrain {model} --seed {seed}",
        "alignbench": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, 1 thread",
        "seed": seed,
        "data": data,
        "seconds": round(sum(part.seconds for part in made.values()), 1),
        "files": {f"{name}.safetensors": _write_one(folder, name, part) for name, part in made.items()},
    }
    write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def _write_one(folder: Path, name: str, made: Made) -> dict[str, Any]:
    """Write one network and return its entry in the manifest."""
    content = made.content(made.net)
    write_atomic(folder / f"{name}.safetensors", content)
    return {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "parameters": sum(parameter.numel() for parameter in made.net.parameters()),
        "seconds": round(made.seconds, 1),
        "budget": asdict(made.budget),
        "training": {key: round(value, 6) for key, value in made.training.items()},
        "validation": {key: round(value, 6) for key, value in made.validation.items()},
    }
