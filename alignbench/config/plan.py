"""What a run will do, worked out before anything expensive starts: geometry, files, memory, problems.

All problems are collected and shown at once, each with its remedy. Imports no torch and loads no weights.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alignbench import distributed
from alignbench.api import Prompt
from alignbench.config.estimate import Estimate, estimate, rows_gib
from alignbench.config.requirements import (
    _condition_problems,
    _data_problems,
    _geometry_problems,
    _model_problems,
    _reward_problems,
    _weight_problems,
    find_text_encoder,
    requirements_of,
)
from alignbench.config.settings import RunConfig
from alignbench.errors import Problem
from alignbench.files import cache_root, digest_of
from alignbench.hub.locate import FileStatus, locate_weights
from alignbench.hub.verify import AssetFile, verify
from alignbench.registry.lookup import Registry
from alignbench.registry.plugins import _sha256
from alignbench.registry.protocol import ProtocolCard, protocol_content, protocol_digest, resolve_protocol
from alignbench.registry.schema import MethodCard, ModelCard


@dataclass(frozen=True)
class Code:
    """A file outside alignbench that a run depends on."""

    path: str
    sha256: str
    """`sha256:` plus hex."""


def cards_used(registry: Registry, config: RunConfig, protocol: ProtocolCard) -> list[tuple[str, str]]:
    """(kind, name) of every card with code behind it that a run depends on."""
    used = [("models", config.model), ("datasets", config.dataset)]
    used += [("datasets", protocol.reference.dataset)] if protocol.reference else []
    used += [("evaluators", name) for name in protocol.evaluators]
    if config.method is not None:
        used.append(("methods", config.method))
        options = config.section("method")
        named = [str(options[option]) for option in registry.method(config.method).reward_options]
        used += [("rewards", word) for word in re.findall(r"[\w.-]+", " ".join(named))]
    return used


def foreign_code(registry: Registry, used: Iterable[tuple[str, str]]) -> tuple[Code, ...]:
    """Return the plug-in files of this process, and the modules behind cards that are not built in.

    Of an installed plug-in or a folder of cards this is the file a card points at, not what it imports.

    Args:
        registry: where the cards are.
        used: (kind, name) of the cards a run depends on; unknown names are passed over.
    """
    found = {str(file.path): Code(str(file.path), file.sha256) for file in registry.files}
    for kind, name in used:
        known = registry.found[kind].get(name)
        if known is None or known.origin == "built-in" or known.card is not None:
            continue
        card: Any = registry.card(kind, name)
        path = _module_file(card.target) if card.target else None
        if path is not None:
            found[str(path)] = Code(str(path), _sha256(path))
    return tuple(found[name] for name in sorted(found))


def _module_file(target: str) -> Path | None:
    """The source file of `module:attribute`, without importing it; None if it cannot be told."""
    top, *inner = target.partition(":")[0].split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not inner:
        candidates = [Path(spec.origin)] if spec.origin else []
    else:
        places = [Path(place, *inner) for place in spec.submodule_search_locations or []]
        candidates = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return next((file for file in candidates if file.is_file()), None)


@dataclass(frozen=True)
class Plan:
    """A resolved run."""

    id: str
    digest: str
    config: RunConfig
    model: ModelCard
    method: MethodCard | None
    protocol: ProtocolCard
    protocol_digest: str
    weights: dict[str, FileStatus]
    world_size: int
    sequences_per_image: int
    estimate: Estimate
    evaluates: bool = True
    """False with `--no-eval`."""
    assets: dict[str, AssetFile] = field(default_factory=dict)
    """Files that the protocol's evaluators read, by asset name; those that were found."""
    prompts: tuple[Prompt, ...] = ()
    """What a text protocol generates from."""
    text: AssetFile | None = None
    """Files of the model's text encoder, where they are an asset."""
    problems: list[Problem] = field(default_factory=list)
    plugins: tuple[Code, ...] = ()
    """Files outside alignbench that the run's code comes from."""

    @property
    def random_weights(self) -> bool:
        return self.config.values["model.weights"].value == "random"

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimiser step on one device."""
        per_device = self.config.train.images_per_step // self.world_size
        return -(-per_device // self.config.train.micro_batch)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form printed by `--dry-run --json`."""
        return {
            "id": self.id,
            "digest": self.digest,
            "config": self.config.as_dict(),
            "protocol": {"name": self.config.protocol, "digest": self.protocol_digest},
            "parameters": self.model.policy.parameters,
            "world_size": self.world_size,
            "images_per_step": self.config.train.images_per_step,
            "sequences_per_step": self.config.train.images_per_step * self.sequences_per_image,
            "accumulation": self.accumulation,
            "weights": {role: status.as_dict() for role, status in self.weights.items()},
            "estimate": asdict(self.estimate),
            "evaluates": self.evaluates,
            "assets": {n: {"path": str(a.path), "sha256": a.sha256} for n, a in self.assets.items()},
            "problems": [asdict(problem) for problem in self.problems],
            "plugins": [asdict(code) for code in self.plugins],
        }


def make_plan(registry: Registry, config: RunConfig, *, evaluates: bool = True) -> Plan:
    """Work a configuration out.

    Args:
        registry: where the cards are.
        config: the resolved configuration.
        evaluates: False with `--no-eval`: the protocol need not be runnable.

    Raises:
        UserError: names that do not exist. Everything else is listed in `Plan.problems`.
    """
    model = registry.model(config.model)
    method = registry.method(config.method) if config.method else None
    protocol = resolve_protocol(registry.protocol(config.protocol), config.section("protocol"))
    text, text_problems = find_text_encoder(registry, config, model)
    own = model.text.asset if model.text else ""
    paths = {asset: path for asset, path in config.section("assets").items() if asset != own}
    requirements = requirements_of(registry, config.protocol, protocol, paths) if evaluates else None
    protocol = requirements.protocol if requirements else protocol
    problems = list(requirements.problems) if requirements else []
    problems += _condition_problems(config, model, protocol) if evaluates else []
    section = config.section("model")
    overrides = {role: str(section[role]) for role in ("policy", "tokenizer", "text") if section.get(role)}
    weights = locate_weights(config.model, model, overrides)
    world_size = distributed.world_size()
    sequences = int(config.section("method")[method.group_option]) if method and method.group_option else 1
    problems += [*_model_problems(config, model, method), *text_problems]
    problems += _reward_problems(registry, config, method)
    if section["weights"] == "pretrained":
        problems += _weight_problems(config.model, model, weights)
    problems += _data_problems(registry, config, model)
    problems += _geometry_problems(config, world_size)
    code = foreign_code(registry, cards_used(registry, config, protocol))
    digest = digest_of(
        {
            "config": {**config.as_dict(), "recipe": None},  # a recipe is its values
            "protocol": protocol_content(protocol),
            "weights": {role: status.sha256 for role, status in weights.items()},
            "evaluates": evaluates,
            **({"plugins": sorted(file.sha256 for file in code)} if code else {}),
            **(
                {"assets": {n: a.sha256 for n, a in requirements.assets.items()}}
                if requirements and requirements.assets
                else {}
            ),
            **({"text": text.sha256} if text else {}),
        }
    )
    return Plan(
        id=f"{config.method or 'base'}-{config.model}-s{config.seed}-{digest[:8]}",
        digest=digest,
        config=config,
        model=model,
        method=method,
        protocol=protocol,
        protocol_digest=requirements.digest if requirements else protocol_digest(protocol),
        weights=weights,
        world_size=world_size,
        sequences_per_image=sequences,
        estimate=estimate(config, model, method, rows_gib(registry, protocol, requirements, method)),
        evaluates=evaluates,
        assets=requirements.assets if requirements else {},
        prompts=tuple(requirements.prompts) if requirements else (),
        text=text,
        problems=problems,
        plugins=code,
    )


def weights_digest(weights: dict[str, str]) -> str:
    """Identity of a set of weight files."""
    return f"sha256:{digest_of(weights)}"


def starting_weights(plan: Plan) -> dict[str, str]:
    """Hash the files that a run starts from, those of its text encoder included: {role: digest}.

    Raises:
        UserError: one is not the file that was meant.
    """
    if plan.random_weights:
        return {}
    weights = {role: f"sha256:{verify(status)}" for role, status in plan.weights.items()}
    return weights | ({"text": f"sha256:{plan.text.sha256}"} if plan.text else {})


@dataclass(frozen=True)
class Job:
    """A plan and how to carry it out; nothing here changes a result."""

    plan: Plan
    registry: Registry
    out: Path
    """The run folder."""
    command: str
    """What the user typed."""
    checkpoint_every: int = 20
    workers: int = 0
    """Threads that decode images in the background; 0: none."""
    exports: tuple[str, ...] = ()
    """Forms in which the scored images are written as well: `npz`, `png`."""

    @property
    def cache(self) -> Path:
        return cache_root()
