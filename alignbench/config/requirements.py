"""What a protocol needs of an installation: evaluators, packages, files, prompts, enough images.

Imports no torch and loads no weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from alignbench.api import Prompt
from alignbench.config.settings import RunConfig
from alignbench.data.prompts import read_prompts
from alignbench.distributed import world_size
from alignbench.errors import Problem, UserError, missing_packages, suggest
from alignbench.hub.locate import FileStatus, assets_of, locate_asset, locate_reward_files
from alignbench.hub.verify import AssetFile, Requirements, verify, verify_asset
from alignbench.registry.class_names import TABLES, read_names
from alignbench.registry.lookup import SINGULAR, Registry, import_target
from alignbench.registry.protocol import ProtocolCard, protocol_digest
from alignbench.registry.reward_spec import Resolved, is_remote, parse_terms, resolve
from alignbench.registry.schema import MethodCard, ModelCard, Scalar


def requirements_of(
    registry: Registry,
    name: str,
    protocol: ProtocolCard,
    paths: Mapping[str, Scalar],
    read: Collection[str] = (),
) -> Requirements:
    """Find what a protocol needs and say what is lacking here.

    Args:
        paths: {asset: path} as the user names them.
        read: assets that something else reads; a path of one that nothing reads is a problem.
    """
    if problems := list(_missing_names(registry, name, protocol)):
        return Requirements(protocol_digest(protocol), protocol, problems=problems)
    problems = list(_evaluator_problems(registry, protocol))
    files: dict[str, AssetFile] = {}
    wanted = assets_of(registry, protocol)
    for asset in wanted:
        status = locate_asset(asset, registry.asset(asset), str(paths.get(asset, "")))
        if not status.ok:
            problems.append(Problem(f"assets/{asset}", status.reason, status.fix))
            continue
        try:
            files[asset] = verify_asset(status)
        except UserError as error:
            problems.append(Problem(f"assets/{asset}", error.what, error.fix))
    digests = {asset: file.sha256 for asset, file in files.items()}
    unofficial = {asset: sha for asset, sha in digests.items() if sha != registry.asset(asset).sha256}
    problems += unread(paths, [*wanted, *read], f"protocol {name} does not read it")
    prompts: list[Prompt] = []
    if protocol.prompts in files:
        prompts = read_prompts(files[protocol.prompts].path)
        images = len(prompts) * protocol.images_per_prompt
        if paths.get(protocol.prompts):
            protocol = protocol.model_copy(update={"samples": images})
        elif images < protocol.samples:
            few = f"{len(prompts)} prompts × {protocol.images_per_prompt} are fewer than {protocol.samples}"
            problems.append(
                Problem(f"assets/{protocol.prompts}", few, f"alignbench fetch {protocol.prompts}")
            )
    return Requirements(protocol_digest(protocol, unofficial), protocol, files, prompts, problems)


def unread(paths: Mapping[str, Scalar], read: Collection[str], why: str) -> list[Problem]:
    """A problem for each asset that the user names a path of and nothing reads."""
    lost = [asset for asset, path in paths.items() if path and asset not in read]
    return [Problem(f"assets.{asset}", why, "leave it out") for asset in lost]


def _missing_names(registry: Registry, name: str, protocol: ProtocolCard) -> Iterator[Problem]:
    wanted = [("evaluators", evaluator) for evaluator in protocol.evaluators]
    if protocol.reference and protocol.reference.dataset:
        wanted.append(("datasets", protocol.reference.dataset))
    for kind, card in wanted:
        if card not in registry.locations[kind]:
            yield Problem(
                f"protocol {name}",
                f"{SINGULAR[kind]} {card!r} is not in this version: no card has this name."
                f"{suggest(card, registry.locations[kind])}",
                "train only with --no-eval, then score the exported weights elsewhere",
            )


def _evaluator_problems(registry: Registry, protocol: ProtocolCard) -> Iterator[Problem]:
    """Packages that are not installed; fewer images than an evaluator can estimate anything from."""
    cards = {name: registry.evaluator(name) for name in protocol.evaluators}
    for name, card in cards.items():
        missing, fix = missing_packages(card.packages, card.extra)
        if missing:
            yield Problem(f"evaluator {name}", f"needs {', '.join(missing)}", fix)
        if lacking := [need for need in card.needs if not protocol.gives(need)]:
            what = f"needs {', '.join(lacking)}, which the protocol's images come without"
            yield Problem(f"evaluator {name}", what, "score with it under another protocol")
    for name, card in cards.items():
        values = {key: option.default for key, option in card.options.items()}
        values |= protocol.options.get(name, {})
        minimum = max((int(values[key]) + more for key, more in card.min_images.items()), default=1)
        if protocol.samples < minimum:
            few = f"needs at least {minimum} images, {protocol.samples} are planned"
            yield Problem(f"evaluator {name}", few, f"--set protocol.samples={minimum} or more")


def condition_problems(config: RunConfig, model: ModelCard, protocol: ProtocolCard) -> Iterator[Problem]:
    """Say so where a protocol is for models of another kind."""
    if protocol.condition != model.condition and protocol.task == "generation":
        yield Problem(
            f"protocol {config.protocol}",
            f"is for {protocol.condition}-conditioned models, "
            f"{config.model} is {model.condition}-conditioned",
            "choose another with --protocol; see: alignbench list protocols",
        )


def problems_of(
    registry: Registry,
    config: RunConfig,
    model: ModelCard,
    method: MethodCard | None,
    weights: Mapping[str, FileStatus],
    text_problems: Sequence[Problem],
) -> Iterator[Problem]:
    """Yield what stops a run besides its protocol: model, text encoder, rewards, weights, data, geometry."""
    if model.target is None:
        yield Problem(f"model {config.model}", f"this version has no {model.family} backbone")
    if method and model.condition not in method.conditions:
        yield Problem(f"method {config.method}", f"does not train {model.condition}-conditioned models")
    yield from text_problems
    if method:
        yield from _reward_problems(registry, config, method, model)
    if config.section("model")["weights"] == "pretrained":
        yield from _weight_problems(config.model, model, weights)
    if method:
        yield from _data_problems(registry, config, method, model)
    images, devices = config.train.images_per_step, world_size()
    if images == 1 and method and "others" in method.needs:
        what = f"{config.method} needs another image beside each"
        yield Problem("train.images_per_step", what, "--set train.images_per_step=2 or more")
    if images % devices:
        lower = images // devices * devices
        near = " or ".join(str(size) for size in (lower, lower + devices) if size)
        what = f"{images} images cannot be shared by {devices} devices"
        yield Problem("train.images_per_step", what, f"--set train.images_per_step={near}")


def rewards_of(registry: Registry, config: RunConfig, method: MethodCard) -> Iterator[Resolved]:
    """Yield the rewards that a method's options name, but those of weight 0; raises UserError: unreadable."""
    options = config.section("method")
    for option in method.rewards_in_use(options):
        yield from _rewards_of_option(registry, config, method, option)


def _rewards_of_option(
    registry: Registry, config: RunConfig, method: MethodCard, option: str
) -> Iterator[Resolved]:
    for spec, _ in parse_terms(method.rewards_in_use(config.section("method"))[option]):
        yield resolve(spec, registry, config.section("assets"))


def assets_of_rewards(registry: Registry, config: RunConfig, method: MethodCard) -> dict[str, str | None]:
    """{asset: digest} of what rewards read because `assets.NAME` says so; None: it cannot be read."""
    found: dict[str, str | None] = {}
    with contextlib.suppress(UserError):  # unreadable specifications are among the problems
        for reward in rewards_of(registry, config, method):
            for status in locate_reward_files(registry, reward):
                path = str(config.section("assets").get(status.name, ""))
                if path and Path(path).expanduser() == status.expected:
                    found[status.name] = verify(status) if status.ok else None
    return found


def _reward_problems(
    registry: Registry, config: RunConfig, method: MethodCard, model: ModelCard
) -> Iterator[Problem]:
    rewards: list[Resolved] = []
    for option in method.reward_options:
        if config.section("method").get(option) == "":
            what, fix = "no reward is named", f"--set method.{option}=NAME; see: alignbench list rewards"
            yield Problem(f"method.{option}", what, fix)
    for option in method.rewards_in_use(config.section("method")):
        try:
            rewards += _rewards_of_option(registry, config, method, option)
        except UserError as error:
            yield Problem(f"method.{option}", error.what, error.fix)
    data = registry.dataset(config.dataset)
    named = data.class_names or config.section("data").get("names")
    for reward in rewards:
        card, where = reward.card, f"reward {reward.name}"
        missing, fix = missing_packages(card.packages, card.extra)
        if missing and not is_remote(str(reward.common["placement"])):
            yield Problem(where, f"needs {', '.join(missing)}", fix)
        for status in locate_reward_files(registry, reward):
            if not status.ok:
                yield Problem(where, status.reason, status.fix)
        other = "choose another: alignbench list rewards"
        if card.scope == "distance" and "images" not in method.needs:
            yield Problem(where, f"compares with real images, {config.method} has none", other)
        if card.scope == "set" and not data.images and not reward.options.get("reference"):
            what = f"compares with real images, data set {config.dataset} has none"
            yield Problem(where, what, f"name a file with their moments: {reward.name}(reference=PATH.npz)")
        if card.min_size > model.image_size:
            yield Problem(where, f"needs images of {card.min_size} px, these have {model.image_size}", other)
        if "label" in card.needs and model.condition != "class":
            yield Problem(where, f"needs class labels, {config.model} has captions", other)
        if "metadata" in card.needs and (data.images or data.condition != "text"):
            what = f"reads entries of a prompt file, {config.dataset} has none"
            yield Problem(where, what, "--data prompts --set data.file=PATH")
        if card.num_classes not in (None, model.num_classes):
            what = f"knows {card.num_classes} classes, {config.model} has {model.num_classes}"
            yield Problem(where, what, other)
        if "text" in card.needs and model.condition == "class" and not named:
            fix = "--set data.names=openai, or a file" if "names" in data.options else other
            yield Problem(where, f"reads a text, and the classes of {config.dataset} have no names", fix)


def _weight_problems(name: str, model: ModelCard, weights: Mapping[str, FileStatus]) -> Iterator[Problem]:
    own_text = model.text is not None and not model.text.asset
    if "text" in weights and not own_text and "text" not in model.roles:
        yield Problem("model.text", f"{name} has no text encoder of its own", "leave it out")
        return
    for role in [*model.roles, *(["text"] if own_text else [])]:
        if role not in weights:
            what = f"the card of {name} names no file"
            yield Problem(f"weights/{role}", what, f"--set model.{role}=PATH")
    for role, status in weights.items():
        if not status.ok:
            yield Problem(f"weights/{role}", status.reason, status.fix)


def find_classes(
    registry: Registry, config: RunConfig, model: ModelCard
) -> tuple[Sequence[str], list[Problem]]:
    """List the classes of the training data where that is quick, and say what is wrong with them."""
    card, options = registry.dataset(config.dataset), config.section("data")
    root = str(options.get("root", "."))
    if not card.classes or not (root and Path(root).expanduser().is_dir()):
        return (), []  # that no folder is there is said elsewhere
    try:
        list_classes = import_target(card.classes)
        return list_classes(split=card.train_split, num_classes=model.num_classes, options=options), []
    except UserError as error:
        return (), [Problem(f"data {config.dataset}", error.what, error.fix)]


def _data_problems(
    registry: Registry, config: RunConfig, method: MethodCard, model: ModelCard
) -> Iterator[Problem]:
    where, card, options = f"data {config.dataset}", registry.dataset(config.dataset), config.section("data")
    if card.condition != model.condition:
        yield Problem(where, f"gives {card.condition} conditions, {config.model} needs {model.condition}")
    missing, fix = missing_packages(card.packages, card.extra)
    if missing:
        yield Problem(where, f"needs {', '.join(missing)}", fix)
    if not card.images:
        if "images" in method.needs:
            what = f"{config.method} needs images, data set {config.dataset} has none"
            yield Problem(where, what, "choose another with --data: alignbench list datasets")
        yield from _condition_file_problems(where, options, model)
    if options.get("path") == "":
        yield Problem(where, "no data set was named", "--set data.path=PATH")
    root = options.get("root")
    if root == "":
        yield Problem(where, "no folder was given", "--set data.root=PATH")
    elif root is not None:
        path = Path(root).expanduser()
        # Captioned images may come as one file.
        if not (path.is_dir() or (card.condition == "text" and path.is_file())):
            wrong = "does not exist" if card.condition == "text" else "is not a folder"
            yield Problem(where, f"{root} {wrong}", "--set data.root=PATH")


def _condition_file_problems(
    where: str, options: Mapping[str, Scalar], model: ModelCard
) -> Iterator[Problem]:
    """Read what a data set without images consists of: it is small."""
    file, names = options.get("file"), str(options.get("names", ""))
    if file == "":
        yield Problem(where, "no prompt file was given", "--set data.file=PATH")
    try:
        if file:
            read_prompts(Path(str(file)).expanduser())
        if names not in ("", *TABLES):
            read_names(names, model.num_classes)
    except UserError as error:
        yield Problem(where, error.what, error.fix)
