"""The grammar of rewards on the command line; knows no reward and imports no torch.

    terms     = term {"," term}
    term      = spec ["@" weight]                  weight 1 if left out
    spec      = name ["(" option {"," option} ")"] {"|" transform}
    option    = key "=" value                      of the reward's card
    transform = name ["(" number {"," number} ")"]

A text in double quotes may hold any other character: `vlm-judge(question="Is it sharp, and complete?")`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from alignbench.errors import UserError

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
        if spec in (known for known, _ in terms):
            raise UserError(f"rewards {text!r}: {spec} is named twice", fix="add the weights up")
        terms.append((spec, weight))
    return terms


def parse_spec(text: str) -> Spec:
    """`"clip-score(batch=8)|scale(5)|clip(0,1)"` → its parts. Names are not looked up here.

    Raises:
        UserError: not of that form.
    """
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
    """Split at separators outside parentheses and double quotes; pieces are stripped.

    Raises:
        UserError: parentheses or quotes that do not match.
    """
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
