"""What a run will do, worked out before anything expensive starts: geometry, files, memory, problems.

All problems are collected and shown at once, each with its remedy. Imports no torch and loads no weights.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alignbench import assets as files
from alignbench import distributed, hub, plugins
from alignbench.api import Prompt
from alignbench.config import RunConfig, protocol_content, protocol_digest
from alignbench.court import make_court, resolve_protocol
from alignbench.errors import Problem, UserError
from alignbench.estimates import Estimate, estimate, rows_gib
from alignbench.files import digest_of
from alignbench.registry.catalogue import Catalogue
from alignbench.registry.schema import MethodCard, ModelCard, ProtocolCard
from alignbench.rewards.resolve import require_parts, resolve
from alignbench.specs import parse_terms


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
    weights: dict[str, hub.FileStatus]
    world_size: int
    sequences_per_image: int
    estimate: Estimate
    evaluates: bool = True
    """False with `--no-eval`."""
    assets: dict[str, files.AssetFile] = field(default_factory=dict)
    """Files that the protocol's evaluators read, by asset name; those that were found."""
    prompts: tuple[Prompt, ...] = ()
    """What a text protocol generates from."""
    text: files.AssetFile | None = None
    """Files of the model's text encoder, where they are an asset."""
    problems: list[Problem] = field(default_factory=list)
    plugins: tuple[plugins.Code, ...] = ()
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


def make_plan(catalogue: Catalogue, config: RunConfig, *, evaluates: bool = True) -> Plan:
    """Work a configuration out.

    Args:
        catalogue: where the cards are.
        config: the resolved configuration.
        evaluates: False with `--no-eval`: the protocol need not be runnable.

    Raises:
        UserError: names that do not exist. Everything else is listed in `Plan.problems`.
    """
    model = catalogue.model(config.model)
    method = catalogue.method(config.method) if config.method else None
    protocol = resolve_protocol(catalogue.protocol(config.protocol), config.section("protocol"))
    text, text_problems = find_text_encoder(catalogue, config, model)
    own = model.text.asset if model.text else ""
    paths = {asset: path for asset, path in config.section("assets").items() if asset != own}
    court = make_court(catalogue, config.protocol, protocol, paths) if evaluates else None
    protocol = court.protocol if court else protocol
    problems = list(court.problems) if court else []
    problems += _condition_problems(config, model, protocol) if evaluates else []
    section = config.section("model")
    overrides = {role: str(section[role]) for role in ("policy", "tokenizer", "text") if section.get(role)}
    weights = hub.locate(config.model, model, overrides)
    world_size = distributed.world_size()
    sequences = int(config.section("method")[method.group_option]) if method and method.group_option else 1
    problems += [*_model_problems(config, model, method), *text_problems]
    problems += _reward_problems(catalogue, config, method)
    if section["weights"] == "pretrained":
        problems += _weight_problems(config.model, model, weights)
    problems += _data_problems(catalogue, config, model)
    problems += _geometry_problems(config, world_size)
    code = plugins.foreign_code(catalogue, plugins.cards_used(catalogue, config, protocol))
    digest = digest_of(
        {
            "config": {**config.as_dict(), "recipe": None},  # a recipe is its values
            "protocol": protocol_content(protocol),
            "weights": {role: status.sha256 for role, status in weights.items()},
            "evaluates": evaluates,
            **({"plugins": sorted(file.sha256 for file in code)} if code else {}),
            **({"assets": {n: a.sha256 for n, a in court.assets.items()}} if court and court.assets else {}),
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
        protocol_digest=court.digest if court else protocol_digest(protocol),
        weights=weights,
        world_size=world_size,
        sequences_per_image=sequences,
        estimate=estimate(config, model, method, rows_gib(catalogue, protocol, court, method)),
        evaluates=evaluates,
        assets=court.assets if court else {},
        prompts=tuple(court.prompts) if court else (),
        text=text,
        problems=problems,
        plugins=code,
    )


def _condition_problems(config: RunConfig, model: ModelCard, protocol: ProtocolCard) -> list[Problem]:
    if protocol.condition == model.condition or protocol.task == "reconstruction":
        return []
    return [
        Problem(
            f"protocol {config.protocol}",
            f"is for {protocol.condition}-conditioned models, "
            f"{config.model} is {model.condition}-conditioned",
            "choose another with --protocol; see: alignbench list protocols",
        )
    ]


def _model_problems(config: RunConfig, model: ModelCard, method: MethodCard | None) -> list[Problem]:
    problems = []
    if model.target is None:
        problems.append(Problem(f"model {config.model}", f"this version has no {model.family} backbone"))
    if method and model.condition not in method.conditions:
        problems.append(
            Problem(f"method {config.method}", f"does not train {model.condition}-conditioned models")
        )
    return problems


def _reward_problems(catalogue: Catalogue, config: RunConfig, method: MethodCard | None) -> list[Problem]:
    problems = []
    options = config.section("method") if method else {}
    used = all(options[switch] != 0 for switch in (method.reward_switches if method else []))
    for option in method.reward_options if method else []:
        text = str(options[option])
        try:
            for spec, _ in parse_terms(text) if text != "none" else []:
                resolved = resolve(spec, catalogue)
                if used:
                    require_parts(resolved)
        except UserError as error:
            problems.append(Problem(f"method.{option}", error.what, error.fix))
    return problems


def find_text_encoder(
    catalogue: Catalogue, config: RunConfig, model: ModelCard
) -> tuple[files.AssetFile | None, list[Problem]]:
    """Find the files of a model's text encoder where they are an asset, and say what is lacking.

    With random weights the text features are random too and need no files.
    """
    spec = model.text
    if spec is None or config.section("model")["weights"] == "random":
        return None, []
    problems = []
    absent = [package for package in spec.packages if importlib.util.find_spec(package) is None]
    if absent:
        extra = f"pip install 'alignbench[{spec.extra}]'" if spec.extra else f"pip install {absent[0]}"
        problems.append(Problem("text encoder", f"needs {', '.join(absent)}", extra))
    if not spec.asset:
        return None, problems
    card = catalogue.asset(spec.asset)
    status = files.locate(spec.asset, card, str(config.section("assets").get(spec.asset, "")))
    try:
        return files.verify(spec.asset, card, status), problems
    except UserError as error:
        return None, [*problems, Problem(f"assets/{spec.asset}", error.what, error.fix)]


def _weight_problems(name: str, model: ModelCard, weights: dict[str, hub.FileStatus]) -> list[Problem]:
    own_text = model.text is not None and not model.text.asset
    if "text" in weights and not own_text and "text" not in model.roles:
        return [Problem("model.text", f"{name} has no text encoder of its own", "leave it out")]
    roles = [*model.roles, *(["text"] if own_text else [])]
    unnamed = [
        Problem(f"weights/{role}", f"the card of {name} names no file", f"--set model.{role}=PATH")
        for role in roles
        if role not in weights
    ]
    return unnamed + [
        Problem(f"weights/{role}", status.reason, status.fix)
        for role, status in weights.items()
        if not status.ok
    ]


def _data_problems(catalogue: Catalogue, config: RunConfig, model: ModelCard) -> list[Problem]:
    if config.method is None:
        return []
    card = catalogue.dataset(config.dataset)
    problems = []
    if card.condition != model.condition:
        problems.append(
            Problem(
                f"data {config.dataset}",
                f"gives {card.condition} conditions, {config.model} needs {model.condition}",
            )
        )
    if config.section("data").get("path") == "":
        problems.append(Problem(f"data {config.dataset}", "no data set was named", "--set data.path=PATH"))
    root = config.section("data").get("root")
    if root == "":
        problems.append(Problem(f"data {config.dataset}", "no folder was given", "--set data.root=PATH"))
    elif root is not None:
        place = Path(str(root)).expanduser()
        # Captioned images may come as one file.
        if not (place.is_dir() or (card.condition == "text" and place.is_file())):
            wrong = "does not exist" if card.condition == "text" else "is not a folder"
            problems.append(Problem(f"data {config.dataset}", f"{root} {wrong}", "--set data.root=PATH"))
    return problems


def _geometry_problems(config: RunConfig, world_size: int) -> list[Problem]:
    images = config.train.images_per_step
    if images % world_size == 0:
        return []
    lower = images // world_size * world_size
    near = " or ".join(str(size) for size in (lower, lower + world_size) if size)
    return [
        Problem(
            "train.images_per_step",
            f"{images} images cannot be shared by {world_size} devices",
            f"--set train.images_per_step={near}",
        )
    ]
