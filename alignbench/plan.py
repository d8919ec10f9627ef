"""What a run will do, worked out before anything expensive starts: geometry, files, memory, problems.

All problems are collected and shown at once, each with its remedy. Imports no torch and loads no weights.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alignbench import assets as files
from alignbench import hub, launch, plugins
from alignbench.api import Prompt
from alignbench.config import RunConfig, digest_of, protocol_content, protocol_digest
from alignbench.errors import UserError, suggest
from alignbench.prompts import read_prompts
from alignbench.registry.catalogue import Catalogue
from alignbench.registry.schema import MethodCard, ModelCard, ProtocolCard, Scalar
from alignbench.rewards.resolve import resolve
from alignbench.specs import parse_terms

GIB = 2**30
PROMPT_TOKENS = 40
"""Taken for the length of a prompt with its template where a language model reads it."""


@dataclass(frozen=True)
class Problem:
    """Something that stops the run, and what to do about it."""

    where: str
    what: str
    fix: str = ""


@dataclass(frozen=True)
class Estimate:
    """Arithmetic from the architecture, not a measurement."""

    train_gib: float
    """Device memory while training."""
    disk_gib: float
    """Checkpoints, export and what evaluators remember, in the run folder."""
    parts: dict[str, float]
    """GiB of weights, gradients and optimiser, activations, logits, decoder."""


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
    world_size = launch.world_size()
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
        estimate=estimate(config, model, method, _rows_gib(catalogue, protocol, court, method)),
        evaluates=evaluates,
        assets=court.assets if court else {},
        prompts=tuple(court.prompts) if court else (),
        text=text,
        problems=problems,
        plugins=code,
    )


def resolve_protocol(card: ProtocolCard, options: dict[str, Any]) -> ProtocolCard:
    """Apply `protocol.samples`, `protocol.seeds` and `protocol.settings`.

    Raises:
        UserError: a setting the protocol lacks, or seeds that are no whole numbers.
    """
    changes: dict[str, Any] = {}
    if options["samples"]:
        changes["samples"] = options["samples"]
    if options["seeds"]:
        try:
            changes["seeds"] = [int(text) for text in str(options["seeds"]).split(",")]
        except ValueError:
            raise UserError(f"protocol.seeds: {options['seeds']!r} is not of the form 0,1,2") from None
        if len(set(changes["seeds"])) < len(changes["seeds"]):
            raise UserError(f"protocol.seeds: {options['seeds']!r} names a seed twice")
    if options["settings"]:
        chosen = {}
        for name in str(options["settings"]).split(","):
            if name not in card.settings:
                hint = suggest(name, card.settings)
                raise UserError(
                    f"protocol.settings: no setting named {name!r}.{hint}",
                    fix=f"it has {', '.join(card.settings)}",
                )
            chosen[name] = card.settings[name]
        changes["settings"] = chosen
    return card.model_copy(update=changes)


@dataclass(frozen=True)
class Court:
    """A protocol with the files its evaluators read."""

    digest: str
    """Identity of the protocol; files other than those on the cards count."""
    protocol: ProtocolCard
    """As given, but for the number of images where the user's own prompts decide it."""
    assets: dict[str, files.AssetFile]
    prompts: list[Prompt]
    problems: list[Problem]


def make_court(catalogue: Catalogue, name: str, protocol: ProtocolCard, paths: Mapping[str, Scalar]) -> Court:
    """Find what a protocol needs, and say what this installation lacks.

    Args:
        catalogue: where the cards are.
        name: of the protocol.
        protocol: as resolved.
        paths: {asset: path} as given by the user.
    """
    problems = _missing_names(catalogue, name, protocol)
    if problems:
        return Court(protocol_digest(protocol), protocol, {}, [], problems)
    problems = [*_package_problems(catalogue, protocol), *_size_problems(catalogue, protocol)]
    found, unofficial = {}, {}
    wanted = files.assets_of(catalogue, protocol)
    for asset in wanted:
        card = catalogue.asset(asset)
        status = files.locate(asset, card, str(paths.get(asset, "")))
        if not status.ok:
            problems.append(Problem(f"assets/{asset}", status.reason, status.fix))
            continue
        try:
            found[asset] = files.verify(asset, card, status)
        except UserError as error:
            problems.append(Problem(f"assets/{asset}", error.what, error.fix))
            continue
        if not files.is_official(card, found[asset]):
            unofficial[asset] = found[asset].sha256
    unread = [asset for asset, path in paths.items() if path and asset not in wanted]
    problems += [
        Problem(f"assets.{asset}", f"protocol {name} does not read it", "leave it out") for asset in unread
    ]
    prompts: list[Prompt] = []
    if protocol.prompts in found:
        prompts = read_prompts(found[protocol.prompts].path)
        images = len(prompts) * protocol.images_per_prompt
        if paths.get(protocol.prompts):
            protocol = protocol.model_copy(update={"samples": images})
        elif images < protocol.samples:
            problems.append(
                Problem(
                    f"assets/{protocol.prompts}",
                    f"{len(prompts)} prompts × {protocol.images_per_prompt} are fewer than "
                    f"{protocol.samples}",
                    f"alignbench fetch {protocol.prompts}",
                )
            )
    return Court(protocol_digest(protocol, unofficial), protocol, found, prompts, problems)


def _missing_names(catalogue: Catalogue, name: str, protocol: ProtocolCard) -> list[Problem]:
    dataset = protocol.reference.dataset if protocol.reference else ""
    problems = []
    for kind, names in {"evaluators": protocol.evaluators, "datasets": [dataset] if dataset else []}.items():
        for wanted in names:
            if wanted not in catalogue.found[kind]:
                reason = catalogue.planned.get(kind, {}).get(wanted, "no card has this name")
                problems.append(
                    Problem(
                        f"protocol {name}",
                        f"{kind[:-1]} {wanted!r} is not in this version: {reason}",
                        "train only with --no-eval, then score the exported weights elsewhere",
                    )
                )
    return problems


def _package_problems(catalogue: Catalogue, protocol: ProtocolCard) -> list[Problem]:
    problems = []
    for name in protocol.evaluators:
        card = catalogue.evaluator(name)
        absent = [package for package in card.packages if importlib.util.find_spec(package) is None]
        if absent:
            extra = f"pip install 'alignbench[{card.extra}]'" if card.extra else f"pip install {absent[0]}"
            problems.append(Problem(f"evaluator {name}", f"needs {', '.join(absent)}", extra))
    return problems


def _size_problems(catalogue: Catalogue, protocol: ProtocolCard) -> list[Problem]:
    """Fewer images than an evaluator can estimate anything from."""
    problems = []
    for name in protocol.evaluators:
        card = catalogue.evaluator(name)
        values = {key: option.default for key, option in card.options.items()}
        values |= protocol.options.get(name, {})
        minimum = max((int(values[key]) + more for key, more in card.min_images.items()), default=1)
        if protocol.samples < minimum:
            problems.append(
                Problem(
                    f"evaluator {name}",
                    f"needs at least {minimum} images, {protocol.samples} are planned",
                    f"--set protocol.samples={minimum} or more",
                )
            )
    return problems


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
    for option in method.reward_options if method else []:
        text = str(config.section("method")[option])
        try:
            for spec, _ in parse_terms(text) if text != "none" else []:
                resolve(spec, catalogue)
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


def _rows_gib(
    catalogue: Catalogue, protocol: ProtocolCard, court: Court | None, method: MethodCard | None
) -> float:
    """What evaluators remember of all images until they are scored."""
    if court is None or court.problems:
        return 0.0
    images = protocol.samples * len(protocol.seeds) * len(protocol.settings) * (2 if method else 1)
    return images * sum(catalogue.evaluator(name).row_bytes for name in protocol.evaluators) / GIB


def estimate(
    config: RunConfig, model: ModelCard, method: MethodCard | None, rows_gib: float = 0.0
) -> Estimate:
    """Estimate memory and disk from the architecture.

    Trainable weights cost 16 bytes each (fp32 weight, gradient, two Adam moments). A layer keeps about
    9·dim + 3·ffn values per token for the backward pass (attention through a fused kernel), or dim with
    recomputation; transformers' Llama layers keep 15·dim + 4·ffn (measured on both sizes of Janus-Pro: 107
    and 212 kB per token in bf16). Logits are counted as fp32 with their gradient and one softmax copy. The
    decoder keeps about six feature maps of base width at full resolution per image.
    """
    shape, tokenizer, train = model.policy, model.tokenizer, config.train
    width = 2 if train.precision == "bf16" else 4
    trainable = shape.parameters if method is None or method.updates == "policy" else tokenizer.parameters
    frozen = shape.parameters + tokenizer.parameters - trainable
    length, per_layer = shape.tokens + shape.condition_tokens, 9 * shape.dim + 3 * shape.ffn_hidden
    if shape.text_vocab:  # a language model that reads the prompt itself
        length, per_layer = length + PROMPT_TOKENS, 15 * shape.dim + 4 * shape.ffn_hidden
    if train.recompute:
        per_layer = shape.dim
    decode_batch = int(config.section("method").get("decode_batch", train.micro_batch))
    rows = train.micro_batch
    if method is not None and method.update_rows == "sequence":
        rows *= int(config.section("method")[method.group_option])
    parts = {
        "weights, gradients, optimiser": trainable * 16.0 + frozen * 4.0,
        "autocast copy": trainable * 2.0 if train.precision == "bf16" else 0.0,
        "activations": float(rows * length * shape.layers * per_layer * width),
        "logits": float(rows * shape.tokens * shape.vocab_size * 12),
        "decoder": float(decode_batch * model.image_size**2 * tokenizer.base_channels * 4 * 6),
    }
    if model.text and model.text.parameters:
        parts["text encoder"] = model.text.parameters * 2.0
    parts = {name: size / GIB for name, size in parts.items()}
    disk = (trainable * 12.0 * 2 + (shape.parameters + tokenizer.parameters) * 4.0) / GIB + rows_gib
    return Estimate(train_gib=sum(parts.values()), disk_gib=disk, parts=parts)


def gib(size: float) -> str:
    """Two digits, or whole numbers from 100 on."""
    return f"{size:.0f}" if size >= 100 else f"{size:.2g}"


def disk_problem(folder: Path, needed_gib: float) -> Problem | None:
    """Return a problem if the file system that will hold `folder` has too little room."""
    existing = next(place for place in [folder, *folder.parents] if place.exists())
    free = shutil.disk_usage(existing).free / GIB
    if free >= needed_gib:
        return None
    return Problem(
        "disk",
        f"{gib(free)} GiB free under {existing}, about {gib(needed_gib)} GiB needed",
        "free space or choose another folder with --out",
    )
