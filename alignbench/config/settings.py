"""From names and `--set key=value` to one frozen, validated configuration with the origin of every value.

Order of precedence: card defaults < recipe < `--set`. Namespaces: `method.*` (the method card's options),
`train.*` (below), `model.*` (below), `data.*` (the dataset card's options), `protocol.*` (below), `assets.*`
(paths of files that evaluators read).
Imports no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from alignbench.errors import UserError, suggest
from alignbench.registry.lookup import Registry
from alignbench.registry.schema import Option, Scalar

TRAIN_OPTIONS: dict[str, Option] = {
    "steps": Option(default=100, minimum=0, doc="Optimiser steps."),
    "images_per_step": Option(default=128, minimum=1, doc="Images per optimiser step, over all devices."),
    "micro_batch": Option(default=8, minimum=1, doc="Images per forward and backward on one device."),
    "lr": Option(default=1e-6, minimum=0.0, maximum=1e30, doc="Peak learning rate of AdamW."),
    "beta1": Option(default=0.9, minimum=0.0, maximum=0.999999, doc="AdamW β₁."),
    "beta2": Option(default=0.999, minimum=0.0, maximum=0.999999, doc="AdamW β₂."),
    "eps": Option(default=1e-8, minimum=0.0, doc="AdamW ε."),
    "weight_decay": Option(default=1e-4, minimum=0.0, doc="Decay of matrices; norms and biases have none."),
    "grad_clip": Option(default=1.0, minimum=0.0, doc="Largest gradient norm; 0 switches clipping off."),
    "schedule": Option(
        default="constant", choices=["constant", "linear", "cosine"], doc="Learning rate after the warm-up."
    ),
    "warmup_steps": Option(default=0, minimum=0, doc="Steps of linear warm-up."),
    "precision": Option(
        default="fp32", choices=["fp32", "bf16"], doc="bf16: autocast over fp32 master weights."
    ),
    "recompute": Option(default=False, doc="Recompute transformer blocks in the backward pass."),
    "updates_per_collect": Option(default=1, minimum=1, doc="Optimiser steps on each collected batch."),
}

MODEL_OPTIONS: dict[str, Option] = {
    "weights": Option(
        default="pretrained", choices=["pretrained", "random"], doc="random: engine checks, never ranked."
    ),
    "policy": Option(default="", doc="Path of the policy's weights, instead of the card's file."),
    "tokenizer": Option(default="", doc="Path of the tokenizer's weights, instead of the card's file."),
}

RARE_OPTIONS: dict[str, Option] = {
    "model.text": Option(
        default="", doc="Path of the text encoder's weights, where the card has a file of them."
    ),
    "protocol.batch": Option(
        default=0,
        minimum=0,
        doc="Images generated together, for want of memory; rounding and so the protocol become others.",
    ),
}
"""A configuration holds these only if they were given."""

PROTOCOL_OPTIONS: dict[str, Option] = {
    "samples": Option(default=0, minimum=0, doc="Images per sampling seed; 0: as the protocol says."),
    "seeds": Option(default="", doc="Sampling seeds, e.g. 0,1,2; empty: as the protocol says."),
    "settings": Option(default="", doc="Sampling settings, e.g. t1,cfg2; empty: all of the protocol."),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """`train.*`, one field per key of `TRAIN_OPTIONS`."""

    steps: int
    images_per_step: int
    micro_batch: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip: float
    schedule: str
    warmup_steps: int
    precision: str
    recompute: bool
    updates_per_collect: int


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

    def section(self, name: str) -> dict[str, Scalar]:
        """Return one namespace as {key without prefix: value}."""
        prefix = f"{name}."
        return {
            key[len(prefix) :]: origin.value for key, origin in self.values.items() if key.startswith(prefix)
        }

    @property
    def train(self) -> TrainConfig:
        section = self.section("train")
        return TrainConfig(**{field.name: section[field.name] for field in fields(TrainConfig)})  # type: ignore[arg-type]

    def changed(self) -> dict[str, Origin]:
        """Values that were given on the command line."""
        return {key: origin for key, origin in self.values.items() if origin.source.startswith("--")}

    def as_dict(self) -> dict[str, Any]:
        """The JSON form kept in the run folder."""
        return {
            "method": self.method,
            "model": self.model,
            "dataset": self.dataset,
            "protocol": self.protocol,
            "recipe": self.recipe,
            "seed": self.seed,
            "values": {key: origin.value for key, origin in self.values.items()},
        }


def parse_assignments(assignments: Sequence[str]) -> dict[str, str]:
    """Split `key=value` strings.

    Raises:
        UserError: a string without `=`.
    """
    parsed = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {text!r} is not of the form key=value")
        parsed[key.strip()] = value.strip()
    return parsed


def parse_value(text: str, option: Option) -> Scalar:
    """Read a command-line value in the type of its option.

    Raises:
        ValueError: saying what is allowed.
    """
    kind = type(option.default)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{text!r} is not true or false")
        return option.check(text.lower() == "true")
    if kind is str:
        return option.check(text)
    try:
        return option.check(int(text) if kind is int else float(text))
    except ValueError as error:
        if "could not convert" in str(error) or "invalid literal" in str(error):
            raise ValueError(f"{text!r} is not {'a whole number' if kind is int else 'a number'}") from None
        raise


def known_options(
    registry: Registry, method: str | None, dataset: str, model: str | None = None
) -> dict[str, Option]:
    """All keys that `--set` takes for this method, data set and model."""
    options = {f"train.{key}": option for key, option in TRAIN_OPTIONS.items()}
    options |= {f"model.{key}": option for key, option in MODEL_OPTIONS.items()} | RARE_OPTIONS
    if model is not None:
        options |= {f"model.{key}": option for key, option in registry.model(model).options.items()}
    options |= {f"protocol.{key}": option for key, option in PROTOCOL_OPTIONS.items()}
    options |= {f"data.{key}": option for key, option in registry.dataset(dataset).options.items()}
    options |= asset_options(registry)
    if method is not None:
        options |= {f"method.{key}": option for key, option in registry.method(method).options.items()}
    return options


def asset_options(registry: Registry) -> dict[str, Option]:
    """Keys for files that evaluators read; a configuration holds only those that are given."""
    return {
        f"assets.{name}": Option(default="", doc="Path of this file, instead of where it is looked for.")
        for name in registry.names("assets")
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
    seed: int = 0,
) -> RunConfig:
    """Resolve names and values.

    Raises:
        UserError: unknown names and keys with suggestions, values of the wrong type or range, a recipe
            for another method or model.
    """
    if method is not None:
        registry.method(method)
    model_card = registry.model(model)
    dataset = dataset or model_card.dataset
    options = known_options(registry, method, dataset, model)
    values = {
        key: Origin(option.default, "default")
        for key, option in options.items()
        if not key.startswith("assets.") and key not in RARE_OPTIONS
    }
    recipe = _apply_recipe(registry, values, options, method, model, recipe)
    given = {complete_key(key, options): text for key, text in parse_assignments(assignments).items()}
    if steps is not None and "train.steps" in given:
        raise UserError("--steps and --set train.steps were both given", fix="give one of them")
    for key, text in given.items():
        _assign(values, options, key, text, source="--set")
    if steps is not None:
        _assign(values, options, "train.steps", str(steps), source="--steps")
    return RunConfig(
        method=method,
        model=model,
        dataset=dataset,
        protocol=protocol or model_card.protocol,
        recipe=recipe,
        seed=seed,
        values=dict(sorted(values.items())),
    )


def _apply_recipe(
    registry: Registry,
    values: dict[str, Origin],
    options: Mapping[str, Option],
    method: str | None,
    model: str,
    recipe: str | None,
) -> str | None:
    """Overwrite defaults with the recipe's values; return the recipe's name."""
    if method is None:
        return None
    name = recipe or registry.recipe_for(method, model)
    if name is None:
        return None
    card = registry.recipe(name)
    if card.method != method:
        raise UserError(f"recipe {name!r} is for method {card.method!r}, not {method!r}")
    for key, value in card.values.items():
        if key.startswith("data.") and key not in options:
            continue  # another data set than the recipe's was chosen
        if key not in options:
            raise UserError(f"recipe {name!r}: unknown key {key!r}.{suggest(key, options)}")
        try:
            values[key] = Origin(options[key].check(value), f"recipe {name}")
        except ValueError as error:
            raise UserError(f"recipe {name!r}: {key}: {error}") from error
    return name


def complete_key(key: str, options: Mapping[str, Option]) -> str:
    """Complete a key without a dot when only one namespace has it (`clip_range` → `method.clip_range`)."""
    owners = [known for known in options if known.rpartition(".")[2] == key]
    return owners[0] if "." not in key and len(owners) == 1 else key


def _assign(
    values: dict[str, Origin], options: Mapping[str, Option], key: str, text: str, *, source: str
) -> None:
    """Check one command-line value and store it."""
    if key not in options:
        raise UserError(
            f"no setting named {key!r}.{suggest_key(key, options)}",
            fix="alignbench show METHOD lists the method's keys, alignbench run --help the others",
        )
    try:
        values[key] = Origin(parse_value(text, options[key]), source)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from error


def suggest_key(key: str, options: Mapping[str, Option]) -> str:
    """Suggest full keys: of the same namespace first, then of any; also for a name cut short."""
    namespace, _, leaf = key.rpartition(".")
    own = [known for known in options if known.startswith(f"{namespace}.")]
    for candidates in filter(None, (own, list(options))):
        leaves = {known.rpartition(".")[2]: known for known in candidates}
        near = [name for name in leaves if name.startswith(leaf)]
        near = near or difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.6)
        if near:
            return f" Did you mean {leaves[near[0]]}?"
    return ""
