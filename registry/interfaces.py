"""What an implementation must have, by kind of its card, and how it is loaded so that a lack is named.

Looks at names only; imports no torch.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from alignbench.errors import UserError, suggest
from alignbench.registry.lookup import SINGULAR, Registry, import_target
from alignbench.registry.schema import MethodCard, RewardCard

CLASS_MEMBERS: dict[str, tuple[str, ...]] = {
    "methods": ("Config", "updates", "collect", "loss"),
    "rewards": ("score",),
    "evaluators": ("measure", "score"),
    "models": ("logits", "generate", "reference", "export"),
    "datasets": ("__len__", "load"),
}
"""What a class has before anything of it is built. `api` and `data.ImageDataset` say what they do."""

OBJECT_MEMBERS: dict[str, tuple[str, ...]] = {
    "methods": CLASS_MEMBERS["methods"],
    "rewards": CLASS_MEMBERS["rewards"],
    "evaluators": (*CLASS_MEMBERS["evaluators"], "identity"),
    "models": (*CLASS_MEMBERS["models"], "tokenizer", "policy", "num_tokens", "grid", "image_size"),
    "datasets": (*CLASS_MEMBERS["datasets"], "num_classes", "class_names", "labels", "digest", "skipped"),
}
SET_REWARD = ("features", "prepare", "sums", "value", "credit", "advanced")
"""What a reward of scope `set` has instead, class and object."""


def members(kind: str, card: object, *, built: bool = True) -> tuple[str, ...]:
    """Return what the object of a card must have, or its class."""
    if isinstance(card, RewardCard) and card.scope == "set":
        return SET_REWARD
    return (OBJECT_MEMBERS if built else CLASS_MEMBERS)[kind]


def require(what: str, thing: object, members: tuple[str, ...]) -> None:
    """Raise UserError, naming everything that a class or an object lacks; `what` names it in the message."""
    missing = [name for name in members if not hasattr(thing, name)]
    if missing:
        raise UserError(f"{what} lacks {', '.join(missing)}", fix="docs/plugins.md says what each kind needs")


def load(registry: Registry, kind: str, name: str) -> Any:
    """Import the target of a card; UserError names the card and why: no import, or an unfit method."""
    card: Any = registry.card(kind, name)
    what = f"{SINGULAR[kind]} {name!r} ({registry.locations[kind][name].path})"
    try:
        target = import_target(card.target)
    except UserError as error:
        raise UserError(f"{what}: {error.what}") from error
    if kind == "methods":
        check_method(what, target, card)
    return target


def check_method(what: str, target: Any, card: MethodCard) -> None:
    """Raise UserError unless a method's class has what the driver calls and takes its card's options."""
    require(what, target, CLASS_MEMBERS["methods"])
    if target.updates != card.updates:
        raise UserError(f"{what}: the class updates {target.updates!r}, its card says {card.updates!r}")
    if not is_dataclass(target.Config):
        raise UserError(f"{what}: Config is not a dataclass")
    names = [field.name for field in fields(target.Config)]
    for name in card.options:
        if name not in names:
            raise UserError(f"{what}: the card's {name!r} is no field of Config.{suggest(name, names)}")
    for name in names:
        if name not in card.options:
            raise UserError(f"{what}: Config.{name} is no option of the card.{suggest(name, card.options)}")
