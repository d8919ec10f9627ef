"""Words that fit a place of a command: what a shell completes. Imports no torch and no code of plug-ins."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignbench.config.settings import COMMON_OPTIONS, known_options
from alignbench.errors import UserError
from alignbench.registry import lookup, plugins
from alignbench.registry.lookup import KINDS, Registry
from alignbench.registry.schema import Option, Scalar

SECTIONS = {
    "sample": ["model"],
    "reference": ["assets"],
    "evaluate": ["model", "protocol", "assets"],
}
"""{command: namespaces that its `--set` takes}; the others take all."""

Line = Mapping[str, Any]
"""{parameter: value} of what is on the command line already."""


def registry_of(line: Line) -> Registry:
    """Return the cards that a command would see, without Python files of `--plugin`; the built-in ones alone
    where plug-ins are broken."""
    with contextlib.suppress(Exception):
        folders = [path for path in line.get("plugin") or () if Path(path).is_dir()]
        registry = plugins.load_registry(folders)
        if registry.locations:
            return registry
    return Registry([("built-in", Path(lookup.__file__).parent)])


def names(line: Line, *kinds: str) -> list[str]:
    """Names of cards of some kinds, of all kinds if none is named; each once."""
    registry = registry_of(line)
    return list(dict.fromkeys(name for kind in kinds or KINDS for name in registry.names(kind)))


def shown(line: Line) -> list[str]:
    """What `alignbench show` takes."""
    return [*COMMON_OPTIONS, *names(line)]


def metrics(line: Line) -> list[str]:
    """Names of all metrics."""
    registry = registry_of(line)
    found: list[str] = []
    for name in registry.names("evaluators"):
        with contextlib.suppress(UserError):
            found += registry.evaluator(name).metrics
    return found


def assignments(line: Line, begun: str, command: str = "run") -> list[str]:
    """Ways to go on with `--set`: keys, and behind a key its choices or its value so far.

    Args:
        begun: what is typed, e.g. `method.fid` or `train.schedule=`.
        command: whose `--set` it is.
    """
    registry = registry_of(line)
    method = _known(registry, "methods", line.get("method"))
    model = _known(registry, "models", line.get("model"))
    recipe = _recipe(registry, method, model, line.get("recipe"))
    data = line.get("data") or (registry.recipe(recipe).data if recipe else "")
    data = data or (registry.model(model).dataset if model else "")
    options = known_options(
        registry,
        method=method,
        model=model,
        dataset=_known(registry, "datasets", data),
        sections=SECTIONS.get(command, (*COMMON_OPTIONS, "data", "assets", "method")),
    )
    keys = [key for key in options if key.startswith(begun.partition("=")[0])]
    if "=" not in begun and len(keys) != 1:
        return [f"{key}=" for key in keys]
    key = begun.partition("=")[0] if "=" in begun else keys[0]
    now = registry.recipe(recipe).values.get(key) if recipe else None
    values = _values(registry, key, options[key], now, method, line)
    if "=" not in begun:  # one key is left: more than one word, or the shell would put a space behind it
        return [f"{key}=", *(f"{key}={value}" for value in values)]
    listed = f"{begun.rpartition(',')[0]}," if "," in begun else f"{key}="
    return [f"{listed}{value}" for value in values]


def _values(
    registry: Registry, key: str, option: Option, now: Scalar | None, method: str | None, line: Line
) -> list[str]:
    """What an option may be set to, or what it is."""
    section, _, leaf = key.partition(".")
    if section == "method" and method and leaf in registry.method(method).reward_options:
        return registry.names("rewards")
    if key == "protocol.settings":
        model = _known(registry, "models", line.get("model"))
        name = line.get("protocol") or (registry.model(model).protocol if model else "")
        return list(registry.protocol(name).settings) if name else []
    if isinstance(option.default, bool):
        return ["true", "false"]
    found = option.choices or [option.default if now is None else now]
    return [str(value) for value in found if value != ""]


def _recipe(registry: Registry, method: str | None, model: str | None, named: str | None) -> str | None:
    with contextlib.suppress(UserError):
        found = named or (registry.recipe_for(method, model) if method and model else None)
        return _known(registry, "recipes", found)
    return None


def _known(registry: Registry, kind: str, name: str | None) -> str | None:
    """A name, if a card that can be read has it."""
    with contextlib.suppress(UserError):
        if name:
            registry.card(kind, name)
            return name
    return None


# --- bash ---------------------------------------------------------------------------------------------------


def joined(words: Sequence[str], number: int) -> tuple[list[str], int, str]:
    """Join what bash splits at `=`, e.g. `--set`, `train.lr`, `=`, `1e-4`.

    Args:
        words: of the line.
        number: index of the word that is being completed.

    Returns:
        The words, the index among them, and what of the completed word bash will not replace.
    """
    made: list[str] = []
    at, kept = number, ""
    for index, word in enumerate([*words, *[""] * (number + 1 - len(words))]):
        glued = index > 1 and (word == "=" or (word and words[index - 1] == "="))
        if glued:
            made[-1] += word
        else:
            made.append(word)
        if index == number:
            at = len(made) - 1
            value = made[-1].partition("=")[2] if made[-1].startswith("-") else made[-1]  # of --set=KEY=VALUE
            kept = value[: value.rfind("=") + 1] if glued else ""
    return made, at, kept
