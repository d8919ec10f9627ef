"""What a protocol needs of an installation: evaluators, packages, files, prompts, enough images.

Imports no torch and loads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alignbench.api import Prompt
from alignbench.config.settings import RunConfig
from alignbench.data.prompts import read_prompts
from alignbench.distributed import world_size
from alignbench.errors import Problem, UserError
from alignbench.hub import assets
from alignbench.hub.assets import AssetFile
from alignbench.hub.weights import FileStatus
from alignbench.registry.lookup import Registry
from alignbench.registry.protocol import ProtocolCard, protocol_digest
from alignbench.registry.reward_spec import parse_terms, require_parts, resolve
from alignbench.registry.schema import MethodCard, ModelCard, Scalar, missing_packages


@dataclass(frozen=True)
class Requirements:
    """A protocol with the files its evaluators read."""

    digest: str
    """Identity of the protocol; files other than those on the cards count."""
    protocol: ProtocolCard
    """As given, but for the number of images where the user's own prompts decide it."""
    assets: dict[str, AssetFile] = field(default_factory=dict)
    """Files that evaluators read, by asset name; those that were found."""
    prompts: Sequence[Prompt] = ()
    """What a text protocol generates from."""
    problems: Sequence[Problem] = ()


def requirements_of(
    registry: Registry, name: str, protocol: ProtocolCard, paths: Mapping[str, Scalar]
) -> Requirements:
    """Find what a protocol needs, and say what this installation lacks.

    Args:
        registry: where the cards are.
        name: of the protocol.
        protocol: as resolved.
        paths: {asset: path} as given by the user.
    """
    problems = _missing_names(registry, name, protocol)
    if problems:
        return Requirements(protocol_digest(protocol), protocol, problems=problems)
    problems = [*_package_problems(registry, protocol), *_size_problems(registry, protocol)]
    found, unofficial = {}, {}
    wanted = assets.assets_of(registry, protocol)
    for asset in wanted:
        card = registry.asset(asset)
        status = assets.locate(asset, card, str(paths.get(asset, "")))
        if not status.ok:
            problems.append(Problem(f"assets/{asset}", status.reason, status.fix))
            continue
        try:
            found[asset] = assets.verify(asset, card, status)
        except UserError as error:
            problems.append(Problem(f"assets/{asset}", error.what, error.fix))
            continue
        if not assets.is_official(card, found[asset]):
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
    return Requirements(protocol_digest(protocol, unofficial), protocol, found, prompts, problems)


def _missing_names(registry: Registry, name: str, protocol: ProtocolCard) -> list[Problem]:
    dataset = protocol.reference.dataset if protocol.reference else ""
    problems = []
    for kind, names in {"evaluators": protocol.evaluators, "datasets": [dataset] if dataset else []}.items():
        for wanted in names:
            if wanted not in registry.found[kind]:
                reason = registry.planned.get(kind, {}).get(wanted, "no card has this name")
                problems.append(
                    Problem(
                        f"protocol {name}",
                        f"{kind[:-1]} {wanted!r} is not in this version: {reason}",
                        "train only with --no-eval, then score the exported weights elsewhere",
                    )
                )
    return problems


def _package_problems(registry: Registry, protocol: ProtocolCard) -> list[Problem]:
    cards = {name: registry.evaluator(name) for name in protocol.evaluators}
    return [
        Problem(f"evaluator {name}", f"needs {', '.join(missing)}", fix)
        for name, card in cards.items()
        for missing, fix in [missing_packages(card.packages, card.extra)]
        if missing
    ]


def _size_problems(registry: Registry, protocol: ProtocolCard) -> list[Problem]:
    """Fewer images than an evaluator can estimate anything from."""
    problems = []
    for name in protocol.evaluators:
        card = registry.evaluator(name)
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


def condition_problems(config: RunConfig, model: ModelCard, protocol: ProtocolCard) -> list[Problem]:
    """Say so where a protocol is for models of another kind."""
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


def problems_of(
    registry: Registry,
    config: RunConfig,
    model: ModelCard,
    method: MethodCard | None,
    weights: Mapping[str, FileStatus],
    text_problems: Sequence[Problem],
) -> list[Problem]:
    """Return what stops a run besides its protocol: model, rewards, weights, data, geometry.

    Args:
        registry: where the cards are.
        config: names and values.
        model: card of the model.
        method: card of the method, if any.
        weights: {role: where the file is}.
        text_problems: of the model's text encoder.
    """
    pretrained = config.section("model")["weights"] == "pretrained"
    return [
        *_model_problems(config, model, method),
        *text_problems,
        *_reward_problems(registry, config, method),
        *(_weight_problems(config.model, model, weights) if pretrained else []),
        *_data_problems(registry, config, model),
        *_geometry_problems(config),
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


def _reward_problems(registry: Registry, config: RunConfig, method: MethodCard | None) -> list[Problem]:
    problems = []
    options = config.section("method") if method else {}
    used = all(options[switch] != 0 for switch in (method.reward_switches if method else []))
    for option in method.reward_options if method else []:
        text = str(options[option])
        try:
            for spec, _ in parse_terms(text) if text != "none" else []:
                resolved = resolve(spec, registry)
                if used:
                    require_parts(resolved)
        except UserError as error:
            problems.append(Problem(f"method.{option}", error.what, error.fix))
    return problems


def find_text_encoder(
    registry: Registry, config: RunConfig, model: ModelCard
) -> tuple[AssetFile | None, list[Problem]]:
    """Find the files of a model's text encoder where they are an asset, and say what is lacking.

    With random weights the text features are random too and need no files.
    """
    spec = model.text
    if spec is None or config.section("model")["weights"] == "random":
        return None, []
    problems = []
    missing, fix = missing_packages(spec.packages, spec.extra)
    if missing:
        problems.append(Problem("text encoder", f"needs {', '.join(missing)}", fix))
    if not spec.asset:
        return None, problems
    card = registry.asset(spec.asset)
    status = assets.locate(spec.asset, card, str(config.section("assets").get(spec.asset, "")))
    try:
        return assets.verify(spec.asset, card, status), problems
    except UserError as error:
        return None, [*problems, Problem(f"assets/{spec.asset}", error.what, error.fix)]


def _weight_problems(name: str, model: ModelCard, weights: Mapping[str, FileStatus]) -> list[Problem]:
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


def _data_problems(registry: Registry, config: RunConfig, model: ModelCard) -> list[Problem]:
    if config.method is None:
        return []
    card = registry.dataset(config.dataset)
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


def _geometry_problems(config: RunConfig) -> list[Problem]:
    images, devices = config.train.images_per_step, world_size()
    if images % devices == 0:
        return []
    lower = images // devices * devices
    near = " or ".join(str(size) for size in (lower, lower + devices) if size)
    return [
        Problem(
            "train.images_per_step",
            f"{images} images cannot be shared by {devices} devices",
            f"--set train.images_per_step={near}",
        )
    ]
