"""GenEval's rules (arXiv:2310.11513): which detections count, and whether they show what a prompt asks for.

Pure arithmetic on boxes and scores. It knows no detector, no vocabulary and no colour network, so another
detector with other classes is judged by the same rules. The numbers are those of the official script,
`evaluation/evaluate_images.py` of github.com/djghosh13/geneval at af4902f; docs/evaluators/geneval.md says
how the two were compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignbench.errors import UserError, suggest

SCORE_THRESHOLD = 0.3
"""A detection counts above it (option `threshold`)."""
COUNTING_THRESHOLD = 0.9
"""The same for prompts that ask for a number of things (option `counting_threshold`)."""
COUNTING = "counting"
"""Tag of those prompts."""
MAX_PER_CLASS = 16
"""Best detections of each class that are looked at (option `max_objects`)."""
POSITION_SLACK = 0.1
"""Share of the two boxes' summed extent by which centres may differ without meaning anything (option
`position_threshold`)."""
NEGLIGIBLE = 1e-3
"""Pixels; what remains of both offsets below it is no relation."""
DIRECTION_SHARE = 0.5
"""Share of the centres' distance that must remain along an axis for a relation along it."""
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True, eq=False)
class Detection:
    """One object that a detector reports."""

    label: int
    """Index into the detector's class names."""
    score: float
    """0 to 1; compared in float32, as detectors give it."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels; right and bottom are one past the last pixel."""
    mask: np.ndarray | None = None
    """[H, W] bool over the whole image; None: only the box is known."""


ColourFunction = Callable[[str, Sequence[Detection]], Sequence[str]]
"""(class name, detections of it) → the colour of each."""


@dataclass(frozen=True)
class Include:
    """At least `count` objects of a class, perhaps of a colour, perhaps placed relative to another clause."""

    name: str
    count: int
    colour: str = ""
    relation: str = ""
    target: int = -1
    """Clause the relation refers to, counted from 0; an earlier one."""


@dataclass(frozen=True)
class Exclude:
    """Fewer than `count` objects of a class."""

    name: str
    count: int


@dataclass(frozen=True)
class Demand:
    """What a prompt asks for: every include and no exclude."""

    tag: str
    include: tuple[Include, ...]
    exclude: tuple[Exclude, ...]

    @property
    def threshold(self) -> float:
        """Score a detection must exceed."""
        return COUNTING_THRESHOLD if self.tag == COUNTING else SCORE_THRESHOLD


@dataclass(frozen=True)
class Verdict:
    """Whether an image shows what was asked for."""

    correct: bool
    reason: str
    """One line for each clause that failed; empty if correct."""


# --- what is asked for ----------------------------------------------------------------------------


def demand_of(
    metadata: Mapping[str, Any], *, class_names: Sequence[str], colour_names: Sequence[str]
) -> Demand:
    """Read one line of a GenEval prompt file: `tag`, `include`, perhaps `exclude`; other keys are ignored.

    Raises:
        UserError: something that no image could satisfy or that has no meaning, naming the prompt.
    """
    try:
        include = tuple(
            _include(clause, position, class_names, colour_names)
            for position, clause in enumerate(metadata["include"])
        )
        exclude = tuple(
            Exclude(_one_of(clause["class"], class_names, "class"), _count(clause["count"]))
            for clause in metadata.get("exclude", ())
        )
        if not include:
            raise ValueError("include is empty")
        return Demand(str(metadata["tag"]), include, exclude)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"prompt {metadata.get('prompt', '')!r} is no GenEval prompt: {what}") from error


def _include(
    clause: Mapping[str, Any], position: int, class_names: Sequence[str], colour_names: Sequence[str]
) -> Include:
    unknown = set(clause) - {"class", "count", "color", "position"}
    if unknown:
        raise ValueError(f"unknown key {min(unknown)!r}")
    colour, relation, target = "", "", -1
    if "color" in clause:
        colour = _one_of(clause["color"], colour_names, "colour")
    if "position" in clause:
        relation, target = clause["position"]
        _one_of(relation, RELATIONS, "relation")
        if not (type(target) is int and 0 <= target < position):
            raise ValueError(f"the target of {relation!r} is {target!r}, not an earlier clause")
    name = _one_of(clause["class"], class_names, "class")
    return Include(name, _count(clause["count"]), colour, relation, target)


def _one_of(name: Any, names: Sequence[str], what: str) -> str:
    """Return a name that is there exactly; `tv` is not `tv remote`."""
    if name not in names:
        raise ValueError(f"unknown {what} {name!r}.{suggest(str(name), names)}")
    return str(name)


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"count is {value!r}, not a positive whole number")
    return value


# --- which detections count -----------------------------------------------------------------------


def select(
    detections: Sequence[Detection], *, class_names: Sequence[str], threshold: float
) -> dict[str, list[Detection]]:
    """Return the detections of each class that count, best first; classes without any are absent.

    Equal scores go last first, as in the official script. Its suppression of overlapping boxes is switched
    off by its default, so there is none here.
    """
    scores = np.array([item.score for item in detections], dtype=np.float32)
    kept: dict[str, list[Detection]] = {}
    for position in np.argsort(scores, kind="stable")[::-1]:
        # In float32 on both sides: 0.3 as a score is not above the threshold 0.3.
        if not scores[position] > np.float32(threshold):
            break
        best = kept.setdefault(class_names[detections[position].label], [])
        if len(best) < MAX_PER_CLASS:
            best.append(detections[position])
    return kept


# --- where objects are ----------------------------------------------------------------------------

Box = tuple[float, float, float, float]


def relations(box: Box, target: Box) -> frozenset[str]:
    """Say where the first box (left, top, right, bottom) is relative to the second; y grows downwards.

    The offset of the centres is shortened along each axis by a tenth of the summed extents, not below 0.
    A direction holds if more than half of the unshortened distance remains along its axis, so two directions
    can hold at once, and none.
    """
    boxes = np.array([box, target], dtype=np.float32).reshape(2, 2, 2)
    centres = boxes.mean(axis=1)
    extents = np.abs(boxes[:, 1] - boxes[:, 0])
    offset = centres[0] - centres[1]
    rest = np.maximum(np.abs(offset) - POSITION_SLACK * (extents[0] + extents[1]), 0) * np.sign(offset)
    if (np.abs(rest) < NEGLIGIBLE).all():
        return frozenset()
    x, y = rest / np.linalg.norm(offset)
    holds = (x < -DIRECTION_SHARE, x > DIRECTION_SHARE, y < -DIRECTION_SHARE, y > DIRECTION_SHARE)
    return frozenset(name for name, true in zip(RELATIONS, holds, strict=True) if true)


# --- the verdict ----------------------------------------------------------------------------------


def judge(objects: Mapping[str, Sequence[Detection]], demand: Demand, colours: ColourFunction) -> Verdict:
    """Hold what was found against what was asked for; colours are asked only where a clause demands one.

    Of each class the `count` best detections are taken, and only they are looked at: colour and place of the
    others do not matter. A relation must hold between each taken object and each taken object of its target.
    """
    failures: list[str] = []
    taken: list[Sequence[Detection] | None] = []
    for clause in demand.include:
        best = list(objects.get(clause.name, ()))[: clause.count]
        failure = _failure(clause, best, taken, colours)
        taken.append(None if failure else best)
        failures += [failure] if failure else []
    for limit in demand.exclude:
        number = len(objects.get(limit.name, ()))
        if number >= limit.count:
            failures.append(f"{limit.name}: fewer than {limit.count} wanted, {number} found")
    return Verdict(not failures, "\n".join(failures))


def _failure(
    clause: Include,
    best: Sequence[Detection],
    taken: Sequence[Sequence[Detection] | None],
    colours: ColourFunction,
) -> str:
    """Say why a clause does not hold; empty: it does."""
    if len(best) < clause.count:
        return f"{clause.name}: {clause.count} wanted, {len(best)} found"
    if clause.colour:
        seen = list(colours(clause.name, best))
        if seen.count(clause.colour) < clause.count:
            return f"{clause.name}: {clause.count} {clause.colour} wanted, found {', '.join(seen)}"
    if not clause.relation:
        return ""
    targets = taken[clause.target]
    if targets is None:
        return f"{clause.name}: nothing to be {clause.relation}, clause {clause.target} failed"
    for item in best:
        for target in targets:
            true = relations(item.box, target.box)
            if clause.relation not in true:
                actual = " and ".join(name for name in RELATIONS if name in true) or "in no relation"
                return f"{clause.name}: {clause.relation} the target wanted, is {actual}"
    return ""
