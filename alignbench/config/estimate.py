"""Memory and disk of a run, worked out from the architecture. Arithmetic, not measurement."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from alignbench import distributed
from alignbench.config.adapter import LoraShape
from alignbench.config.settings import RunConfig
from alignbench.errors import Problem
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import ProtocolCard
from alignbench.registry.schema import MethodCard, ModelCard, PolicyShape

GIB = 2**30
PROMPT_TOKENS = 40
"""Taken for the length of a prompt with its template where a language model reads it."""


@dataclass(frozen=True)
class Estimate:
    """Arithmetic from the architecture, not a measurement."""

    train_gib: float
    """Device memory while training."""
    disk_gib: float
    """Checkpoints, export and what evaluators remember, in the run folder."""
    parts: dict[str, float]
    """GiB of weights, gradients and optimiser, activations, logits, decoder."""


def rows_gib(registry: Registry, protocol: ProtocolCard, method: MethodCard | None) -> float:
    """What evaluators remember of all images until they are scored."""
    images = protocol.samples * len(protocol.seeds) * len(protocol.settings) * (2 if method else 1)
    return images * sum(registry.evaluator(name).row_bytes for name in protocol.evaluators) / GIB


def estimate(
    config: RunConfig,
    model: ModelCard,
    method: MethodCard | None,
    rows_gib: float = 0.0,
    lora: LoraShape | None = None,
    *,
    processes: int = 1,
    per_node: int | None = None,
) -> Estimate:
    """Estimate memory and disk from the architecture.

    Trainable weights cost 16 bytes each (fp32 weight, gradient, two Adam moments), frozen ones 4, or 2 where
    LoRA's base is held in bf16. What a layer keeps for the backward pass is `layer_values`, and with LoRA at
    most that: of frozen norms it keeps less. Logits are counted as fp32 with their gradient and one softmax
    copy. The decoder keeps about 6.5 feature maps of base width at full resolution per image. Compared with
    measured peaks in docs/performance.md.

    `train.shard` divides the 16 bytes among `processes` (`hybrid`: among the `per_node` of a node). What is
    trained is then whole for a while, in the precision of the run while collecting; and where a step has
    several micro-batches, so are their float32 gradients while updating. `auto` counts as undivided.
    """
    shape, tokenizer, train = model.policy, model.tokenizer, config.train
    width = 2 if train.precision == "bf16" else 4
    trainable = shape.parameters if method is None or method.updates == "policy" else tokenizer.parameters
    frozen, copied = shape.parameters + tokenizer.parameters - trainable, trainable
    shares = shares_of(config, processes, per_node)
    held = {"weights, gradients, optimiser": trainable * 16.0 / shares + frozen * 4.0}
    if lora:
        trainable, copied = lora.trainable, lora.trainable + _rounded_copies(shape, lora, train.recompute)
        held = _held_with(lora, shape.parameters + tokenizer.parameters)
    length = shape.tokens + shape.condition_tokens
    if shape.text_vocab:  # a language model that reads the prompt itself
        length += PROMPT_TOKENS
    per_token = shape.layers * layer_values(shape, train.precision)
    if train.recompute:  # what enters each layer, in float32, and one layer at work
        per_token = shape.layers * shape.dim * 4 // width + layer_values(shape, train.precision)
    decode_batch = int(config.section("method").get("decode_batch", train.micro_batch))
    rows = train.micro_batch
    if method is not None and method.update_rows != "image":
        each = method.group_option if method.update_rows == "sequence" else method.update_rows
        rows *= each if isinstance(each, int) else int(config.section("method")[each])
    several = train.images_per_step // processes > train.micro_batch
    whole = 4.0 if several else width
    parts = {
        **held,
        "autocast copy": copied * 2.0 if train.precision == "bf16" and shares == 1 else 0.0,
        "gathered for a while": trainable * whole if shares > 1 else 0.0,
        "activations": float(rows * length * per_token * width),
        "logits": float(rows * shape.tokens * shape.vocab_size * 12),
        "decoder": float(decode_batch * model.image_size**2 * tokenizer.base_channels * 4 * 6.5),
    }
    if model.text and model.text.parameters:
        parts["text encoder"] = model.text.parameters * 2.0
    parts = {name: size / GIB for name, size in parts.items()}
    disk = (trainable * 12.0 * 3 + (shape.parameters + tokenizer.parameters) * 4.0) / GIB + rows_gib
    return Estimate(train_gib=sum(parts.values()), disk_gib=disk, parts=parts)


def shares_of(config: RunConfig, processes: int, per_node: int | None = None) -> int:
    """Return into how many parts `train.shard` cuts what trains; `auto` counts as undivided."""
    kind = config.train.shard
    if kind not in ("full", "hybrid"):
        return 1
    return processes // distributed.shard_copies(kind, processes, per_node)


def snapshot_gib(config: RunConfig, trainable: int, processes: int) -> float:
    """Host memory of a checkpoint that is written while training goes on; 0 without
    `train.async_checkpoint`.

    Weight and two moments in float32: of every process its part, of what is not cut on the first one alone.
    """
    return trainable * 12.0 / shares_of(config, processes) / GIB if config.train.async_checkpoint else 0.0


def _held_with(lora: LoraShape, parameters: int) -> dict[str, float]:
    """Bytes of frozen weights, `parameters` in all, and of what trains beside them."""
    narrow = lora.held_numbers if lora.base == "bf16" else 0
    return {
        "frozen weights": (parameters - narrow) * 4.0 + narrow * 2.0,
        "adapter, gradients, optimiser": lora.trainable * 16.0,
    }


def _rounded_copies(shape: PolicyShape, lora: LoraShape, recompute: bool) -> int:
    """Frozen numbers whose bf16 copy autocast makes and the backward pass needs: the head's and the layers'.

    Recomputed layers are copied one at a time.
    """
    layers = 0 if lora.base == "bf16" else lora.held_numbers // (lora.layers if recompute else 1)
    return shape.dim * shape.vocab_size + layers


def layer_values(shape: PolicyShape, precision: str) -> int:
    """Numbers of the precision's width that one layer keeps per token for the backward pass.

    Counted from what autograd saves (tests/config/test_plan.py counts again): under autocast norms and the
    residual stream stay in float32 and count twice. Attention goes through a fused kernel.
    """
    if shape.text_vocab:  # transformers' Llama
        return (17 if precision == "bf16" else 10) * shape.dim + 4 * shape.ffn_hidden
    return (21 if precision == "bf16" else 16) * shape.dim + 3 * shape.ffn_hidden


def gib(size: float) -> str:
    """Two digits, or whole numbers from 100 on."""
    return f"{size:.0f}" if size >= 100 else f"{size:.2g}"


def memory_note(estimate: Estimate, available_gib: float) -> str:
    """What to say where training will hardly fit on a device; empty where it should.

    No problem of the plan: the estimate may be a tenth off.
    """
    if estimate.train_gib <= available_gib:
        return ""
    return (
        f"about {gib(estimate.train_gib)} GiB are needed for training and this device has "
        f"{gib(available_gib)} → a smaller --set train.micro_batch=N, --set train.recompute=true, or on "
        "several devices --set train.shard=full"
    )


def disk_problem(folder: Path, needed_gib: float) -> Problem | None:
    """Return a problem if the file system of `folder` has too little room for what is not in it yet."""
    needed_gib -= sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / GIB
    existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
    free = shutil.disk_usage(existing).free / GIB
    if free >= needed_gib:
        return None
    return Problem(
        "disk",
        f"{gib(free)} GiB free under {existing}, about {gib(needed_gib)} GiB needed",
        "free space or choose another folder with --out",
    )
