"""Find and read cards: the built-in ones, those of installed plug-ins, those in `ALIGNBENCH_PATH`, and those
that the classes of a `--plugin` file carry.

A folder is the kind, a file name the name. Only the cards asked for are read; no implementation of an
installed plug-in is imported, so a broken plug-in cannot break a listing.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from alignbench.errors import UserError, suggest
from alignbench.registry.protocol import AssetCard, EvaluatorCard, MetricFact, ProtocolCard
from alignbench.registry.schema import (
    Card,
    CodeFile,
    DatasetCard,
    MethodCard,
    ModelCard,
    RecipeCard,
    RewardCard,
    reasons,
)
from alignbench.registry.tables import PublishedCard, SweepCard

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

C = TypeVar("C", bound=Card)

KINDS: dict[str, type[Card]] = {
    "models": ModelCard,
    "methods": MethodCard,
    "evaluators": EvaluatorCard,
    "assets": AssetCard,
    "rewards": RewardCard,
    "datasets": DatasetCard,
    "recipes": RecipeCard,
    "protocols": ProtocolCard,
    "published": PublishedCard,
    "sweeps": SweepCard,
}
SINGULAR = {kind: kind.removesuffix("s") for kind in KINDS} | {"published": "published table set"}


def read_card(path: Path, kind: str) -> Card:
    """Read one card, or raise UserError naming the file, the key and the reason."""
    try:
        return _parse_card(path.read_text(encoding="utf-8"), kind)
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: not a readable TOML card: {error}") from error
    except ValidationError as error:
        raise UserError(f"{path}: {'; '.join(reasons(error, 'card'))}") from error


@functools.lru_cache(maxsize=1024)
def _parse_card(text: str, kind: str) -> Card:
    """Cards cannot be changed, so the same text is the same card: a plan asks for dozens, many times."""
    return KINDS[kind].model_validate(tomllib.loads(text))


def import_target(target: str) -> Any:
    """Import `module:attribute`, or raise UserError with the reason."""
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UserError(f"{target} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        raise UserError(f"{target}: module {module_name} has no {attribute!r}")
    return getattr(module, attribute)


@dataclass(frozen=True)
class CardLocation:
    """Where a card lies and who brought it."""

    path: Path
    origin: str
    """`built-in`, the plug-in's name, `ALIGNBENCH_PATH` or `--plugin`."""
    card: Card | None = None
    """Of a class in a `--plugin` file; None where `path` is the card itself."""


@dataclass(frozen=True)
class PluginFile:
    """A Python file given with `--plugin`, imported; see `alignbench.registry.plugins`."""

    code: CodeFile
    cards: Mapping[str, Mapping[str, Card]]
    """{kind: {name: card}}."""


def _reader(kind: str, form: type[C]) -> Callable[[Registry, str], C]:
    """Return a method of the registry that reads the cards of a kind."""
    return lambda registry, name: cast(C, registry.card(kind, name))


@functools.cache
def _installed(_: tuple[str, ...]) -> list[tuple[str, str]]:
    """(name, module) of each installed plug-in; looked for once, as every installed package is read."""
    return sorted((point.name, point.value) for point in entry_points(group="alignbench"))


class Registry:
    """All cards by kind and name.

    Args:
        roots: (who brings it, folder) in the order they are looked through.
        files: plug-in files of this process.
    """

    def __init__(self, roots: list[tuple[str, Path]], files: Sequence[PluginFile] = ()) -> None:
        self.roots, self.files = roots, tuple(files)

    @classmethod
    def default(cls) -> Registry:
        """Built-in cards, then plug-ins (entry-point group `alignbench`), then `ALIGNBENCH_PATH`.

        Modules that lie in a folder of `ALIGNBENCH_PATH` can be imported afterwards; they shadow nothing.
        Raises UserError if it names something that is no folder.
        """
        roots = [("built-in", Path(__file__).parent)]
        for name, module in _installed(tuple(sys.path)):
            roots += [(name, folder / "registry") for folder in module_paths(module)]
        for text in filter(None, os.environ.get("ALIGNBENCH_PATH", "").split(os.pathsep)):
            folder = Path(text).expanduser().absolute()
            if not folder.is_dir():
                raise UserError(f"ALIGNBENCH_PATH: {folder} is not a folder", fix="mend or unset it")
            make_importable(folder)
            roots.append(("ALIGNBENCH_PATH", folder))
        return cls(roots)

    @functools.cached_property
    def locations(self) -> dict[str, dict[str, CardLocation]]:
        """{kind: {name: where}}; two cards of one kind and name are a UserError that names both files."""
        locations: dict[str, dict[str, CardLocation]] = {kind: {} for kind in KINDS}

        def add(kind: str, name: str, card: CardLocation, fix: str) -> None:
            if name in locations[kind]:
                both = f"{locations[kind][name].path} and {card.path}"
                raise UserError(f"two {SINGULAR[kind]} cards are named {name!r}: {both}", fix=fix)
            locations[kind][name] = card

        for origin, root in self.roots:
            for kind in KINDS:
                for path in sorted((root / kind).glob("*.toml")):
                    add(kind, path.stem, CardLocation(path, origin), "rename one of the files")
        for file in self.files:
            fix = f'give the class in {file.code.path} another name in its card: "name"'
            for kind, cards in file.cards.items():
                for name, card in cards.items():
                    add(kind, name, CardLocation(Path(file.code.path), "--plugin", card), fix)
        return locations

    def names(self, kind: str) -> list[str]:
        return sorted(self.locations[kind])

    def card(self, kind: str, name: str) -> Card:
        """Read one card; raises UserError: it is broken, or an unknown name, with the nearest ones."""
        location = self.locations[kind].get(name)
        if location is not None:
            return location.card or read_card(location.path, kind)
        hint = suggest(name, self.locations[kind])
        raise UserError(f"no {SINGULAR[kind]} named {name!r}.{hint} See: alignbench list {kind}")

    def usable(self, kind: str) -> tuple[dict[str, Card], list[str]]:
        """Return all cards of a kind that can be read, and why others cannot.

        A broken card of a plug-in must not break what does not need it; a built-in one raises its UserError.
        """
        cards, problems = {}, []
        for name in self.names(kind):
            try:
                cards[name] = self.card(kind, name)
            except UserError as error:
                if self.locations[kind][name].origin == "built-in":
                    raise
                problems.append(str(error))
        return cards, problems

    # Typed access, so that callers need no casts.
    model = _reader("models", ModelCard)
    method = _reader("methods", MethodCard)
    evaluator = _reader("evaluators", EvaluatorCard)
    asset = _reader("assets", AssetCard)
    reward = _reader("rewards", RewardCard)
    dataset = _reader("datasets", DatasetCard)
    recipe = _reader("recipes", RecipeCard)
    protocol = _reader("protocols", ProtocolCard)
    published = _reader("published", PublishedCard)
    sweep = _reader("sweeps", SweepCard)

    def published_cards(self) -> dict[str, PublishedCard]:
        return {name: self.published(name) for name in self.names("published")}

    def asset_cards(self) -> dict[str, AssetCard]:
        return {name: self.asset(name) for name in self.names("assets")}

    def reward_cards(self) -> dict[str, RewardCard]:
        """Return those that can be read."""
        return cast(dict[str, RewardCard], self.usable("rewards")[0])

    def metric_facts(self) -> dict[str, MetricFact]:
        """Return {metric: how it is shown} in order of the columns; a name on two cards is a UserError."""
        facts: dict[str, MetricFact] = {}
        owner: dict[str, str] = {}
        for name, card in self.usable("evaluators")[0].items():
            for metric, fact in cast(EvaluatorCard, card).metrics.items():
                if metric in facts:
                    raise UserError(
                        f"metric {metric!r} is defined by two evaluator cards: {owner[metric]} and {name}",
                        fix="rename it on one of the cards",
                    )
                facts[metric], owner[metric] = fact, name
        return facts

    def recipe_for(self, method: str, model: str) -> str | None:
        """Return the name of the default recipe for (method, model), or None.

        Raises:
            UserError: several recipes claim the pair, or a broken one comes from where the method comes from.
        """
        names = []
        own = ("built-in", self.locations["methods"][method].origin)
        for name in self.names("recipes"):
            try:
                recipe = self.recipe(name)
            except UserError:
                if self.locations["recipes"][name].origin in own:
                    raise  # never the method's defaults instead of a recipe with a slip of the pen
                continue
            if recipe.default and recipe.method == method and model in recipe.models:
                names.append(name)
        if len(names) > 1:
            raise UserError(
                f"{len(names)} recipes for {method} on {model}: {', '.join(names)}",
                fix=f"choose one with --recipe, e.g. --recipe {names[0]}",
            )
        return names[0] if names else None


def make_importable(folder: Path) -> None:
    """Let modules of a folder be imported, after everything that is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def module_paths(target: str) -> list[Path]:
    """Where the module of `module` or `module:attribute` may lie, without suffix; nothing is imported."""
    top, *inner = target.partition(":")[0].split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is None:  # a single file
        return [Path(spec.origin).with_suffix("")] if spec.origin and not inner else []
    return [Path(folder, *inner) for folder in spec.submodule_search_locations]
