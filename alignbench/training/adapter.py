"""LoRA (arXiv:2106.09685): low-rank updates of a frozen policy train in its place, by peft.

peft puts its layers into the network, so whatever computes with the policy computes with the updates: teacher
forcing, drawing with a cache, CUDA graphs. A checkpoint holds the updates alone, a KL reference is the policy
with them switched off, and an export has them added to the weights they belong to.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignbench import randomness
from alignbench.config.adapter import LoraShape
from alignbench.errors import UserError
from alignbench.files import write_atomic

ADAPTER = "default"
"""peft's name of the only adapter."""
PREFIX = "base_model.model."
"""What the keys of peft's files begin with."""
WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
"""peft's names."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """Updates inside a policy."""

    policy: nn.Module
    """The bare network that holds them."""
    layers: Mapping[str, Any]
    """{name of an adapted layer: peft's layer}."""
    weights: nn.Module
    """What trains, under peft's keys without their prefix; computes nothing by itself."""
    settings: Any
    """peft's `LoraConfig`."""

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Compute with the base alone inside a block, to the same bits as before the adapter was there."""
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)

    def export(self) -> dict[str, Tensor]:
        """Return the updates under the keys of peft's files."""
        return {f"{PREFIX}{name}": value for name, value in self.weights.state_dict().items()}

    def write_settings(self, folder: Path) -> None:
        """Write `adapter_config.json`, as peft reads it; equal settings give equal bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        self.settings.save_pretrained(str(folder))
        path = folder / CONFIG_FILE
        content = json.loads(path.read_text(encoding="utf-8"))
        content |= {"target_modules": sorted(content["target_modules"]), "inference_mode": True}
        write_atomic(path, json.dumps(content, indent=2, sort_keys=True) + "\n")

    @torch.no_grad()
    def merge(self) -> None:
        """Add the updates to the base's weights in float64, round to float32 and take the adapter out.

        The policy then has its own keys again, all in float32.
        """
        for name, layer in self.layers.items():
            base, scale = layer.base_layer, layer.scaling[ADAPTER]
            left, right = (part[ADAPTER].weight.double() for part in (layer.lora_B, layer.lora_A))
            base.weight = nn.Parameter((base.weight.double() + scale * (left @ right)).float(), False)
            parent, _, own = name.rpartition(".")
            setattr(self.policy.get_submodule(parent), own, base)
        self.policy.float()


def attach(policy: nn.Module, shape: LoraShape, seed: int) -> Adapter:
    """Freeze a policy and put updates into it that change nothing yet: A uniform, as peft draws it, B zero.

    A depends on the run's seed and the layer's place alone, not on the device or its random state.

    Raises:
        UserError: the card says other layers or sizes than the network has.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = {target: _layers(policy, target, size, shape.layers) for target, size in shape.held.items()}
    settings = LoraConfig(
        r=shape.rank, lora_alpha=shape.alpha, target_modules=list(shape.targets), init_lora_weights=False
    )
    policy.requires_grad_(False)
    with randomness.torch_seed(next(policy.parameters()).device, seed, "init/lora"):  # peft draws, too
        inject_adapter_in_model(settings, policy)
    layers: dict[str, Any] = {
        name: policy.get_submodule(name) for target in shape.targets for name in names[target]
    }
    for place, layer in enumerate(layers.values()):
        _initialise(layer, seed, place)
    if shape.base == "bf16":
        for name in (name for of_target in names.values() for name in of_target):
            frozen: nn.Module = layers[name].base_layer if name in layers else policy.get_submodule(name)
            _hold_in_bf16(frozen)
    return Adapter(policy, layers, _tree(layers), settings)


def _layers(policy: nn.Module, target: str, size: tuple[int, int], count: int) -> list[str]:
    """Names of the linear layers whose name ends so; raises UserError unless they are what the card says."""
    found = {n: m for n, m in policy.named_modules() if n.rpartition(".")[2] == target}
    sizes = [(m.in_features, m.out_features) for m in found.values() if isinstance(m, nn.Linear)]
    if sizes != [size] * count or len(sizes) != len(found):
        raise UserError(
            f"lora_targets of the model's card: the network has not {count} linear layers {target!r} of "
            f"{size[0]} inputs and {size[1]} outputs",
            fix="list layers that stand once in every one of policy.layers, with their sizes",
        )
    return list(found)


@torch.no_grad()
def _initialise(layer: Any, seed: int, place: int) -> None:
    first, second = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    rank, inputs = first.shape
    drawn = randomness.uniforms(seed, "init/lora", place, range(rank), (inputs,))
    first.copy_(torch.from_numpy((2 * drawn - 1) * inputs**-0.5))  # Kaiming's rule with a = √5
    second.zero_()


def _hold_in_bf16(layer: nn.Module) -> None:
    """Round a frozen layer; autocast would round it at every forward, so under it no bit changes."""
    layer.to(torch.bfloat16)
    layer.register_forward_pre_hook(_to_bf16)
    layer.register_forward_hook(_to_float32)


def _to_bf16(layer: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (arguments[0].to(layer.weight.dtype), *arguments[1:])


def _to_float32(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
    """Tokens are drawn outside autocast, where what lies between the layers is in float32."""
    return output if torch.is_autocast_enabled(output.device.type) else output.float()


def _tree(layers: Mapping[str, Any]) -> nn.Module:
    """Gather the updates, by reference, in a module whose state has them alone."""
    root = nn.Module()
    for name, layer in layers.items():
        place = root
        for part in name.split("."):
            if part not in dict(place.named_children()):
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.add_module("lora_A", layer.lora_A[ADAPTER])
        place.add_module("lora_B", layer.lora_B[ADAPTER])
    return root
