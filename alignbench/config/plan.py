"""What a run will do, worked out before anything expensive starts: geometry, files, memory, problems.

All problems are collected and shown at once, each with its remedy. Imports no torch and loads no weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignbench import distributed
from alignbench.api import Prompt
from alignbench.config.adapter import LoraShape, lora_of, lora_problems
from alignbench.config.estimate import Estimate, estimate, rows_gib, snapshot_gib
from alignbench.config.following import grid_problems, tracker_problems
from alignbench.config.requirements import (
    assets_of_rewards,
    condition_problems,
    find_classes,
    problems_of,
    requirements_of,
    rewards_of,
    unread,
)
from alignbench.config.settings import HOW, RunConfig
from alignbench.config.text_encoder import find_text_encoder
from alignbench.errors import Problem
from alignbench.files import cache_root, digest_of
from alignbench.hub.locate import (
    FileStatus,
    assets_of,
    locate_asset,
    locate_reward_files,
    locate_weights,
)
from alignbench.hub.verify import AssetFile, Requirements, verify
from alignbench.registry.lookup import Registry
from alignbench.registry.plugins import foreign_code
from alignbench.registry.protocol import ProtocolCard, protocol_content, protocol_digest, resolve_protocol
from alignbench.registry.schema import CodeFile, MethodCard, ModelCard


def cards_used(registry: Registry, config: RunConfig, protocol: ProtocolCard) -> list[tuple[str, str]]:
    """(kind, name) of every card with code behind it that a run depends on."""
    used = [("models", config.model), ("datasets", config.dataset)]
    used += [("datasets", protocol.reference.dataset)] if protocol.reference else []
    used += [("evaluators", name) for name in protocol.evaluators]
    if config.method is not None:
        used.append(("methods", config.method))
        options = config.section("method")
        method = registry.method(config.method)
        named = [str(options[option]) for option in method.reward_options if option in options]
        used += [("rewards", word) for word in re.findall(r"[\w.-]+", " ".join(named))]
    return used


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A resolved run."""

    id: str
    digest: str
    config: RunConfig
    model: ModelCard
    method: MethodCard | None
    requirements: Requirements
    """Of the protocol; not looked for with `--no-eval`."""
    weights: dict[str, FileStatus]
    world_size: int
    sequences_per_image: int
    lora: LoraShape | None
    """What trains in place of the policy's own weights."""
    estimate: Estimate
    evaluates: bool
    """False with `--no-eval`."""
    text: AssetFile | None
    """Files of the model's text encoder, where they are an asset."""
    classes: Sequence[str]
    """Of the training data by id, as it names them; empty: not known before it is opened."""
    problems: list[Problem]
    plugins: tuple[CodeFile, ...]
    """Files outside alignbench that the run's code comes from."""

    @property
    def protocol(self) -> ProtocolCard:
        return self.requirements.protocol

    @property
    def protocol_digest(self) -> str:
        return self.requirements.digest

    @property
    def assets(self) -> dict[str, AssetFile]:
        """Files that the protocol's evaluators read, by asset name; those that are there."""
        return self.requirements.assets

    @property
    def prompts(self) -> Sequence[Prompt]:
        """What a text protocol generates from."""
        return self.requirements.prompts

    @property
    def random_weights(self) -> bool:
        return self.config.values["model.weights"].value == "random"

    @property
    def snapshot_gib(self) -> float:
        """Host memory that `train.async_checkpoint` needs."""
        if self.method is None:
            return 0.0
        whole = self.model.policy if self.method.updates == "policy" else self.model.tokenizer
        trainable = self.lora.trainable if self.lora else whole.parameters
        return snapshot_gib(self.config, trainable, self.world_size)

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
            **({"lora": {**asdict(self.lora), "trainable": self.lora.trainable}} if self.lora else {}),
            "world_size": self.world_size,
            "images_per_step": self.config.train.images_per_step,
            "sequences_per_step": self.config.train.images_per_step * self.sequences_per_image,
            "accumulation": self.accumulation,
            "weights": {role: status.as_dict() for role, status in self.weights.items()},
            "estimate": asdict(self.estimate),
            "evaluates": self.evaluates,
            "assets": {n: {"path": str(a.path), "sha256": a.sha256} for n, a in self.assets.items()},
            "problems": [asdict(problem) for problem in self.problems],
            "plugins": [code.model_dump() for code in self.plugins],
        }


def make_plan(registry: Registry, config: RunConfig, *, evaluates: bool = True) -> Plan:
    """Work a configuration out; unless it evaluates (`--no-eval`), the protocol need not be runnable.

    Raises:
        UserError: names that do not exist. Everything else is listed in `Plan.problems`.
    """
    model = registry.model(config.model)
    method = registry.method(config.method) if config.method else None
    protocol = resolve_protocol(registry.protocol(config.protocol), config.section("protocol"))
    text, text_problems = find_text_encoder(registry, config, model)
    own = model.text.asset if model.text else ""
    paths = {asset: path for asset, path in config.section("assets").items() if asset != own}
    of_rewards = assets_of_rewards(registry, config, method) if method else {}
    if evaluates:
        requirements = requirements_of(registry, config.protocol, protocol, paths, of_rewards)
        protocol = requirements.protocol
    else:
        read = of_rewards if method else [protocol.prompts]  # `bench` samples from prompts
        lost = unread(paths, read, "nothing of this reads it")
        requirements = Requirements(protocol_digest(protocol), protocol, problems=lost)
    overrides = {role: str(config.section("model").get(role, "")) for role in ("policy", "tokenizer", "text")}
    weights = locate_weights(config.model, model, overrides)
    code = foreign_code(registry, cards_used(registry, config, protocol))
    hashes = {n: sha256 for n, sha256 in of_rewards.items() if sha256}
    hashes |= {name: file.sha256 for name, file in requirements.assets.items()}
    lora = lora_of(config, model, method)
    text_sha256 = text.sha256 if text else ""
    digest = _digest(
        config, protocol, weights, evaluates, code=code, assets=hashes, text=text_sha256, lora=lora
    )
    classes, class_problems = find_classes(registry, config, model) if method else ((), [])
    rows = rows_gib(registry, protocol, method) if evaluates and not requirements.problems else 0.0
    return Plan(
        id=f"{config.method or 'base'}-{config.model}-s{config.seed}-{digest[:8]}",
        digest=digest,
        config=config,
        model=model,
        method=method,
        requirements=requirements,
        weights=weights,
        world_size=distributed.world_size(),
        sequences_per_image=_sequences(config, method),
        lora=lora,
        estimate=estimate(config, model, method, rows, lora, processes=distributed.world_size()),
        evaluates=evaluates,
        text=text,
        classes=classes,
        problems=[
            *requirements.problems,
            *(condition_problems(config, model, protocol) if evaluates else []),
            *problems_of(registry, config, model, method, weights, text_problems),
            *(lora_problems(config, model, method) if method else []),
            *class_problems,
        ],
        plugins=code,
    )


def _digest(
    config: RunConfig,
    protocol: ProtocolCard,
    weights: Mapping[str, FileStatus],
    evaluates: bool,
    *,
    code: Sequence[CodeFile],
    assets: Mapping[str, str],
    text: str,
    lora: LoraShape | None,
) -> str:
    """Digest of what decides the result: without the recipe, which is its values, and without `HOW`."""
    whole = config.as_dict()
    values = {key: value for key, value in whole["values"].items() if key not in HOW}
    parts = {
        "config": {**whole, "recipe": None, "values": values},
        "protocol": protocol_content(protocol),
        "weights": {role: status.sha256 for role, status in weights.items()},
        "evaluates": evaluates,
    }
    more = {
        "plugins": sorted(file.sha256 for file in code),
        "assets": assets,
        "text": text,
        "lora": asdict(lora) if lora else {},  # what the card's defaults come to
    }
    return digest_of(parts | {name: part for name, part in more.items() if part})


def _sequences(config: RunConfig, method: MethodCard | None) -> int:
    return int(config.section("method")[method.group_option]) if method and method.group_option else 1


def files_of(registry: Registry, config: RunConfig) -> list[FileStatus]:
    """Return everything from outside that a run reads: weights, rewards' and evaluators' files, prompts."""
    model = registry.model(config.model)
    method = registry.method(config.method) if config.method else None
    assets = [model.text.asset] if model.text and model.text.asset else []
    assets += assets_of(registry, registry.protocol(config.protocol))
    files = [locate_asset(name, registry.asset(name)) for name in assets]
    for reward in rewards_of(registry, config, method) if method else ():
        files += locate_reward_files(registry, reward)
    return [*files, *locate_weights(config.model, model).values()]


def weights_digest(weights: dict[str, str]) -> str:
    """Identity of a set of weight files."""
    return f"sha256:{digest_of(weights)}"


def starting_weights(plan: Plan) -> dict[str, str]:
    """Hash the files a run starts from, {role: digest}; raises UserError: one is not what was meant."""
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
    track: tuple[str, ...] = ()
    """Trackers that are sent the numbers."""
    grid_every: int = 0
    """Steps between two sample grids of the policy in training; 0: none."""
    log_samples: int = 0
    """Worst and best images of each score that the page of the log shows; 0: no log is written."""

    @property
    def problems(self) -> list[Problem]:
        """Everything that keeps it from running: of its plan, and of how it is carried out."""
        shard, plan = self.plan.config.train.shard, self.plan
        grids = grid_problems(plan.protocol, plan.evaluates, shard) if self.grid_every else ()
        return [*self.plan.problems, *tracker_problems(self.track), *grids]

    @property
    def cache(self) -> Path:
        return cache_root()


def default_workers(image_size: int) -> int:
    """Decoding threads: none where handing an image over costs more than decoding it."""
    return 0 if image_size <= 32 else min(8, os.cpu_count() or 1)
