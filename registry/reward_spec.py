"""What a reward specification means: its card and the values of its options. Loads no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from alignbench.errors import UserError, missing_packages, suggest
from alignbench.registry.lookup import Registry
from alignbench.registry.schema import Option, RewardCard, Scalar

_CALL = re.compile(r"([\w.-]+)\s*(?:\((.*)\))?", re.DOTALL)


@dataclass(frozen=True)
class Spec:
    """One reward as written: a card, changes of its options, and a chain of transforms."""

    name: str
    options: dict[str, str]
    """{option: value as written, without quotes}."""
    transforms: tuple[tuple[str, tuple[float, ...]], ...]
    """(name, arguments) in the order of application."""


def parse_terms(text: str) -> list[tuple[str, float]]:
    """`"clip-score|scale(5)@1.0, hps@0.5"` → [("clip-score|scale(5)", 1.0), ("hps", 0.5)].

    Raises:
        UserError: no term, an empty one, one written twice, or a weight that is no finite number or 0.
    """
    pieces = _split(text, ",")
    terms: list[tuple[str, float]] = []
    for piece in pieces:
        spec, *weights = _split(piece, "@")
        if not spec or len(weights) > 1:
            raise UserError(
                f"rewards {text!r}: {piece!r} is not of the form REWARD@WEIGHT",
                fix="write for example pixel-mse@1, lpips-vgg@0.5",
            )
        parse_spec(spec)
        weight = _number(weights[0]) if weights else 1.0
        if weight is None or weight == 0:
            raise UserError(
                f"rewards {text!r}: the weight of {spec} is {weights[0]!r}, not a finite number other than 0",
                fix="leave a term out to switch it off",
            )
        if spec in (earlier for earlier, _ in terms):
            raise UserError(f"rewards {text!r}: {spec} is named twice", fix="add the weights up")
        terms.append((spec, weight))
    return terms


def parse_spec(text: str) -> Spec:
    """`"clip-score(batch=8)|scale(5)|clip(0,1)"` → its parts, not looked up; UserError: not of that form."""
    head, *tail = _split(text, "|")
    name, inside = _call(head, text)
    options: dict[str, str] = {}
    for item in _split(inside, ",") if inside else []:
        key, equals, value = item.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or not key or key in options:
            raise UserError(f"reward {text!r}: {item!r} is not of the form option=value, each option once")
        quoted = len(value) > 1 and value[0] == value[-1] == '"'
        options[key] = value[1:-1] if quoted else value
    return Spec(name, options, tuple(_transform(piece, text) for piece in tail))


def _transform(piece: str, text: str) -> tuple[str, tuple[float, ...]]:
    name, inside = _call(piece, text)
    numbers: list[float] = []
    for item in _split(inside, ",") if inside else []:
        number = _number(item)
        if number is None:
            raise UserError(f"reward {text!r}: {item!r} in {piece!r} is not a finite number")
        numbers.append(number)
    return name, tuple(numbers)


def _call(piece: str, text: str) -> tuple[str, str]:
    """`name(inside)` → (name, inside)."""
    match = _CALL.fullmatch(piece)
    if match is None:
        raise UserError(
            f"reward {text!r}: cannot read {piece!r}", fix="the form is NAME(option=value)|transform(number)"
        )
    return match[1], match[2] or ""


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _split(text: str, separator: str) -> list[str]:
    """Split at separators outside parentheses and quotes, which must match; pieces are stripped."""
    pieces, depth, quoted = [""], 0, False
    for character in text:
        if character == '"':
            quoted = not quoted
        elif not quoted:
            depth += (character == "(") - (character == ")")
            if depth < 0:
                break
            if character == separator and depth == 0:
                pieces.append("")
                continue
        pieces[-1] += character
    if depth or quoted:
        raise UserError(f"rewards {text!r}: parentheses or quotes do not match")
    return [piece.strip() for piece in pieces]


PLACEMENTS = "same, offload, a device such as cuda:1 or cpu, or http://HOST:PORT"


@dataclass(frozen=True)
class Resolved:
    """A specification with nothing left open."""

    text: str
    spec: Spec
    card: RewardCard
    options: dict[str, Scalar]
    """Of the card: what its target is called with."""
    common: dict[str, Scalar]
    """Those every reward has; see `common_options`."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def networks(self) -> list[str]:
        """Frozen networks inside."""
        return [network.format_map(self.options) for network in self.card.networks]


def common_options(card: RewardCard) -> dict[str, Option]:
    """Options that every reward has beside those of its card."""
    options = {
        "batch": Option(default=card.batch, minimum=1, doc="Images scored at once."),
        "placement": Option(default="same", doc=f"Where it is computed: {PLACEMENTS}."),
        "timeout": Option(default=60.0, minimum=0.01, doc="Seconds a remote batch may take."),
        "retries": Option(default=2, minimum=0, doc="Further attempts after a remote failure."),
    }
    if "text" in card.needs:
        options["class_prompt"] = Option(
            default="a photo of {}",
            doc="Text of an image that has a class and no caption; {} is the class name.",
        )
    return options


def resolve(text: str, registry: Registry, assets: Mapping[str, Scalar] | None = None) -> Resolved:
    """Look a specification up.

    Args:
        assets: {asset: path} as `--set assets.NAME=PATH` names them; they count where the specification names
            no path of its own, and never for what a server computes.

    Raises:
        UserError: unknown reward or option, or a value it does not take.
    """
    spec = parse_spec(text)
    card = registry.reward(spec.name)
    common = common_options(card)
    both = {**common, **card.options}
    values = {key: option.default for key, option in both.items()}
    for key, written in spec.options.items():
        if key not in both:
            raise UserError(
                f"reward {text!r}: {spec.name} has no option {key!r}.{suggest(key, both)}",
                fix=f"it has {', '.join(both)}",
            )
        try:
            values[key] = both[key].parse(written)
        except ValueError as error:
            raise UserError(f"reward {text!r}: {key}: {error}") from None
    if not is_remote(str(values["placement"])):
        for file in card.files:
            if file.asset and file.option and file.needed(values):
                values[file.option] = values[file.option] or (assets or {}).get(file.asset, "")
    if "class_prompt" in common and str(values["class_prompt"]).count("{}") != 1:
        raise UserError(f"reward {text!r}: class_prompt must hold {{}} once, where the class name goes")
    return Resolved(
        text,
        spec,
        card,
        options={key: values[key] for key in card.options},
        common={key: values[key] for key in common},
    )


def is_remote(placement: str) -> bool:
    """Whether another machine computes it."""
    return placement.startswith(("http://", "https://"))


def require_packages(name: str, card: RewardCard) -> None:
    """Raise UserError if a module that the card names is not installed; nothing is imported."""
    missing, fix = missing_packages(card.packages, card.extra)
    if missing:
        raise UserError(f"reward {name!r} needs {' and '.join(missing)}, not installed here", fix=fix)
