"""What a person chooses by: the few facts that tell the cards of a kind apart. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from alignbench.errors import missing_packages
from alignbench.hub.locate import FileStatus, locate_asset, locate_reward_files, locate_weights
from alignbench.hub.transfer import human_size
from alignbench.registry import reward_spec
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import AssetCard, EvaluatorCard, ProtocolCard
from alignbench.registry.schema import DatasetCard, MethodCard, ModelCard, RecipeCard, RewardCard
from alignbench.registry.tables import PublishedCard, SweepCard

Facts = dict[str, Any]
"""{fact: plain data}; `here`: whether all files and packages are on this machine, None: nothing tells."""
PLACES = ("root", "path", "file")
"""Options of data sets that say where a user's own data are."""


def facts_of(registry: Registry, kind: str, name: str) -> Facts:
    """Return what tells one card from the others of its kind, in order of importance.

    Raises:
        UserError: the card cannot be read, or names another one that does not exist.
    """
    return _FACTS[kind](registry, name, registry.card(kind, name))


def model_files(registry: Registry, name: str) -> list[FileStatus]:
    """Locate all that a model is built from: its weights, and its text encoder where that is an asset."""
    card = registry.model(name)
    asset = card.text.asset if card.text else ""
    own = [locate_asset(asset, registry.asset(asset))] if asset else []
    return [*locate_weights(name, card).values(), *own]


def _model(registry: Registry, name: str, card: ModelCard) -> Facts:
    files = model_files(registry, name)
    return {
        "condition": card.condition,
        "image_size": card.image_size,
        "parameters": card.policy.parameters,
        "download_bytes": _bytes(files),
        "here": bool(files) and _here(files, card.text.packages if card.text else ()),
        "licence": card.licence,
    }


def _method(_: Registry, __: str, card: MethodCard) -> Facts:
    defaults = [str(card.options[key].default) for key in card.reward_options]
    return {
        "trains": card.updates,
        "needs": list(card.needs),
        "rewards": [default or "your choice" for default in defaults if default != "none"],
        "paper": card.paper.removeprefix("arXiv:"),
    }


def _reward(registry: Registry, name: str, card: RewardCard) -> Facts:
    resolved = reward_spec.resolve(name, registry)
    files, needed = (
        locate_reward_files(registry, resolved),
        [x for x in card.files if x.needed(resolved.options)],
    )
    weights = [_asset(registry, x.asset, x.size) if x.asset else x.size for x in needed]
    seen = {"distance": "image pair", "set": "set of images"}
    return {
        "judges": seen.get(card.scope) or " + ".join(["image", *card.needs]),
        "gradient": card.differentiable,
        "needs": [*_extra(card.packages, card.extra), *weights],
        "here": _here(files, card.packages),
        "licence": card.licence,
    }


def _evaluator(registry: Registry, name: str, card: EvaluatorCard) -> Facts:
    files = [locate_asset(asset, registry.asset(asset)) for asset in card.assets]
    weights = [_asset(registry, asset) for asset in card.assets]
    return {
        "metrics": [metric for metric, fact in card.metrics.items() if not fact.detail],
        "here": _here(files, card.packages),
        "licence": card.licence or ", ".join(dict.fromkeys(file.card.licence for file in files)),
        "needs": [*card.needs, *_extra(card.packages, card.extra), *weights],
    }


def _asset_facts(_: Registry, name: str, card: AssetCard) -> Facts:
    file = locate_asset(name, card)
    return {
        "what": card.what,
        "download_bytes": _bytes([file]),
        "here": file.ok,
        "licence": card.licence,
    }


def _dataset(_: Registry, __: str, card: DatasetCard) -> Facts:
    places = [key for key in PLACES if key in card.options and card.options[key].default == ""]
    installed = _here([], card.packages)
    return {
        "condition": card.condition,
        "images": card.images,
        "needs": [*(f"data.{key}=…" for key in places), *_extra(card.packages, card.extra)],
        "here": None if places and installed else installed,
        "licence": card.licence,
    }


def _recipe(_: Registry, __: str, card: RecipeCard) -> Facts:
    return {
        "method": card.method,
        "default": card.default,
        "models": card.models,
        "source": card.source,
    }


def _protocol(registry: Registry, __: str, card: ProtocolCard) -> Facts:
    cards = [registry.evaluator(name) for name in card.evaluators]
    return {
        "condition": card.condition,
        "image_size": card.image_size,
        "samples": card.samples,
        "seeds": len(card.seeds),
        "settings": len(card.settings),
        "metrics": [metric for one in cards for metric, fact in one.metrics.items() if not fact.detail],
    }


def _published(_: Registry, __: str, card: PublishedCard) -> Facts:
    return {"tables": len(card.tables), "paper": card.paper}


def _sweep(_: Registry, __: str, card: SweepCard) -> Facts:
    return {"model": card.model, "seeds": len(card.seeds), "chosen_by": card.metric, "source": card.source}


_FACTS: dict[str, Callable[[Registry, str, Any], Facts]] = {
    "models": _model,
    "methods": _method,
    "evaluators": _evaluator,
    "assets": _asset_facts,
    "rewards": _reward,
    "datasets": _dataset,
    "recipes": _recipe,
    "protocols": _protocol,
    "published": _published,
    "sweeps": _sweep,
}


def _here(files: Iterable[FileStatus], packages: Sequence[str]) -> bool:
    return all(file.ok for file in files) and not missing_packages(packages)[0]


def _bytes(files: Sequence[FileStatus]) -> int | None:
    """What has to be downloaded, 0: all is shipped; None: cards do not say."""
    sizes = [0 if file.card.shipped else file.card.size for file in files]
    return None if None in sizes or not files else sum(filter(None, sizes))


def _extra(packages: Sequence[str], extra: str) -> list[str]:
    return [f"extra {extra}"] if extra and packages else list(packages)


def _asset(registry: Registry, name: str, otherwise: str = "") -> str:
    size = registry.asset(name).size
    text = human_size(size) if size else otherwise
    return f"{name} ({text})" if text else name
