"""Tiny, randomly initialised open_clip networks in the forms in which such networks come."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def spread(module: torch.nn.Module) -> None:
    """Widen the default initialisation, so that scores differ between images by more than rounding."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)


def make_config(*, quick_gelu: bool, side: int = 28, head: int = 8) -> dict[str, Any]:
    """`head`: width of an attention head; OpenAI's networks have 64."""
    vision = {"image_size": side, "layers": 2, "width": 2 * head, "head_width": head, "patch_size": 14}
    text = {"context_length": 77, "vocab_size": 49408, "width": 2 * head, "heads": 2, "layers": 2}
    return {"embed_dim": 16, "quick_gelu": quick_gelu, "vision_cfg": vision, "text_cfg": text}


def make_model(config: dict[str, Any]) -> Any:
    import open_clip

    with seeded():
        model = open_clip.CLIP(**config)
        spread(model)
    return model.eval()


def save_folder(folder: Path, *, quick_gelu: bool, weights: str = "open_clip_model.safetensors") -> Path:
    """The hub's form; weights as safetensors, as a plain state dict, or inside a training checkpoint."""
    from safetensors.torch import save_file

    config = make_config(quick_gelu=quick_gelu)
    state = make_model(config).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.3, 0.2]}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    if weights.endswith(".safetensors"):
        save_file({name: value.contiguous() for name, value in state.items()}, folder / weights)
    else:
        torch.save(state, folder / weights)
    return folder


class Node(nn.Module):
    """Has nothing but parameters and parts; TorchScript wants a forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def save_archive(path: Path, config: dict[str, Any]) -> Path:
    """OpenAI's form: TorchScript, half precision, three numbers beside the weights."""
    root = Node()
    for name, value in make_model(config).state_dict().items():
        node: nn.Module = root
        *parents, leaf = name.split(".")
        for parent in parents:
            if not hasattr(node, parent):
                node.add_module(parent, Node())
            node = node.get_submodule(parent)
        node.register_parameter(leaf, nn.Parameter(value.half(), requires_grad=False))
    numbers = {"input_resolution": 28, "context_length": 77, "vocab_size": 49408}
    for name, number in numbers.items():
        root.register_buffer(name, torch.tensor(number))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(root).save(path)
    return path
