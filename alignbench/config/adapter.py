"""What LoRA would train, worked out from the card alone; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from alignbench.config.settings import RunConfig
from alignbench.errors import Problem, missing_packages, suggest
from alignbench.registry.schema import MethodCard, ModelCard

SETTINGS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "lora_base")


@dataclass(frozen=True, kw_only=True)
class LoraShape:
    """Low-rank updates B·A·(alpha / rank) of linear layers, A [rank, inputs] and B [outputs, rank]."""

    rank: int
    alpha: int
    targets: Mapping[str, tuple[int, int]]
    """{last part of a layer's name: (inputs, outputs)} of what is adapted."""
    base: str
    """`fp32` or `bf16`: what the matrices of `held` are kept in."""
    held: Mapping[str, tuple[int, int]]
    """All that the card says may be adapted."""
    layers: int
    """How often each of them stands in the network."""

    @property
    def trainable(self) -> int:
        """Numbers that train."""
        return self.layers * self.rank * sum(map(sum, self.targets.values()))

    @property
    def held_numbers(self) -> int:
        """Numbers in the frozen matrices of `held`."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.held.values())


def lora_of(config: RunConfig, model: ModelCard, method: MethodCard | None) -> LoraShape | None:
    """Return what LoRA adds, or None without it; names that the card lacks are left out."""
    train = config.train
    if method is None or train.adapter == "none":
        return None
    names = _names(train.lora_targets) or list(model.lora_targets)
    return LoraShape(
        rank=train.lora_rank,
        alpha=train.lora_alpha,
        targets={name: model.lora_targets[name] for name in names if name in model.lora_targets},
        base=train.lora_base,
        held=model.lora_targets,
        layers=model.policy.layers,
    )


def lora_problems(config: RunConfig, model: ModelCard, method: MethodCard) -> Iterator[Problem]:
    """Yield why an adapter cannot be trained, and settings that nothing would read."""
    train, leave = config.train, "leave it out"
    if train.adapter == "none":
        for name in SETTINGS:
            if f"train.{name}" in config.values:
                yield Problem(
                    f"train.{name}", "changes nothing without an adapter", "--set train.adapter=lora"
                )
        return
    if method.updates != "policy":
        what = f"{config.method} trains the tokenizer's decoder, an adapter is for policies"
        yield Problem("train.adapter", what, leave)
    if train.shard in ("full", "hybrid"):
        what = "an adapter is small and is trained whole, the frozen weights beside it are not cut"
        yield Problem("train.shard", what, leave)
    missing, fix = missing_packages(["peft"], "lora")
    if missing:
        yield Problem("train.adapter", "needs peft", fix)
    if not model.lora_targets:
        what = f"the card of {config.model} does not say which layers LoRA may adapt"
        yield Problem("train.adapter", what, "add lora_targets to the card: docs/adapters.md")
    for name in _names(train.lora_targets):
        if model.lora_targets and name not in model.lora_targets:
            what = f"{config.model} has no layer {name!r} to adapt.{suggest(name, model.lora_targets)}"
            yield Problem("train.lora_targets", what, f"name some of {', '.join(model.lora_targets)}")
    if train.lora_dropout:
        what = "probabilities of what was drawn are computed without dropout, so must the update's be"
        yield Problem("train.lora_dropout", what, leave)
    if train.lora_base == "bf16" and train.precision != "bf16":
        yield Problem("train.lora_base", "bf16 needs a run in bf16", "--set train.precision=bf16")
    parts = config.values.get("model.trains")
    if parts and parts.value != model.options["trains"].default:
        yield Problem("model.trains", "changes nothing: the adapter alone trains", "use train.lora_targets")


def lora_line(lora: LoraShape, parameters: int) -> str:
    """What the plan says of it."""
    return (
        f"LoRA of rank {lora.rank} on {', '.join(lora.targets)} · {lora.trainable:,} of "
        f"{parameters + lora.trainable:,} parameters train · frozen layers in {lora.base}"
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
