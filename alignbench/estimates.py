"""Memory and disk of a run, worked out from the architecture. Arithmetic, not measurement."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from alignbench.config import RunConfig
from alignbench.court import Court
from alignbench.problems import Problem
from alignbench.registry.catalogue import Catalogue
from alignbench.registry.schema import MethodCard, ModelCard, ProtocolCard

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


def rows_gib(
    catalogue: Catalogue, protocol: ProtocolCard, court: Court | None, method: MethodCard | None
) -> float:
    """What evaluators remember of all images until they are scored."""
    if court is None or court.problems:
        return 0.0
    images = protocol.samples * len(protocol.seeds) * len(protocol.settings) * (2 if method else 1)
    return images * sum(catalogue.evaluator(name).row_bytes for name in protocol.evaluators) / GIB


def estimate(
    config: RunConfig, model: ModelCard, method: MethodCard | None, rows_gib: float = 0.0
) -> Estimate:
    """Estimate memory and disk from the architecture.

    Trainable weights cost 16 bytes each (fp32 weight, gradient, two Adam moments). A layer keeps about
    9·dim + 3·ffn values per token for the backward pass (attention through a fused kernel), or dim with
    recomputation; transformers' Llama layers keep 15·dim + 4·ffn (measured on both sizes of Janus-Pro: 107
    and 212 kB per token in bf16). Logits are counted as fp32 with their gradient and one softmax copy. The
    decoder keeps about six feature maps of base width at full resolution per image.
    """
    shape, tokenizer, train = model.policy, model.tokenizer, config.train
    width = 2 if train.precision == "bf16" else 4
    trainable = shape.parameters if method is None or method.updates == "policy" else tokenizer.parameters
    frozen = shape.parameters + tokenizer.parameters - trainable
    length, per_layer = shape.tokens + shape.condition_tokens, 9 * shape.dim + 3 * shape.ffn_hidden
    if shape.text_vocab:  # a language model that reads the prompt itself
        length, per_layer = length + PROMPT_TOKENS, 15 * shape.dim + 4 * shape.ffn_hidden
    if train.recompute:
        per_layer = shape.dim
    decode_batch = int(config.section("method").get("decode_batch", train.micro_batch))
    rows = train.micro_batch
    if method is not None and method.update_rows == "sequence":
        rows *= int(config.section("method")[method.group_option])
    parts = {
        "weights, gradients, optimiser": trainable * 16.0 + frozen * 4.0,
        "autocast copy": trainable * 2.0 if train.precision == "bf16" else 0.0,
        "activations": float(rows * length * shape.layers * per_layer * width),
        "logits": float(rows * shape.tokens * shape.vocab_size * 12),
        "decoder": float(decode_batch * model.image_size**2 * tokenizer.base_channels * 4 * 6),
    }
    if model.text and model.text.parameters:
        parts["text encoder"] = model.text.parameters * 2.0
    parts = {name: size / GIB for name, size in parts.items()}
    disk = (trainable * 12.0 * 2 + (shape.parameters + tokenizer.parameters) * 4.0) / GIB + rows_gib
    return Estimate(train_gib=sum(parts.values()), disk_gib=disk, parts=parts)


def gib(size: float) -> str:
    """Two digits, or whole numbers from 100 on."""
    return f"{size:.0f}" if size >= 100 else f"{size:.2g}"


def disk_problem(folder: Path, needed_gib: float) -> Problem | None:
    """Return a problem if the file system that will hold `folder` has too little room."""
    existing = next(place for place in [folder, *folder.parents] if place.exists())
    free = shutil.disk_usage(existing).free / GIB
    if free >= needed_gib:
        return None
    return Problem(
        "disk",
        f"{gib(free)} GiB free under {existing}, about {gib(needed_gib)} GiB needed",
        "free space or choose another folder with --out",
    )
