"""What a protocol needs of an installation: evaluators, packages, files, prompts, enough images.

Imports no torch and loads no weights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignbench import assets as files
from alignbench.api import Prompt
from alignbench.config import protocol_digest
from alignbench.errors import Problem, UserError, suggest
from alignbench.prompts import read_prompts
from alignbench.registry.catalogue import Catalogue
from alignbench.registry.schema import ProtocolCard, Scalar


def resolve_protocol(card: ProtocolCard, options: dict[str, Any]) -> ProtocolCard:
    """Apply `protocol.samples`, `protocol.seeds`, `protocol.settings` and, if it is there, `protocol.batch`.

    Raises:
        UserError: a setting the protocol lacks, or seeds that are no whole numbers.
    """
    changes: dict[str, Any] = {}
    if options["samples"]:
        changes["samples"] = options["samples"]
    if options.get("batch"):
        changes["batch"] = options["batch"]
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
