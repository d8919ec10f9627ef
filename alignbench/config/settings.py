"""From names and `--set key=value` to one frozen, validated configuration with the origin of every value.

Order of precedence: card defaults < recipe < `--set`. Namespaces: `method.*` (the method card's options),
`train.*` (below), `model.*` (below), `data.*` (the dataset card's options), `protocol.*` (below), `assets.*`
(paths of files that evaluators and rewards read).
Imports no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from alignbench.errors import UserError, suggest
from alignbench.registry.lookup import Registry
from alignbench.registry.schema import Option, Scalar


def _train(default: Any, doc: str, **limits: Any) -> Any:
    """A field of `TrainConfig` that is an option too."""
    return field(default=default, metadata={"option": Option(default=default, doc=doc, **limits)})


def _rare(default: Any, doc: str, **limits: Any) -> Any:
    return _train(default, doc, rare=True, **limits)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """`train.*`: how long, on how much, with which optimiser."""

    steps: int = _train(100, "Optimiser steps.", minimum=0)
    images_per_step: int = _train(128, "Images per optimiser step, over all devices.", minimum=1)
    micro_batch: int = _train(8, "Images per forward and backward on one device.", minimum=1)
    lr: float = _train(1e-6, "Peak learning rate of AdamW.", minimum=0.0, maximum=1e30)
    beta1: float = _train(0.9, "AdamW β₁.", minimum=0.0, maximum=0.999999)
    beta2: float = _train(0.999, "AdamW β₂.", minimum=0.0, maximum=0.999999)
    eps: float = _train(1e-8, "AdamW ε.", minimum=1e-30)
    weight_decay: float = _train(1e-4, "Decay of matrices; norms and biases have none.", minimum=0.0)
    grad_clip: float = _train(1.0, "Largest gradient norm; 0 switches clipping off.", minimum=0.0)
    schedule: str = _train(
        "constant", "Learning rate after the warm-up.", choices=["constant", "linear", "cosine"]
    )
    warmup_steps: int = _train(0, "Steps of linear warm-up.", minimum=0)
    precision: str = _train("fp32", "bf16: autocast over fp32 master weights.", choices=["fp32", "bf16"])
    recompute: bool = _train(False, "Recompute transformer blocks in the backward pass.")
    shard: str = _rare(
        "none", "Cut what trains (hybrid: within nodes).", choices=["none", "full", "hybrid", "auto"]
    )
    async_checkpoint: bool = _rare(False, "Write checkpoints while training goes on, from a copy in memory.")
    updates_per_collect: int = _train(1, "Optimiser steps on each collected batch.", minimum=1)
    failed_rewards: float = _rare(
        0.1, "Largest share of a step's images that may stay without a score.", minimum=0.0, maximum=1.0
    )
    adapter: str = _rare("none", "lora: low-rank updates of a frozen policy train.", choices=["none", "lora"])
    lora_rank: int = _rare(16, "Rank of the updates.", minimum=1)
    lora_alpha: int = _rare(32, "Updates are scaled by alpha over rank.", minimum=1)
    lora_dropout: float = _rare(0.0, "Has to be 0.", minimum=0.0)
    lora_targets: str = _rare("", "Linear layers that are adapted, with commas; empty: all the card names.")
    lora_base: str = _rare("fp32", "What the frozen layers are held in.", choices=["fp32", "bf16"])


COMMON_OPTIONS: dict[str, dict[str, Option]] = {
    "train": {item.name: item.metadata["option"] for item in fields(TrainConfig)},
    "model": {
        "weights": Option(
            default="pretrained", choices=["pretrained", "random"], doc="random: engine checks, never ranked."
        ),
        "policy": Option(default="", doc="Path of the policy's weights, instead of the card's file."),
        "tokenizer": Option(default="", doc="Path of the tokenizer's weights, instead of the card's file."),
        "text": Option(
            default="",
            doc="Path of the text encoder's weights, where the card has a file of them.",
            rare=True,
        ),
    },
    "protocol": {
        "samples": Option(default=0, minimum=0, doc="Images per sampling seed; 0: as the protocol says."),
        "seeds": Option(default="", doc="Sampling seeds, e.g. 0,1,2; empty: as the protocol says."),
        "settings": Option(default="", doc="Sampling settings, e.g. t1,cfg2; empty: all of the protocol."),
        "batch": Option(default=0, minimum=0, doc="Images generated together; changes rounding.", rare=True),
        "evaluators": Option(default="", doc="More of them; makes it another protocol.", rare=True),
    },
}
"""{namespace: {key: option}} of what does not depend on a card."""

HOW = {"train.shard", "train.async_checkpoint"}
"""Keys that change no result: a run may be continued with others."""


@dataclass(frozen=True)
class Origin:
    """Where a value comes from."""

    value: Scalar
    source: str
    """`default`, `recipe NAME` or `--set` (or the name of the flag)."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the result of a run. Equal digests mean equal runs."""

    method: str | None
    """None for `evaluate` and `sample`, which train nothing."""
    model: str
    dataset: str
    protocol: str
    recipe: str | None
    seed: int
    values: Mapping[str, Origin]
    """Every dotted key, sorted."""

    def section(self, name: str) -> dict[str, Any]:
        """Return one namespace as {key without prefix: value}."""
        prefix = f"{name}."
        return {
            key[len(prefix) :]: origin.value for key, origin in self.values.items() if key.startswith(prefix)
        }

    @property
    def train(self) -> TrainConfig:
        return TrainConfig(**self.section("train"))

    def changed(self) -> dict[str, Origin]:
        """Values that were given on the command line."""
        return {key: origin for key, origin in self.values.items() if origin.source.startswith("--")}

    def as_dict(self) -> dict[str, Any]:
        """The JSON form kept in the run folder."""
        values = {key: origin.value for key, origin in self.values.items()}
        return {**{item.name: getattr(self, item.name) for item in fields(self)}, "values": values}


def parse_assignments(
    assignments: Sequence[str], options: Mapping[str, Option] | None = None
) -> dict[str, str]:
    """Split `key=value`, else UserError; where options are given, keys without a dot are completed."""
    parsed = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {text!r} is not of the form key=value")
        parsed[complete_key(key.strip(), options or {})] = value.strip()
    return parsed


def known_options(
    registry: Registry,
    *,
    method: str | None = None,
    model: str | None = None,
    dataset: str | None = None,
    sections: Collection[str] = ("train", "model", "protocol", "data", "assets", "method"),
) -> dict[str, Option]:
    """Return {dotted key: option} of all that `--set` takes for these cards, of some namespaces or all."""
    settable = {section: dict(options) for section, options in COMMON_OPTIONS.items()}
    if model is not None:
        settable["model"] |= registry.model(model).options
    if dataset is not None:
        settable["data"] = registry.dataset(dataset).options
    path = Option(default="", doc="Path of this file, instead of where it is looked for.", rare=True)
    settable["assets"] = dict.fromkeys(registry.names("assets"), path)
    if method is not None:
        settable["method"] = registry.method(method).options
    return {
        f"{section}.{key}": option
        for section in settable
        if section in sections
        for key, option in settable[section].items()
    }


def resolve(
    registry: Registry,
    *,
    method: str | None,
    model: str,
    dataset: str | None = None,
    recipe: str | None = None,
    protocol: str | None = None,
    assignments: Sequence[str] = (),
    steps: int | None = None,
) -> RunConfig:
    """Resolve names and values.

    Raises:
        UserError: unknown names and keys with suggestions, values of the wrong type or range, empty paths,
            a recipe for another method.
    """
    if method is not None:
        registry.method(method)
    model_card = registry.model(model)
    recipe = (recipe or registry.recipe_for(method, model)) if method else None
    dataset = dataset or (registry.recipe(recipe).data if recipe else "") or model_card.dataset
    options = known_options(registry, method=method, model=model, dataset=dataset)
    values = {key: Origin(option.default, "default") for key, option in options.items() if not option.rare}
    if method and recipe:
        values |= _recipe_values(registry, recipe, method, options)
    assigned = parse_assignments(assignments, options)
    if steps is not None and "train.steps" in assigned:
        raise UserError("--steps and --set train.steps were both given", fix="give one of them")
    for key, text in assigned.items():
        if key not in options:
            raise UserError(
                f"no setting named {key!r}.{suggest_key(key, options)}",
                fix="alignbench show METHOD lists the method's keys, alignbench run --help the others",
            )
        values[key] = Origin(_read(key, text, options), "--set")
    if steps is not None:
        values["train.steps"] = Origin(_read("train.steps", str(steps), options), "--steps")
    return RunConfig(
        method=method,
        model=model,
        dataset=dataset,
        protocol=protocol or model_card.protocol,
        recipe=recipe,
        seed=0,
        values=dict(sorted(values.items())),
    )


def _recipe_values(
    registry: Registry, name: str, method: str, options: Mapping[str, Option]
) -> dict[str, Origin]:
    """A recipe's values, without those of another data set than the chosen one."""
    card = registry.recipe(name)
    if card.method != method:
        raise UserError(f"recipe {name!r} is for method {card.method!r}, not {method!r}")
    values = {}
    for key, value in card.values.items():
        if key in options:
            try:
                values[key] = Origin(options[key].check(value), f"recipe {name}")
            except ValueError as error:
                raise UserError(f"recipe {name!r}: {key}: {error}") from error
        elif not key.startswith("data."):
            raise UserError(f"recipe {name!r}: unknown key {key!r}.{suggest(key, options)}")
    return values


def values_of(
    assignments: Sequence[str], options: Mapping[str, Option], *, why: str = "", fix: str = "leave it out"
) -> dict[str, Scalar]:
    """Read `--set` where a few keys have a meaning: {dotted key: value} of those that are there.

    Raises:
        UserError: another key, with why it has none and what to do; a value that its option does not take.
    """
    assigned = parse_assignments(assignments, options)
    for key in assigned:
        if key not in options:
            raise changes_nothing(key, why=why, hint=suggest_key(key, options), fix=fix)
    return {key: _read(key, text, options) for key, text in assigned.items()}


def changes_nothing(key: str, *, why: str = "", hint: str = "", fix: str = "leave it out") -> UserError:
    """The error for a key or flag that nothing would read."""
    return UserError(f"{key} changes nothing here{why and f': {why}'}{hint and f'.{hint}'}", fix=fix)


def complete_key(key: str, options: Mapping[str, Option]) -> str:
    """Complete a key without a dot when only one namespace has it (`clip_range` → `method.clip_range`)."""
    owners = [option for option in options if option.rpartition(".")[2] == key]
    return owners[0] if "." not in key and len(owners) == 1 else key


def _read(key: str, text: str, options: Mapping[str, Option]) -> Scalar:
    if not text and key.partition(".")[0] in ("assets", "model"):  # as from a shell variable that is not set
        raise UserError(f"--set {key}= is empty", fix="give a path, or leave it out")
    try:
        return options[key].parse(text)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from error


def suggest_key(key: str, options: Mapping[str, Option]) -> str:
    """Suggest full keys: of the same namespace first, then of any; also for a name cut short."""
    namespace, _, leaf = key.rpartition(".")
    own = [option for option in options if option.startswith(f"{namespace}.")]
    for candidates in filter(None, (own, list(options))):
        leaves = {option.rpartition(".")[2]: option for option in candidates}
        near = [name for name in leaves if name.startswith(leaf)]
        near = near or difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.6)
        if near:
            return f" Did you mean {leaves[near[0]]}?"
    return ""


def only(config: RunConfig, *sections: str) -> None:
    """Refuse values of other namespaces, which nothing would read; raises UserError naming the first."""
    for key in config.changed():
        if key.partition(".")[0] not in sections:
            raise changes_nothing(key)
