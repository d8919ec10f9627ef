"""Find and read cards: the built-in ones, those of installed plug-ins, and those in `ALIGNBENCH_PATH`.

A folder is the kind, a file name the name. Only the cards asked for are read; no implementation is
imported, so a broken plug-in cannot break a listing.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from alignbench.errors import UserError, suggest
from alignbench.registry.schema import (
    KINDS,
    Card,
    DatasetCard,
    EvaluatorCard,
    MethodCard,
    MetricFact,
    ModelCard,
    ProtocolCard,
    PublishedCard,
    RecipeCard,
    RewardCard,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SINGULAR = {
    "models": "model",
    "methods": "method",
    "evaluators": "evaluator",
    "rewards": "reward",
    "datasets": "dataset",
    "recipes": "recipe",
    "protocols": "protocol",
    "published": "published table set",
}

CardT = TypeVar("CardT", bound=Card)


def read_card(path: Path, kind: str) -> Card:
    """Read one card.

    Raises:
        UserError: naming the file, the key and the reason.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: not a readable TOML card: {error}") from error
    try:
        return KINDS[kind].model_validate(values)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc'])) or '(card)'}: {item['msg']}" for item in error.errors()
        ]
        raise UserError(f"{path}: {'; '.join(problems)}") from error


def import_target(target: str) -> Any:
    """Import `module:attribute`.

    Raises:
        UserError: the module fails to import or lacks the attribute, with the reason.
    """
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(f"{target} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        raise UserError(f"{target}: module {module_name} has no {attribute!r}")
    return getattr(module, attribute)


@dataclass(frozen=True)
class Found:
    """Where a card lies and who brought it."""

    path: Path
    origin: str
    """`built-in`, the plug-in's name, or `ALIGNBENCH_PATH`."""


class Catalogue:
    """All cards by kind and name."""

    def __init__(self, roots: list[tuple[str, Path]]) -> None:
        self.roots = roots

    @classmethod
    def default(cls) -> Catalogue:
        """Built-in cards, then plug-ins (entry-point group `alignbench`), then `ALIGNBENCH_PATH`."""
        roots = [("built-in", Path(__file__).parent)]
        for point in sorted(entry_points(group="alignbench"), key=lambda point: point.name):
            spec = importlib.util.find_spec(point.value.partition(":")[0])
            if spec is not None and spec.submodule_search_locations:
                roots += [(point.name, Path(place) / "registry") for place in spec.submodule_search_locations]
        for folder in filter(None, os.environ.get("ALIGNBENCH_PATH", "").split(os.pathsep)):
            roots.append(("ALIGNBENCH_PATH", Path(folder).expanduser()))
        return cls(roots)

    @functools.cached_property
    def found(self) -> dict[str, dict[str, Found]]:
        """{kind: {name: where}}.

        Raises:
            UserError: two cards of one kind and name, naming both files.
        """
        found: dict[str, dict[str, Found]] = {kind: {} for kind in KINDS}
        for origin, root in self.roots:
            for kind, cards in found.items():
                for path in sorted((root / kind).glob("*.toml")):
                    if path.stem in cards:
                        raise UserError(
                            f"two {SINGULAR[kind]} cards are named {path.stem!r}: "
                            f"{cards[path.stem].path} and {path}",
                            fix="rename one of the files",
                        )
                    cards[path.stem] = Found(path, origin)
        return found

    @functools.cached_property
    def planned(self) -> dict[str, dict[str, str]]:
        """{kind: {name: reason}} of what built-in cards mention and this version does not have."""
        text = (Path(__file__).parent / "planned.toml").read_text(encoding="utf-8")
        planned: dict[str, dict[str, str]] = tomllib.loads(text)["planned"]
        return planned

    def names(self, kind: str) -> list[str]:
        return sorted(self.found[kind])

    def card(self, kind: str, name: str) -> Card:
        """Read one card by name.

        Raises:
            UserError: unknown name, with the nearest ones; or a broken card.
        """
        known = self.found[kind]
        if name not in known and name in self.planned.get(kind, {}):
            raise UserError(
                f"{SINGULAR[kind]} {name!r} is not in this version: {self.planned[kind][name]}"
            )
        if name not in known:
            raise UserError(
                f"no {SINGULAR[kind]} named {name!r}.{suggest(name, known)} See: alignbench list {kind}"
            )
        return read_card(known[name].path, kind)

    def all(self, kind: str) -> dict[str, Card]:
        return {name: self.card(kind, name) for name in self.names(kind)}

    # Typed access, one line each, so that callers need no casts.
    def model(self, name: str) -> ModelCard:
        return cast(ModelCard, self.card("models", name))

    def method(self, name: str) -> MethodCard:
        return cast(MethodCard, self.card("methods", name))

    def evaluator(self, name: str) -> EvaluatorCard:
        return cast(EvaluatorCard, self.card("evaluators", name))

    def reward(self, name: str) -> RewardCard:
        return cast(RewardCard, self.card("rewards", name))

    def dataset(self, name: str) -> DatasetCard:
        return cast(DatasetCard, self.card("datasets", name))

    def recipe(self, name: str) -> RecipeCard:
        return cast(RecipeCard, self.card("recipes", name))

    def protocol(self, name: str) -> ProtocolCard:
        return cast(ProtocolCard, self.card("protocols", name))

    def published(self, name: str) -> PublishedCard:
        return cast(PublishedCard, self.card("published", name))

    def published_cards(self) -> dict[str, PublishedCard]:
        return {name: self.published(name) for name in self.names("published")}

    def metric_facts(self) -> dict[str, MetricFact]:
        """Return {metric: how it is shown} over all evaluator cards, in the order of the columns.

        Raises:
            UserError: two evaluators define one metric name.
        """
        facts: dict[str, MetricFact] = {}
        owner: dict[str, str] = {}
        for name in self.names("evaluators"):
            for metric, fact in self.evaluator(name).metrics.items():
                if metric in facts:
                    raise UserError(
                        f"metric {metric!r} is defined by two evaluator cards: {owner[metric]} and {name}",
                        fix="rename it on one of the cards",
                    )
                facts[metric], owner[metric] = fact, name
        return facts

    def recipe_for(self, method: str, model: str) -> str | None:
        """Return the name of the one recipe for (method, model), or None.

        Raises:
            UserError: more than one recipe claims the pair.
        """
        names = [
            name
            for name in self.names("recipes")
            if (recipe := self.recipe(name)).method == method and model in recipe.models
        ]
        if len(names) > 1:
            raise UserError(
                f"{len(names)} recipes for {method} on {model}: {', '.join(names)}",
                fix=f"choose one with --recipe, e.g. --recipe {names[0]}",
            )
        return names[0] if names else None
